import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from aloe.returns import aggregate, chunk_return, chunk_td_target, monte_carlo_return

NAN = math.nan


def rewards(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def flags(*bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.bool)


def test_chunk_return_discounts_by_the_step() -> None:
    # -1 - 0.5 - 0.25 = -1.75;  2 + 0.5 * 0 + 0.25 * 4 = 3
    got = chunk_return(rewards([-1, -1, -1], [2, 0, 4]), discount=0.5)
    torch.testing.assert_close(got, values(-1.75, 3))


def test_chunk_of_one_step_returns_its_reward() -> None:
    torch.testing.assert_close(chunk_return(rewards([-1], [0]), discount=0.3), values(-1, 0))


def test_chunk_return_takes_any_number_of_leading_axes() -> None:
    reward = rewards([1, 2], [3, 4], [5, 6], [7, 8])
    got = chunk_return(reward.view(2, 2, 2), discount=0.5)
    torch.testing.assert_close(got, chunk_return(reward, discount=0.5).view(2, 2))
    torch.testing.assert_close(chunk_return(reward[0], discount=0.5), values(2)[0])


def test_target_adds_the_discounted_value_after_the_chunk() -> None:
    # -1 - 0.5 + 0.5^2 * -4 = -2.5
    got = chunk_td_target(rewards([-1, -1]), values(-4), flags(0), discount=0.5)
    torch.testing.assert_close(got, values(-2.5))


@pytest.mark.parametrize("next_value", [0.0, -100.0, NAN, math.inf])
def test_nothing_bootstraps_across_a_termination(next_value: float) -> None:
    # -1 + 0.5 * -2 + 0.25 * 0 = -2, whatever the next value holds
    got = chunk_td_target(rewards([-1, -2, 0]), values(next_value), flags(1), discount=0.5)
    torch.testing.assert_close(got, values(-2))


def test_termination_of_one_chunk_leaves_its_neighbours_alone() -> None:
    # terminated: -1;  not: -1 + 0.5 * -2 = -2
    got = chunk_td_target(rewards([-1], [-1]), values(NAN, -2), flags(1, 0), discount=0.5)
    torch.testing.assert_close(got, values(-1, -2))


def test_chunk_whose_recording_stopped_bootstraps() -> None:
    # A truncated chunk is one that is not terminated: -1 - 0.5 + 0.25 * -8 = -3.5
    got = chunk_td_target(rewards([-1, -1]), values(-8), flags(0), discount=0.5)
    torch.testing.assert_close(got, values(-3.5))


def test_target_is_clamped_to_what_is_possible() -> None:
    # Unclamped: -1 + 0.5 * (-10, -1, +10) = -6, -1.5, 4
    got = chunk_td_target(rewards([-1], [-1], [-1]), values(-10, -1, 10), flags(0, 0, 0), 0.5, clamp=(-2.0, 0.0))
    torch.testing.assert_close(got, values(-2, -1.5, 0))


def test_clamp_leaves_a_missing_next_value_without_influence() -> None:
    got = chunk_td_target(rewards([-1]), values(NAN), flags(1), 0.5, clamp=(-2.0, 0.0))
    torch.testing.assert_close(got, values(-1))


def test_target_passes_the_gradient_of_the_next_value_only_where_it_counts() -> None:
    next_value = values(-1, -1).requires_grad_()
    chunk_td_target(rewards([-1, -1], [-1, -1]), next_value, flags(0, 1), discount=0.5).sum().backward()
    torch.testing.assert_close(next_value.grad, values(0.25, 0))  # 0.5^2 and nothing


def test_monte_carlo_return_sums_to_the_end() -> None:
    # backwards: -3;  -2 + 0.5 * -3 = -3.5;  -1 + 0.5 * -3.5 = -2.75
    got = monte_carlo_return(values(-1, -2, -3), discount=0.5)
    torch.testing.assert_close(got, values(-2.75, -3.5, -3))


# Critics at 1, 2 and 6: mean 3, deviations -2, -1, 3, population variance 14 / 3.
@pytest.mark.parametrize(
    ("how", "std_weight", "expected"),
    [
        ("mean", 1.0, 3.0),
        ("min", 1.0, 1.0),
        ("mean-std", 1.0, 3 - (14 / 3) ** 0.5),
        ("mean-std", 0.5, 3 - (14 / 12) ** 0.5),
    ],
)
def test_aggregation_of_an_ensemble(how: str, std_weight: float, expected: float) -> None:
    got = aggregate(rewards([6, 1, 2], [6, 1, 2]), how, std_weight)
    torch.testing.assert_close(got, values(expected, expected))


@pytest.mark.parametrize("how", ["mean", "min", "mean-std"])
def test_one_critic_alone_gives_its_own_value(how: str) -> None:
    torch.testing.assert_close(aggregate(rewards([-1.5], [2]), how, 3.0), values(-1.5, 2))


def test_unequal_batches_are_caught() -> None:
    # Guards the checking itself: without it the next test files check no shapes.
    with pytest.raises(TypeCheckError):
        chunk_td_target(rewards([-1, -1], [-1, -1]), values(-1), flags(0, 0), discount=0.5)


reward_lists = st.lists(st.floats(-2, 2), min_size=1, max_size=20)


@given(reward=reward_lists, horizon=st.integers(1, 6), discount=st.floats(0.1, 1))
def test_chunk_targets_of_a_deterministic_chain_are_its_monte_carlo_returns(
    reward: list[float], horizon: int, discount: float
) -> None:
    """Where V is the true return, R_H + discount^H V(s_{t+H}) is the true return too, at every step."""
    steps = len(reward)
    true = monte_carlo_return(values(*reward), discount)
    padded = values(*reward, *[0.0] * horizon)
    chunks = torch.stack([padded[t : t + horizon] for t in range(steps)])
    terminated = torch.tensor([t + horizon >= steps for t in range(steps)])
    following = values(*[NAN if t + horizon >= steps else float(true[t + horizon]) for t in range(steps)])
    torch.testing.assert_close(chunk_td_target(chunks, following, terminated, discount), true)


@given(reward=st.lists(st.floats(-2, 2), min_size=2, max_size=12), discount=st.floats(0.1, 1), data=st.data())
def test_a_chunk_return_is_that_of_its_two_halves(reward: list[float], discount: float, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(reward) - 1))
    halves = [chunk_return(values(*part), discount) for part in (reward[:cut], reward[cut:])]
    torch.testing.assert_close(chunk_return(values(*reward), discount), halves[0] + discount**cut * halves[1])


@given(q=st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_pessimism_never_exceeds_the_mean(q: list[float]) -> None:
    critics = values(*q)
    mean = aggregate(critics, "mean") + 1e-9
    assert aggregate(critics, "min") <= mean
    assert aggregate(critics, "mean-std") <= mean
