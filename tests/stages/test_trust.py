"""The critics of a tiny run, judged on episodes that they have not seen."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aloe import stages
from aloe.config import PRESETS
from aloe.evaluation.credit import Credit
from aloe.experience.cache import Cache
from aloe.experience.schema import Frames
from aloe.experience.store import ExperienceStore
from aloe.loop import run_circle
from aloe.policies.bundle import PolicyBundle, PolicyPlayer, Tower
from aloe.rollout.collect import episode_seeds
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder
from aloe.stages import EvaluatedEpisode, EvaluationInputs, TrustConfig
from aloe.stages.trust import credit_numbers, moments, takeover_numbers
from aloe.types import Episode, Source
from aloe.value.critic import ChunkCritic

CONFIG = replace(PRESETS["tiny"], rounds=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return run_circle(CONFIG, tmp_path_factory.mktemp("trust") / "run", say=lambda _: None)


def judged(run: RunFolder, cache: Path, change) -> dict:
    """The trust stage of round 1, with critics that `change` has altered."""
    policy = PolicyBundle.load(run.policy(0))
    tower = Tower(bundle=policy)
    scale = (run.done(0, "demos") or {})["return_scale"]
    store = ExperienceStore.open(run.experience)
    learnt = EvaluationInputs.of(store, policy, tower, Cache(root=run.cache), CONFIG.window, scale)
    recorded = ExperienceStore.read(run.round(0) / "fresh")
    fresh = stages.fresh_inputs(recorded, policy, tower, Cache(root=cache), CONFIG.window, scale)
    shape = stages.observation_shape(tower, CONFIG.window.horizon)
    state = stages.new_critic(shape, CONFIG.critic, CONFIG.fit, (0, "new critic"))
    state.load(run.round(1) / "critic.safetensors")
    change(state.critic)
    cache.mkdir(exist_ok=True)
    shutil.copy(run.round(1) / "advantages.parquet", cache)
    return stages.trust_stage(
        fresh,
        EvaluatedEpisode.read(run.round(0) / "fresh.json"),
        learnt,
        cache,
        state.critic,
        CONFIG.fit,
        (0, "trust", 1),
        cache / "samples.npy",
        samples=2,
        best_of=False,
        weighted=True,
        q_chunking=False,
    )


def shift_by(amount: float):
    def change(critic: ChunkCritic) -> None:
        with torch.no_grad():
            for head in critic.heads:
                head[-1].bias += amount

    return change


def test_the_summary_has_the_numbers_and_warnings_of_every_round_with_critics(run):
    first, second = json.loads((run.root / "summary.json").read_text())["rounds"]
    assert "trust" not in first
    numbers = second["trust"]
    assert numbers["episodes"] == 2
    assert numbers["start_count"] == 2
    assert numbers["credit_episodes"] == 2  # both failed, and the simulator knows when
    assert (
        numbers["value_count"]
        == numbers["chunk_count"]
        == sum(episode.steps for episode in EvaluatedEpisode.read(run.round(0) / "fresh.json")[:2])
    )
    assert all(isinstance(warning, str) for warning in second["warnings"])
    logged = [line for line in run.metrics() if line["stage"] == "trust"]
    assert [line["value_bias"] for line in logged] == [numbers["value_bias"]]
    table = json.loads((run.round(1) / "trust.json").read_text())["by_decile"]
    assert [len(table["value"]), sum(row["count"] for row in table["value"])] == [10, numbers["value_count"]]
    assert second["by_decile"] == table


def test_fresh_episodes_are_the_first_of_the_evaluation_and_nobody_learns_from_them(run):
    for version in (0, 1):
        fresh = ExperienceStore.open(run.round(version) / "fresh")
        frames = fresh.columns()
        assert frames.seed[frames.step == 0].tolist() == episode_seeds(0, "evaluate", 2)
        assert set(frames.policy_version) == {version}
        assert set(frames.source) == {Source.POLICY}
        facts = EvaluatedEpisode.read(run.round(version) / "fresh.json")
        assert [fact.seed for fact in facts] == episode_seeds(0, "evaluate", 3)
        assert [fact.steps for fact in facts][:2] == fresh.lengths
        assert np.mean([fact.success for fact in facts]) == (run.done(version, "eval") or {})["success"]
    learnt = ExperienceStore.open(run.experience).columns()
    assert not set(learnt.seed) & set(episode_seeds(0, "evaluate", 3))


def test_a_recorded_evaluation_measures_what_an_unrecorded_one_does(run):
    player = PolicyPlayer(bundle=PolicyBundle.load(run.policy(0)))
    seen, kept = [], []
    with WorldPool(CONFIG.world, workers=1) as pool:
        options = {"episodes": 3, "execute": 2, "version": 0, "seed": 0}
        plain = stages.measure(pool, player, **options, keep=seen.append)
        recorded = stages.measure(pool, player, **options, recorded=2, keep=kept.append)
    assert asdict(recorded) == asdict(plain)
    assert [len(episode.images) for episode in kept] == [2, 2, 0]
    assert [episode.action.tobytes() for episode in kept] == [episode.action.tobytes() for episode in seen]


def test_without_fresh_episodes_nothing_is_recorded_or_judged(tmp_path):
    config = replace(CONFIG, trust=TrustConfig(episodes=0))
    run = run_circle(config, tmp_path / "run", say=lambda _: None)
    assert not (run.round(0) / "fresh").exists()
    assert run.done(1, "trust") is None
    assert len(EvaluatedEpisode.read(run.round(0) / "fresh.json")) == 3  # `aloe rank` compares with these


def test_the_stage_gives_the_same_numbers_for_the_same_critics(run, tmp_path):
    trust = judged(run, tmp_path, lambda critic: None)
    assert trust == json.loads((run.round(1) / "trust.json").read_text())


def test_values_of_fresh_states_are_kept_as_they_were_judged(run):
    table = pd.read_parquet(run.round(1) / "fresh_values.parquet")
    frames = ExperienceStore.read(run.round(0) / "fresh").columns()
    assert table["episode"].tolist() == frames.episode.tolist()
    assert table["step"].tolist() == frames.step.tolist()
    known = table["return"].notna()
    numbers = (run.done(1, "trust") or {})["numbers"]
    assert (table["value"] - table["return"])[known].mean() == pytest.approx(numbers["value_bias"], abs=1e-6)
    assert table[["q_0", "q_1"]].std(axis=1, ddof=0).mean() == pytest.approx(numbers["spread_executed"], abs=1e-6)
    # min over the critics of Q, minus V
    np.testing.assert_allclose(table["advantage"], table[["q_0", "q_1"]].min(axis=1) - table["value"], atol=1e-6)


def test_a_critic_that_over_estimates_is_called_so(run, tmp_path):
    trust = judged(run, tmp_path, shift_by(5.0))
    # no return is above 0, and none is as low as -5 + a little: every sample is above all that was seen
    assert trust["numbers"]["above_best"] == 1.0
    assert trust["numbers"]["value_bias"] > 3
    said = "\n".join(trust["warnings"])
    assert "values of sampled chunks exceed every return seen (100%" in said
    assert "--fit.bootstrap in-sample" in said
    assert "too high by" in said


def test_critics_that_say_the_same_of_everything_are_called_so(run, tmp_path):
    def silence(critic: ChunkCritic) -> None:
        with torch.no_grad():
            for head in critic.heads:
                head[-1].weight.zero_()
                head[-1].bias.fill_(-1.0)

    trust = judged(run, tmp_path, silence)
    numbers = trust["numbers"]
    assert (numbers["q_executed"], numbers["q_samples"], numbers["spread_executed"]) == (-1.0, -1.0, 0.0)
    assert numbers["value_rank_correlation"] is None  # undefined, and not zero
    assert numbers["advantage_slope"] is None  # although returns vary
    facts = EvaluatedEpisode.read(run.round(0) / "fresh.json")[:2]
    assert [fact.success for fact in facts] == [False, False]
    # A failed episode of T steps: G_t = -(1 - g^(T-1-t)) / (1 - g) / C - g^(T-1-t), with g the discount of a step.
    g, scale = CONFIG.window.discount, (run.done(0, "demos") or {})["return_scale"]
    left = np.concatenate([np.arange(fact.steps)[::-1] for fact in facts])
    returns = -(1 - g**left) / (1 - g) / scale - g**left
    assert numbers["value_bias"] == pytest.approx(-1 - returns.mean(), abs=1e-5)
    assert numbers["start_bias"] == pytest.approx(-1 - returns[left == 19].mean(), abs=1e-5)
    assert any("agree almost exactly" in warning for warning in trust["warnings"])


def test_quick_episodes_shorter_than_a_window_are_judged_all_the_same(run, tmp_path):
    """A version that succeeds within fewer steps than a window has must not end the run."""
    root = tmp_path / "fresh"
    shutil.copytree(run.round(0) / "fresh", root)
    policy = PolicyBundle.load(run.policy(0))
    tower = Tower(bundle=policy)
    long = replace(CONFIG.window, horizon=30)
    with pytest.raises(ValueError, match="longer than every fragment"):
        EvaluationInputs.of(ExperienceStore.open(root), policy, tower, Cache(root=tmp_path), long, 15.0)
    inputs = stages.fresh_inputs(ExperienceStore.read(root), policy, tower, Cache(root=tmp_path), long, 15.0)
    assert inputs.windows.terminated.all()


def a_frames(episode: list[int], source: list[Source], version: list[int], won: tuple[int, ...] = ()) -> Frames:
    """won: episodes that ended in success."""
    count = len(episode)
    ends = np.append(np.diff(episode) > 0, True)
    starts = np.searchsorted(episode, episode)  # the first row of each row's episode
    return Frames(
        state=np.zeros((count, 1), np.float32),
        action=np.zeros((count, 1), np.float32),
        proposed_action=np.zeros((count, 1), np.float32),
        source=np.array(source, np.int64),
        policy_version=np.array(version, np.int64),
        reward=np.zeros(count, np.float32),
        terminated=np.zeros(count, bool),
        truncated=np.zeros(count, bool),
        success=ends & np.isin(episode, won),
        seed=np.zeros(count, np.int64),
        episode=np.array(episode, np.int64),
        step=np.arange(count) - starts,
        task_index=np.zeros(count, np.int64),
        tasks=["a task"],
    )


def test_takeovers_are_compared_within_the_round_that_the_policy_played():
    policy, human = Source.POLICY, Source.HUMAN
    frames = a_frames(
        episode=[0, 0, 0, 1, 1, 1, 2, 2],
        source=[policy, policy, human, policy, policy, policy, policy, human],
        version=[1, 1, 1, 1, 1, 1, 0, 0],
        won=(1,),
    )
    # Version 1: taken over before step 2 with values -1 and -3 at steps 0 and 1; untouched -1, -1, -1. The human's own
    # value (-9) does not count, nor does version 0. Differences 0 and -2, mean -1; chances 0.5 and 1, mean 0.75.
    value = np.array([-1, -3, -9, -1, -1, -1, -50, -50], np.float32)
    numbers = takeover_numbers(value, frames, version=1)
    assert numbers == {"takeovers_compared": 1, "takeover_value_difference": -1.0, "takeover_auc": 0.75}


def test_a_takeover_is_not_compared_with_episodes_of_another_task():
    frames = a_frames(
        episode=[0, 0, 1, 1],
        source=[Source.POLICY, Source.HUMAN, Source.POLICY, Source.POLICY],
        version=[0] * 4,
        won=(1,),
    )
    value = np.array([-2, -2, -1, -1], np.float32)
    assert takeover_numbers(value, frames, version=0)["takeovers_compared"] == 1
    failed = replace(frames, success=np.zeros(4, bool))  # a failure that nobody saw is nothing to compare with
    assert takeover_numbers(value, failed, version=0)["takeovers_compared"] == 0
    other = replace(frames, task_index=np.array([1, 1, 0, 0]), tasks=["a task", "another"])
    assert takeover_numbers(value, other, version=0)["takeovers_compared"] == 0


def test_credit_looks_at_failed_episodes_whose_failure_is_known():
    frames = a_frames(episode=[0, 0, 0, 1, 1, 2, 2], source=[Source.POLICY] * 7, version=[0] * 7)
    value = np.array([0, 0, -1, 0, -1, 0, -1], np.float32)
    fact = EvaluatedEpisode(seed=0, steps=3, success=False, failure_step=0, disturbed_at=None)
    facts = [fact, replace(fact, success=True, failure_step=None), replace(fact, failure_step=None)]
    # Episode 0 alone: drops at step 1, failed at 0. Chance: 0 or 1, of which 0 is the smallest that half lies at.
    wanted = Credit(episodes=1, distance=1.0, distance_of_chance=0.0)
    assert list(credit_numbers(value, frames, facts).values()) == list(asdict(wanted).values())


def test_a_failure_is_noted_from_progress_or_disturbance_and_a_success_has_none():
    steps, last = 6, np.arange(6) == 5
    lost = Episode(
        task="a task",
        seed=3,
        images={},
        state=np.zeros((steps, 1), np.float32),
        action=np.zeros((steps, 1), np.float32),
        proposed_action=np.zeros((steps, 1), np.float32),
        source=np.full(steps, Source.POLICY, np.int64),
        policy_version=np.zeros(steps, np.int64),
        reward=np.full(steps, -1, np.float32),
        terminated=np.zeros(steps, bool),
        truncated=last,
        success=np.zeros(steps, bool),
    )
    progress = np.array([0, 3, 1, 1, 1, 1], np.float32)
    assert EvaluatedEpisode.of(replace(lost, progress=progress)).failure_step == 2
    assert EvaluatedEpisode.of(replace(lost, progress=progress, disturbed_at=4)).failure_step == 4
    assert EvaluatedEpisode.of(lost).failure_step is None
    won = EvaluatedEpisode.of(replace(lost, success=last, progress=progress, disturbed_at=4))
    assert (won.failure_step, won.disturbed_at, won.success, won.steps) == (None, 4, True, 6)


def test_states_of_two_stores_are_compared_by_the_name_of_their_task():
    here = a_frames(episode=[0, 0], source=[Source.POLICY] * 2, version=[0] * 2)
    here = replace(here, tasks=["open", "close"])
    there = replace(here, task_index=np.array([1, 1]), tasks=["close", "open"])
    assert moments(there, here.tasks, 5).tolist() == moments(here, here.tasks, 5).tolist() == [0, 1]
    assert moments(replace(here, task_index=np.array([1, 1])), here.tasks, 5).tolist() == [5, 6]
