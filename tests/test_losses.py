import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aloe.losses import (
    advantage_weight,
    critic_loss,
    expectile_loss,
    flow_interpolate,
    flow_matching_residual,
    masked_chunk_mean,
    weighted_flow_matching_loss,
)

ACTION = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # B = 1, H = 2, A = 2
NOISE = torch.tensor([[[5.0, 5.0], [-1.0, 0.0]]])


def flags(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_flow_time_zero_is_the_action_and_one_is_noise() -> None:
    torch.testing.assert_close(flow_interpolate(ACTION, NOISE, torch.tensor([0.0])), ACTION)
    torch.testing.assert_close(flow_interpolate(ACTION, NOISE, torch.tensor([1.0])), NOISE)


def test_flow_path_is_straight() -> None:
    # 0.25 * noise + 0.75 * action: 1.25 + 0.75, 1.25 + 1.5; -0.25 + 2.25, 0 + 3
    expected = torch.tensor([[[2.0, 2.75], [2.0, 3.0]]])
    torch.testing.assert_close(flow_interpolate(ACTION, NOISE, torch.tensor([0.25])), expected)


def test_flow_time_is_one_a_chunk() -> None:
    action, noise = ACTION.repeat(2, 1, 1), NOISE.repeat(2, 1, 1)
    got = flow_interpolate(action, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(got, torch.cat([ACTION, NOISE]))


def test_regression_target_is_noise_minus_action() -> None:
    # noise - action = 4, 3; -4, -4
    velocity = torch.tensor([[[4.0, 3.0], [-4.0, -4.0]]])
    torch.testing.assert_close(flow_matching_residual(velocity, ACTION, NOISE), torch.zeros(1, 2, 2))
    # against a velocity of zero: the squares
    expected = torch.tensor([[[16.0, 9.0], [16.0, 16.0]]])
    torch.testing.assert_close(flow_matching_residual(torch.zeros(1, 2, 2), ACTION, NOISE), expected)


def test_the_true_velocity_carries_noise_back_to_the_action() -> None:
    # x_{t - dt} = x_t - dt * velocity, from t = 1 to t = 0.75: the point of the path there
    velocity = NOISE - ACTION
    torch.testing.assert_close(NOISE - 0.25 * velocity, flow_interpolate(ACTION, NOISE, torch.tensor([0.75])))
    torch.testing.assert_close(NOISE - velocity, ACTION)


RESIDUAL = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [100.0, 100.0]]])


def test_mean_of_a_chunk_counts_valid_steps_only() -> None:
    # (1 + 3 + 5 + 7) / 4 = 4;  (2 + 4) / 2 = 3
    torch.testing.assert_close(masked_chunk_mean(RESIDUAL, flags([[0, 0], [0, 1]])), torch.tensor([4.0, 3.0]))


def test_chunk_of_padding_alone_has_mean_zero() -> None:
    torch.testing.assert_close(masked_chunk_mean(RESIDUAL, flags([[1, 1], [1, 1]])), torch.zeros(2))


def test_actor_loss_is_weighted_and_divided_by_the_number_of_valid_entries() -> None:
    # (0.5 * (1 + 3 + 5 + 7) + 2 * (2 + 4)) / 6 entries = 20 / 6
    got = weighted_flow_matching_loss(RESIDUAL, torch.tensor([0.5, 2.0]), flags([[0, 0], [0, 1]]))
    torch.testing.assert_close(got, torch.tensor(20 / 6))


def test_actor_loss_of_padding_alone_is_zero() -> None:
    assert weighted_flow_matching_loss(RESIDUAL, torch.ones(2), flags([[1, 1], [1, 1]])) == 0


@pytest.mark.parametrize("padding", [100.0, -1e6, 0.0])
def test_padding_never_counts(padding: float) -> None:
    is_pad = flags([[0, 0], [0, 1]])
    residual = RESIDUAL.clone()
    residual[1, 1] = padding
    for loss in (
        lambda x: weighted_flow_matching_loss(x, torch.ones(2), is_pad),
        lambda x: masked_chunk_mean(x, is_pad),
    ):
        torch.testing.assert_close(loss(residual), loss(RESIDUAL), rtol=0, atol=0)


def test_padding_gets_no_gradient() -> None:
    is_pad = flags([[0, 0], [0, 1]])
    velocity = torch.full((2, 2, 2), 0.5, requires_grad=True)
    residual = flow_matching_residual(velocity, ACTION.repeat(2, 1, 1), NOISE.repeat(2, 1, 1))
    weighted_flow_matching_loss(residual, torch.ones(2), is_pad).backward()
    assert velocity.grad is not None
    assert (velocity.grad[1, 1] == 0).all()
    # 2 (0.5 - 4) / 6 entries
    torch.testing.assert_close(velocity.grad[1, 0, 0], torch.tensor(-7 / 6))


def test_critics_share_one_target() -> None:
    # errors: 1 and 3 (of -1, +1 against -2), 0 and 2 (of 1, 3 against 1): (1 + 9 + 0 + 4) / 4
    got = critic_loss(torch.tensor([[-1.0, 1.0], [1.0, 3.0]]), torch.tensor([-2.0, 1.0]))
    torch.testing.assert_close(got, torch.tensor(3.5))


def test_critic_loss_reaches_every_head_and_not_the_target() -> None:
    q = torch.tensor([[-1.0, 1.0, 4.0]], requires_grad=True)
    target = torch.tensor([-2.0], requires_grad=True)
    critic_loss(q, target).backward()
    assert target.grad is None
    torch.testing.assert_close(q.grad, torch.tensor([[2.0, 6.0, 12.0]]) / 3)  # 2 (Q - y) / K


def test_expectile_loss_counts_what_lies_above_more() -> None:
    # u = y - V = 2 and -1: (0.9 * 4 + 0.1 * 1) / 2
    got = expectile_loss(torch.tensor([0.0, 0.0]), torch.tensor([2.0, -1.0]), expectile=0.9)
    torch.testing.assert_close(got, torch.tensor(1.85))


def test_expectile_of_one_half_is_half_the_squared_error() -> None:
    value, target = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(expectile_loss(value, target, 0.5), 0.5 * ((value - target) ** 2).mean())


def test_expectile_loss_sends_no_gradient_to_the_target() -> None:
    value, target = torch.zeros(2, requires_grad=True), torch.tensor([2.0, -1.0], requires_grad=True)
    expectile_loss(value, target, 0.9).backward()
    assert target.grad is None
    torch.testing.assert_close(value.grad, torch.tensor([-1.8, 0.1]))  # -2 * 0.9 * 2 / 2 and 2 * 0.1 * 1 / 2


def test_advantage_weight_is_exponential_between_the_clips() -> None:
    # A / beta = -0.5, 0, 1
    got = advantage_weight(torch.tensor([-1.0, 0.0, 2.0]), beta=2.0, clip=3.0)
    torch.testing.assert_close(got, torch.tensor([math.exp(-0.5), 1.0, math.e]))


def test_advantage_weight_is_clipped_at_both_ends() -> None:
    # A / beta = -10, -3, 3, 10
    got = advantage_weight(torch.tensor([-5.0, -1.5, 1.5, 5.0]), beta=0.5, clip=3.0)
    low, high = math.exp(-3), math.exp(3)
    torch.testing.assert_close(got, torch.tensor([low, low, high, high]))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be positive"):
        advantage_weight(torch.zeros(3), beta=beta, clip=3.0)


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_equal_weights_give_the_mean_over_all_valid_entries(lengths: list[int], seed: int) -> None:
    residual = torch.rand(len(lengths), 4, 2, generator=torch.Generator().manual_seed(seed))
    is_pad = torch.arange(4) >= torch.tensor(lengths)[:, None]
    expected = residual[~is_pad].mean() if sum(lengths) else torch.tensor(0.0)
    torch.testing.assert_close(weighted_flow_matching_loss(residual, torch.ones(len(lengths)), is_pad), expected)


@given(advantage=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8), beta=st.floats(0.1, 10))
def test_a_better_chunk_never_weighs_less(advantage: list[float], beta: float) -> None:
    ordered = torch.tensor(sorted(advantage))
    assert (advantage_weight(ordered, beta, clip=3.0).diff() >= 0).all()
