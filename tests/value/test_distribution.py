"""The value learnt from returns, as a distribution over bins."""

import numpy as np
import torch

from aloe.experience.store import Frames
from aloe.experience.windows import WindowConfig, make_windows
from aloe.types import Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.distribution import ReturnDistribution, evaluate_states, fit_distribution
from aloe.value.fit import FitConfig

SHAPE = ObservationShape(cameras=0, feature_dim=2, state_dim=1, language_dim=1, action_dim=1, horizon=0)


def distribution(bins: int) -> ReturnDistribution:
    torch.manual_seed(0)
    return ReturnDistribution(
        ChunkCritic(CriticConfig(critics=1, width=16, layers=1, heads=2), SHAPE, outputs=bins), FitConfig(), bins
    )


def test_bins_divide_the_range_evenly_and_returns_outside_fall_into_the_outermost() -> None:
    state = distribution(4)
    state.set_range(-2.0, 0.0)  # bins of width 0.5, centres -1.75, -1.25, -0.75, -0.25
    assert state.bin_of(torch.tensor([-9.0, -2.0, -1.4, -0.6, 0.0, 9.0])).tolist() == [0, 0, 1, 2, 3, 3]


def test_value_is_the_mean_of_the_bins_centres() -> None:
    state = distribution(4)
    state.set_range(-2.0, 0.0)
    # Half of the mass on -1.75, half on -0.25: mean -1.
    logits = torch.tensor([[0.0, -1e9, -1e9, 0.0]])
    assert state.mean(logits).item() == -1.0


def one_step_episodes(count: int) -> Frames:
    """Half of the episodes are seen as state 1 and succeed or fail by turns; the others, state 0, always fail."""
    column = (np.arange(count) % 2).astype(np.float32)[:, None]
    success = np.arange(count) % 4 == 1
    return Frames(
        state=column,
        action=column,
        proposed_action=column,
        source=np.full(count, int(Source.POLICY)),
        policy_version=np.zeros(count, np.int64),
        reward=np.where(success, 0, -1).astype(np.float32),
        terminated=np.ones(count, bool),
        truncated=np.zeros(count, bool),
        success=success,
        seed=np.zeros(count, np.int64),
        episode=np.arange(count),
        step=np.zeros(count, np.int64),
        task_index=np.zeros(count, np.int64),
        tasks=["press"],
    )


def test_value_of_a_state_becomes_the_mean_of_its_returns(tmp_path) -> None:
    frames = one_step_episodes(64)
    windows = make_windows(frames, WindowConfig(horizon=1), 1.0)  # success: return 0, failure: -1

    def see(rows: np.ndarray) -> Observations:
        return Observations(
            features=torch.zeros(len(rows), 0, 2),
            state=torch.from_numpy(frames.state[rows]),
            language=torch.zeros(len(rows), 1),
        )

    config = FitConfig(steps=200, batch_size=64, learning_rate=3e-3, warmup=10, save_every=150)
    state = distribution(32)
    state.set_range(-0.5, 0.0)  # of an earlier round, which knew of nothing worse
    fit_distribution(state, windows, see, config, (0,), checkpoint=tmp_path / "half")
    value = evaluate_states(state, len(frames), see)
    assert np.abs(value[0::2] + 1).max() < 0.05  # always -1
    assert np.abs(value[1::2] + 0.5).max() < 0.1  # -1 and 0 by turns

    resumed = distribution(32)  # from the checkpoint at step 150, as after a kill: bit-equal in the end
    fit_distribution(resumed, windows, see, config, (0,), checkpoint=tmp_path / "half")
    assert np.array_equal(evaluate_states(resumed, len(frames), see), value)
