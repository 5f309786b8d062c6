"""How an actor's batches are divided among tasks and roots."""

from pathlib import Path

import numpy as np
import pytest

from aloe.experience.mixture import RootConfig, with_roots
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows, return_scale
from aloe.methods import filtered
from aloe.stages.actor import batch_shares
from aloe.training import BatchDraw, generator_for
from aloe.types import Episode, Source


def episode(seed: int, task: str, steps: int, *, success: bool) -> Episode:
    rng, last = np.random.default_rng(seed), np.arange(steps) == steps - 1
    return Episode(
        task=task,
        seed=seed,
        images={},
        state=rng.standard_normal((steps, 4)).astype(np.float32),
        action=rng.standard_normal((steps, 2)).astype(np.float32),
        proposed_action=np.zeros((steps, 2), np.float32),
        source=np.full(steps, Source.POLICY),
        policy_version=np.zeros(steps, np.int64),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=last & success,
        truncated=last & (not success),
        success=last & success,
    )


def recorded(root: Path, episodes: list[Episode]) -> ExperienceStore:
    with ExperienceStore.create(root, cameras={}, state_dim=4, action_dim=2, fps=10) as store:
        for one in episodes:
            store.append(one)
    return ExperienceStore.read(root)


@pytest.fixture
def hard_and_easy(tmp_path: Path) -> ExperienceStore:
    """Five episodes of 6 steps of a hard task, of which one succeeds; one of 10 steps of an easy one."""
    hard = [episode(i, "lift", 6, success=i == 0) for i in range(5)]
    return recorded(tmp_path / "store", [*hard, episode(9, "push", 10, success=True)])


def test_a_task_has_its_share_of_a_batch_however_little_of_it_succeeded(hard_and_easy: ExperienceStore) -> None:
    frames = hard_and_easy.columns()
    rows = filtered.actor_rows(frames, make_windows(frames, WindowConfig(horizon=4), return_scale(frames))).rows
    assert np.bincount(frames.task_index[rows]).tolist() == [6, 10]  # the successful episodes
    drawn = BatchDraw(rows, batch_shares(hard_and_easy, frames))(40_000, generator_for(0))
    # 30 of 40 steps were of the hard task. A share has a standard deviation of 0.0022; four of them.
    assert (frames.task_index[drawn] == 0).mean() == pytest.approx(0.75, abs=0.009)
    assert set(drawn.tolist()) == set(rows.tolist())


def test_one_task_is_drawn_as_without_shares(tmp_path: Path) -> None:
    store = recorded(tmp_path / "store", [episode(0, "lift", 6, success=True), episode(1, "lift", 6, success=False)])
    assert batch_shares(store, store.columns()) is None


def test_where_roots_have_ratios_these_rule(hard_and_easy: ExperienceStore, tmp_path: Path) -> None:
    recorded(tmp_path / "more", [episode(20, "push", 10, success=True)])
    roots = {"more": RootConfig(root=tmp_path / "more", ratio=0.5)}
    mixture = with_roots(hard_and_easy, roots)
    given = batch_shares(mixture, mixture.columns())
    assert given is not None
    assert given.ratio == (0.5, None)
    np.testing.assert_array_equal(given.part, mixture.shares.part)
    without = with_roots(hard_and_easy, {"more": RootConfig(root=tmp_path / "more")})
    frames = without.columns()
    by_task = batch_shares(without, frames)
    assert by_task is not None
    assert dict(zip(frames.tasks, by_task.ratio, strict=True)) == pytest.approx({"lift": 30 / 50, "push": 20 / 50})
