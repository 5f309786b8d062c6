"""A store of three fragments, H = 2, whose steps can be counted on the fingers:

frame     0 1 2 3   4 5 6   7 8 9
actor     demo      policy  policy
end       success   failure time out, which bootstraps here
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aloe.experience.store import Frames
from aloe.experience.windows import WindowConfig, Windows, make_windows
from aloe.returns import aggregate
from aloe.training import generator_for
from aloe.types import NO_POLICY, Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.evaluate import evaluate_windows
from aloe.value.fit import (
    CriticData,
    CriticState,
    FitConfig,
    critic_step,
    fit_critic,
    tail,
    td_target,
)

COUNT, HORIZON, SAMPLES, ACTION_DIM = 10, 2, 3, 2
WINDOWS = WindowConfig(horizon=HORIZON, chunk_discount=0.25, timeout="bootstrap")
DISCOUNT = 0.5  # 0.25^(1/2)
SHAPE = ObservationShape(cameras=1, feature_dim=4, state_dim=3, language_dim=2, action_dim=ACTION_DIM, horizon=HORIZON)
ALL = np.arange(COUNT)
SHORT = FitConfig(steps=4, batch_size=6, warmup=1, save_every=2)


@pytest.fixture
def windows() -> Windows:
    demo = np.arange(COUNT) < 4
    ends = {3: "success", 6: "failure", 9: "time-out"}
    end = np.array([ends.get(frame, "") for frame in range(COUNT)])
    frames = Frames(
        state=np.zeros((COUNT, 3), np.float32),
        action=np.zeros((COUNT, ACTION_DIM), np.float32),
        proposed_action=np.zeros((COUNT, ACTION_DIM), np.float32),
        source=np.where(demo, int(Source.DEMO), int(Source.POLICY)),
        policy_version=np.where(demo, NO_POLICY, 0),
        reward=np.full(COUNT, -1, np.float32),
        terminated=np.isin(end, ["success", "failure"]),
        truncated=end == "time-out",
        success=end == "success",
        seed=np.zeros(COUNT, np.int64),
        episode=np.array([0] * 4 + [1] * 3 + [2] * 3),
        step=np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2]),
        task_index=np.zeros(COUNT, np.int64),
        tasks=["a task"],
    )
    return make_windows(frames, WINDOWS, scale=4.0)


def make_data(windows: Windows) -> CriticData:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(COUNT, 1, 4, generator=generator)
    state = torch.randn(COUNT, 3, generator=generator)
    language = torch.randn(COUNT, 2, generator=generator)
    return CriticData(
        windows=windows,
        observations=lambda frames: Observations(
            features=features[frames], state=state[frames], language=language[frames]
        ),
        action=torch.randn(COUNT, ACTION_DIM, generator=generator),
        samples=torch.randn(COUNT, SAMPLES, HORIZON, ACTION_DIM, generator=generator).numpy(),
    )


@pytest.fixture
def data(windows: Windows) -> CriticData:
    return make_data(windows)


def make_state(config: FitConfig = SHORT, seed: int = 0, critics: int = 2) -> CriticState:
    torch.manual_seed(seed)
    size = CriticConfig(critics=critics, width=8, layers=1, heads=2)
    value = ChunkCritic(size, replace(SHAPE, horizon=0)) if config.bootstrap == "in-sample" else None
    return CriticState(ChunkCritic(size, SHAPE), config, value)


def weights(state: CriticState) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in state.modules().items()
        for key, tensor in module.state_dict().items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_target_bootstraps_from_the_policys_value_two_steps_on(data: CriticData) -> None:
    config = FitConfig(target_samples=2, target_aggregation="min", clamp_targets=False)
    state = make_state()
    got = td_target(state, data, np.array([0, 1, 4, 7]), config, DISCOUNT)

    # V(s) = the mean over the first two samples of the smaller of the two critics
    q = state.target.of_samples(
        data.observations(np.array([2, 3, 6, 9])), torch.from_numpy(data.samples[[2, 3, 6, 9], :2])
    )
    value = q.amin(-1).mean(-1)
    # All four windows hold two steps of -1/4: -1/4 - 1/2 * 1/4 + 1/4 * V
    torch.testing.assert_close(got, -0.375 + 0.25 * value)


def test_target_of_a_terminated_window_is_its_return(data: CriticData) -> None:
    # success: -1/4 + 0, then 0 alone;  failure: -1/4 - 1/2, then -1 alone
    for bootstrap in ("policy", "in-sample"):
        config = FitConfig(bootstrap=bootstrap)
        got = td_target(make_state(config), data, np.array([2, 3, 5, 6]), config, DISCOUNT)
        torch.testing.assert_close(got, torch.tensor([-0.25, 0.0, -0.75, -1.0]))


def test_monte_carlo_target_is_the_windows_return(data: CriticData) -> None:
    config = FitConfig(bootstrap="monte-carlo")
    got = td_target(make_state(config), data, ALL, config, DISCOUNT)
    np.testing.assert_array_equal(got.numpy(), data.windows.monte_carlo)
    # demo: -1/4 (1 + 1/2 + 1/4) + 0 = -0.4375;  failure: -1/4 - 1/8 - 1/4 = -0.625
    assert got[0] == pytest.approx(-0.4375)
    assert got[4] == pytest.approx(-0.625)


def test_targets_stay_within_the_possible_range(data: CriticData) -> None:
    state = make_state()
    with torch.no_grad():
        for head in state.target.heads:
            head[-1].bias.fill_(50.0)
    assert td_target(state, data, np.array([0]), FitConfig(), DISCOUNT) == 0.0
    assert td_target(state, data, np.array([0]), FitConfig(clamp_targets=False), DISCOUNT) > 1.0


def test_target_critics_and_not_the_online_ones_make_the_target(data: CriticData) -> None:
    state = make_state()
    before = td_target(state, data, ALL, SHORT, DISCOUNT)
    with torch.no_grad():
        for parameter in state.critic.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(td_target(state, data, ALL, SHORT, DISCOUNT), before, rtol=0, atol=0)


def test_in_sample_target_uses_no_policy_sample(data: CriticData) -> None:
    config = FitConfig(bootstrap="in-sample")
    state = make_state(config)
    without = replace(data, samples=np.full_like(data.samples, np.nan))
    got = td_target(state, without, np.array([0]), config, DISCOUNT)
    assert state.value is not None
    value = state.value(data.observations(np.array([2]))).mean(-1)
    torch.testing.assert_close(got, (-0.375 + 0.25 * value).detach())


def test_three_bootstraps_differ_where_the_episode_goes_on(data: CriticData) -> None:
    going_on = np.array([0, 1, 4, 7])
    targets = []
    for bootstrap in ("policy", "in-sample", "monte-carlo"):
        config = FitConfig(bootstrap=bootstrap, clamp_targets=False)
        targets.append(td_target(make_state(config), data, going_on, config, DISCOUNT))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert ((targets[one] - targets[other]).abs() > 1e-4).all()


def test_executed_chunk_is_shown_as_it_was(data: CriticData) -> None:
    fill = torch.full((2, HORIZON, ACTION_DIM), 9.0)
    # Frame 1 begins a whole window, frame 3 the last one of its fragment.
    got = data.chunks(np.array([1, 3]), fill)
    torch.testing.assert_close(got[0], data.action[1:3])
    torch.testing.assert_close(got[1], torch.stack([data.action[3], torch.tensor([9.0, 9.0])]))
    torch.testing.assert_close(data.chunks(np.array([3]), None)[0, 1], torch.zeros(ACTION_DIM))


def test_critics_of_the_first_action_learn_the_same_returns_from_it_alone(data: CriticData) -> None:
    """Steps 0 and 1 are rewarded and the bootstrap is at 2, as for whole chunks."""
    first = replace(data, samples=data.samples[:, :, :1])
    torch.testing.assert_close(first.chunks(np.array([1, 3]), None), data.action[[1, 3]][:, None])
    shape = replace(SHAPE, horizon=1)
    state = CriticState(ChunkCritic(CriticConfig(critics=2, width=8, layers=1, heads=2), shape), SHORT, None)
    config = FitConfig(target_samples=1, target_aggregation="min", clamp_targets=False)
    q = state.target(data.observations(np.array([2])), torch.from_numpy(data.samples[[2], 0, :1]))
    got = td_target(state, first, np.array([0]), config, DISCOUNT)
    torch.testing.assert_close(got, -0.375 + 0.25 * q.amin(-1))  # -1/4 - 1/2 * 1/4 + 1/4 * V


def test_tail_is_one_of_the_policys_own_chunks_from_that_state(data: CriticData) -> None:
    rows = np.repeat([3, 6], 50)
    fill = tail(data, rows, FitConfig(tail_fill="policy"), generator_for(0))
    assert fill is not None
    seen = {0: set(), 1: set()}
    for i, chunk in enumerate(fill):
        matches = [m for m in range(SAMPLES) if np.array_equal(data.samples[rows[i], m], chunk.numpy())]
        assert len(matches) == 1
        seen[i // 50].add(matches[0])
    assert seen == {0: {0, 1, 2}, 1: {0, 1, 2}}
    assert tail(data, rows, FitConfig(tail_fill="zero"), generator_for(0)) is None


@pytest.mark.parametrize("how", ["mean", "min", "mean-std"])
def test_every_aggregation_reaches_the_target(data: CriticData, how: str) -> None:
    config = FitConfig(target_aggregation=how, target_samples=1, std_weight=0.5, clamp_targets=False)
    state = make_state()
    q = state.target(data.observations(np.array([2])), torch.from_numpy(data.samples[[2], 0]))
    got = td_target(state, data, np.array([0]), config, DISCOUNT)
    torch.testing.assert_close(got, -0.375 + 0.25 * aggregate(q, how, 0.5))


def test_target_follows_by_a_polyak_step(data: CriticData) -> None:
    config = FitConfig(polyak=0.25)
    state = make_state(config)
    state.target = copy.deepcopy(make_state(seed=1).target)
    before = [p.clone() for p in state.target.parameters()]
    critic_step(state, data, np.array([0, 3, 4]), config, DISCOUNT, 1e-3, generator_for(0))
    for old, new, online in zip(before, state.target.parameters(), state.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)
        assert not new.requires_grad


@pytest.mark.parametrize("bootstrap", ["policy", "in-sample", "monte-carlo"])
def test_step_moves_the_critics_toward_their_targets(data: CriticData, bootstrap: str) -> None:
    config = FitConfig(steps=150, batch_size=16, warmup=5, learning_rate=1e-2, bootstrap=bootstrap, tail_fill="zero")
    state = make_state(config)
    losses: dict[int, float] = {}
    fit_critic(state, data, config, DISCOUNT, (0, bootstrap), log=lambda step, m: losses.update({step: m["loss"]}))
    assert losses[149] < 0.1 * losses[0]
    assert (state.value is not None) == (bootstrap == "in-sample")


def test_windows_without_target_teach_nothing(data: CriticData) -> None:
    # Frames 8 and 9 end in the time-out. Their actions and pictures may hold anything.
    assert data.windows.has_target.tolist() == [True] * 8 + [False] * 2
    spoiled = make_data(data.windows)
    spoiled.action[9] = torch.nan  # of windows 8 and 9 alone
    state, other = make_state(), make_state()
    fit_critic(state, data, SHORT, DISCOUNT, (0,))
    fit_critic(other, spoiled, SHORT, DISCOUNT, (0,))
    assert_same(weights(state), weights(other))


def test_without_bootstrap_windows_of_unknown_return_teach_nothing(data: CriticData) -> None:
    # Frame 7 has a next state to bootstrap from, but its fragment runs into the time-out: nobody knows its return.
    assert data.windows.ended.tolist() == [True] * 7 + [False] * 3
    unknown = np.where(data.windows.ended, data.windows.monte_carlo, np.nan).astype(np.float32)
    spoiled = replace(data, windows=replace(data.windows, monte_carlo=unknown))
    config = replace(SHORT, bootstrap="monte-carlo")
    state = make_state(config)
    fit_critic(state, spoiled, config, DISCOUNT, (0,))
    assert all(tensor.isfinite().all() for tensor in weights(state).values())


def test_data_without_any_target_are_refused(data: CriticData) -> None:
    nothing = replace(data, windows=replace(data.windows, has_target=np.zeros(COUNT, bool)))
    with pytest.raises(ValueError, match="no window has a target"):
        fit_critic(make_state(), nothing, SHORT, DISCOUNT, (0,))


@pytest.mark.parametrize("bootstrap", ["policy", "in-sample"])
def test_interrupted_phase_ends_with_the_same_bits(data: CriticData, tmp_path: Path, bootstrap: str) -> None:
    config = replace(SHORT, bootstrap=bootstrap)
    straight = make_state(config)
    fit_critic(straight, data, config, DISCOUNT, (0, "critic", 1))

    # The process dies after step 3 of 4: one step later than its checkpoint.
    class KilledError(Exception):
        pass

    def die(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise KilledError

    checkpoint = tmp_path / "critic.safetensors"
    with pytest.raises(KilledError):
        fit_critic(make_state(config), data, config, DISCOUNT, (0, "critic", 1), checkpoint=checkpoint, log=die)
    resumed = make_state(config, seed=7)
    assert make_state(config, seed=8).load(checkpoint) == 2
    fit_critic(resumed, data, config, DISCOUNT, (0, "critic", 1), checkpoint=checkpoint)
    assert_same(weights(resumed), weights(straight))
    for name, optimizer in straight.optimizers().items():
        moments, again = (o.state_dict()["state"] for o in (optimizer, resumed.optimizers()[name]))
        for index, state in moments.items():
            assert all(torch.equal(value, again[index][key]) for key, value in state.items())


def test_finished_phase_does_nothing_when_it_is_run_again(data: CriticData, tmp_path: Path) -> None:
    checkpoint = tmp_path / "critic.safetensors"
    state = make_state()
    fit_critic(state, data, SHORT, DISCOUNT, (0,), checkpoint=checkpoint)
    before = weights(state)
    fit_critic(state, data, SHORT, DISCOUNT, (0,), checkpoint=checkpoint)
    assert_same(weights(state), before)


def test_another_key_draws_other_batches(data: CriticData) -> None:
    one, other = make_state(), make_state()
    fit_critic(one, data, SHORT, DISCOUNT, (0, "critic", 1))
    fit_critic(other, data, SHORT, DISCOUNT, (0, "critic", 2))
    assert any(not torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


@pytest.mark.parametrize("how", ["min", "mean"])
def test_advantage_is_the_executed_chunk_against_the_policys_own(data: CriticData, how: str) -> None:
    config = FitConfig(advantage_aggregation=how)
    critic = make_state().critic
    result = evaluate_windows(critic, data, config, batch_size=4)  # 4 + 4 + 2 rows
    for frame in (1, 5, 7):  # whole windows
        observation = data.observations(np.array([frame]))
        q = critic(observation, data.action[frame : frame + 2][None])
        samples = critic.of_samples(observation, torch.from_numpy(data.samples[[frame]]))
        value = aggregate(samples, how).mean()
        np.testing.assert_allclose(result.q[frame], q[0].detach().numpy(), atol=1e-5)
        assert result.value[frame] == pytest.approx(float(value.detach()), abs=1e-5)
        assert result.advantage[frame] == pytest.approx(float((aggregate(q, how)[0] - value).detach()), abs=1e-5)


@pytest.mark.parametrize("fill", ["policy", "zero"])
def test_executed_chunk_at_an_end_is_judged_with_the_tail_of_training(data: CriticData, fill: str) -> None:
    critic = make_state().critic
    result = evaluate_windows(critic, data, FitConfig(tail_fill=fill))
    for frame in (3, 6):  # of which the first action alone was executed
        past = torch.from_numpy(data.samples[frame, 0, 1]) if fill == "policy" else torch.zeros_like(data.action[0])
        q = critic(data.observations(np.array([frame])), torch.stack([data.action[frame], past])[None])
        np.testing.assert_allclose(result.q[frame], q[0].detach().numpy(), atol=1e-5)


def test_advantages_do_not_depend_on_the_batch_size(data: CriticData) -> None:
    critic = make_state().critic
    one, other = (evaluate_windows(critic, data, SHORT, batch_size=size) for size in (3, 256))
    np.testing.assert_allclose(one.advantage, other.advantage, atol=1e-5)
    np.testing.assert_allclose(one.q_samples, other.q_samples, atol=1e-5)


def test_one_critic_alone_has_no_spread(data: CriticData) -> None:
    state = make_state(critics=1)
    result = evaluate_windows(state.critic, data, SHORT)
    assert (result.q.std(-1) == 0).all()
    assert (result.q_samples.std(-1) == 0).all()
    assert np.isfinite(result.advantage).all()


def test_target_of_q_chunking_is_the_target_critics_value_of_the_online_critics_choice(data: CriticData) -> None:
    config = FitConfig(bootstrap="best-of", target_samples=3, target_aggregation="mean", clamp_targets=False)
    state = make_state()
    state.target.load_state_dict(make_state(seed=1).critic.state_dict())  # so that the two disagree
    seen, samples = data.observations(np.array([2, 6])), torch.from_numpy(data.samples[[2, 6]])
    chosen = state.critic.of_samples(seen, samples).mean(-1).argmax(-1)
    best = state.target.of_samples(seen, samples).mean(-1)[range(2), chosen]
    # Windows 0 and 4 hold two steps of -1/4: -1/4 - 1/2 * 1/4 + 1/4 * V
    torch.testing.assert_close(
        td_target(state, data, np.array([0, 4]), config, DISCOUNT), -0.375 + 0.25 * best.detach()
    )
