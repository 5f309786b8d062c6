"""A small suite, really played: one start a seed, no cell twice, and a kill in the middle that changes nothing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aloe import cli
from aloe.benchmark import cells, runner, start
from aloe.benchmark.cells import Cell, code_version, play_cell, play_start, rank_cell
from aloe.benchmark.commands import Benchmark
from aloe.benchmark.results import COLUMNS, Results
from aloe.benchmark.runner import Job, duration, run_benchmark
from aloe.benchmark.start import StartConfig
from aloe.benchmark.suites import (
    ABLATION,
    FLAWLESS,
    METHODS,
    NOVICE,
    OTHERWISE,
    SUITES,
    TASKS,
    WRIST,
    Suite,
    find_suite,
    method_config,
)
from aloe.config import PRESETS, RunConfig, with_options
from aloe.experience.mixture import SourceRatios
from aloe.experience.store import ExperienceStore
from aloe.run import RunFolder
from aloe.worlds.metaworld import MetaWorld

TINY = PRESETS["tiny"]
SMALL = Suite(
    name="small",
    config=with_options(TINY, {"world__observations": "state", "eval__episodes": 3, "aloe__best_of": 1}),
    perturbations=(),
)
METHODS_PLAYED, SEEDS = ("sft", "aloe"), (0, 1)


def play(root: Path, methods=METHODS_PLAYED, seeds=SEEDS, suite: Suite = SMALL, jobs=2) -> list[str]:
    """Plays in `root`; what was said."""
    said: list[str] = []
    run_benchmark(suite, methods, seeds, folder=root / "runs", results=root / "results", jobs=jobs, say=said.append)
    return said


def rank(root: Path) -> None:
    run_benchmark(SMALL, ("aloe",), (0,), folder=root / "runs", results=root / "results", jobs=1, rank=True)


def rows(root: Path) -> pd.DataFrame:
    return Results(root / "results", "small").read()


def files(root: Path, *patterns: str) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for pattern in patterns for p in root.glob(pattern) if p.is_file()}


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Path, list[str]]:
    """Everything, in two calls: first one cell. Folder, and what the second call said."""
    root = tmp_path_factory.mktemp("benchmark")
    play(root, methods=("sft",), seeds=(0,))
    start = files(root / "runs" / "small" / "base-0", "**/*")
    said = play(root)
    assert files(root / "runs" / "small" / "base-0", "**/*") == start, "the second call has changed the start"
    return root, said


@pytest.mark.slow
def test_every_cell_has_a_row_for_every_round(played):
    found = rows(played[0])
    assert list(found) == list(COLUMNS)
    expected = [[m, s, r] for m in sorted(METHODS_PLAYED) for s in SEEDS for r in (0, 1, 2)]
    assert found[["method", "seed", "round"]].values.tolist() == expected
    assert set(found["measurement"]) == {"plain"}
    assert found["evaluation_episodes"].tolist() == [3] * 12


@pytest.mark.slow
def test_the_rows_say_what_the_run_folders_say(played):
    root, _ = played
    for row in rows(root).itertuples():
        folder = root / "runs" / "small" / f"{row.method}-{row.seed}"
        entry = json.loads((folder / "summary.json").read_text())["rounds"][row.round]
        for name in ("episodes", "env_steps", "human_steps", "takeovers", "throughput"):
            assert getattr(row, name) == entry[name]
        assert row.successes / row.evaluation_episodes == entry["success"]
        seconds = row.collecting_seconds + row.training_seconds + row.evaluation_seconds
        assert seconds == pytest.approx(sum(entry["seconds"].values()))


@pytest.mark.slow
def test_the_methods_of_a_seed_begin_with_the_same_policy_and_the_same_rollouts(played):
    root, _ = played
    shared = ("rounds/000/pretrained_model/*", "rounds/000/*.safetensors", "experience/data/*/*")
    for seed in SEEDS:
        start = root / "runs" / "small" / f"base-{seed}"
        begin = files(start, *shared)
        assert "rounds/000/pretrained_model/model.safetensors" in begin
        # 2 demonstrations and the 2 episodes of round 1, each a file
        assert sum(name.startswith("experience/data") for name in begin) == 4
        for method in METHODS_PLAYED:
            mine = files(root / "runs" / "small" / f"{method}-{seed}", *shared)
            assert {name: mine[name] for name in begin} == begin
            assert len(mine) == len(begin) + 2  # the episodes of round 2
    cloned = [files(root / "runs" / "small" / f"base-{seed}", "rounds/000/*/model.safetensors") for seed in SEEDS]
    assert cloned[0] != cloned[1]


@pytest.mark.slow
def test_the_methods_of_a_seed_part_after_the_first_rollouts(played):
    root, _ = played
    sft, aloe = (files(root / "runs" / "small" / f"{m}-0", "rounds/001/*/model.safetensors") for m in METHODS_PLAYED)
    assert sft.keys() == aloe.keys()
    assert sft != aloe


@pytest.mark.slow
def test_it_says_after_every_cell_what_is_left(played):
    _, said = played
    assert said[0] == "1 of 4 cells are finished already"
    cells = [line for line in said if re.match(r"small (sft|aloe)-\d: \d+% at round 2, \d+ s; ", line)]
    assert len(cells) == 3
    for left, line in zip((2, 1), cells[:2], strict=True):
        assert re.search(rf"; {left} of 4 cells to play, about \d+ s left$", line)
    assert cells[2].endswith("; nothing left")
    assert [line.split(":")[0] for line in said if line.startswith("small base-")] == ["small base-1"]  # 0 was there


@pytest.mark.slow
def test_a_finished_cell_is_not_played_again_even_without_its_folder(played, tmp_path):
    root, _ = played
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "small.parquet").write_bytes((root / "results" / "small.parquet").read_bytes())
    assert play(tmp_path) == ["4 of 4 cells are finished already"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.slow
def test_a_cell_is_not_played_beside_cells_of_another_start(played, tmp_path):
    shutil.copytree(played[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs" / "small" / "aloe-0")
    other = rows(tmp_path).query("not (method == 'aloe' and seed == 0)")
    other.loc[(other["seed"] == 0) & (other["round"] == 0), "throughput"] += 0.5
    other.to_parquet(tmp_path / "results" / "small.parquet", index=False)
    with pytest.raises(ValueError, match="seed 0 of small: sft and aloe did not begin alike"):
        play_cell(Cell.of(SMALL, "aloe", 0, tmp_path / "runs", tmp_path / "results"), lambda line: None)
    assert not (tmp_path / "runs" / "small" / "aloe-0" / "rounds" / "001" / "critic.done.json").exists()


@pytest.mark.slow
def test_a_finished_run_leaves_no_cache_and_no_partial_file(played):
    left = [p.name for p in (played[0] / "runs").rglob("*") if p.name == "cache" or p.name.endswith(".partial")]
    assert left == []


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_and_ends_with_the_same_rows(played, tmp_path):
    process = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    until = time.monotonic() + 300
    half_way = tmp_path / "runs" / "small" / "aloe-0" / "rounds" / "001" / "critic.done.json"
    while not half_way.exists():  # sft is finished, aloe is in its first round
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished, fitted = rows(tmp_path), half_way.stat().st_mtime_ns
    assert play(tmp_path, seeds=(0,))[0] == "1 of 2 cells are finished already"
    decided = [name for name in COLUMNS if not name.endswith("_seconds") and name != "commit"]
    expected = rows(played[0]).query("seed == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows(tmp_path)[decided], expected[decided])
    kept = rows(tmp_path).merge(finished, how="inner")  # in all columns, the seconds too: not played again
    assert len(kept) == len(finished) == 3
    assert half_way.stat().st_mtime_ns == fitted  # what was done of the other was not done again
    for method in METHODS_PLAYED:
        weights = Path("runs") / "small" / f"{method}-0" / "rounds/002/pretrained_model/model.safetensors"
        assert (tmp_path / weights).read_bytes() == (played[0] / weights).read_bytes()


@pytest.mark.slow
def test_a_finished_cell_is_ranked_once_and_keeps_its_other_rows(played, tmp_path, monkeypatch):
    shutil.copytree(played[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(cells, "RANK_STEPS", 4)
    cell = Cell.of(SMALL, "aloe", 0, tmp_path / "runs", tmp_path / "results")
    before = rows(tmp_path)
    assert not cell.is_ranked
    rank_cell(cell, lambda line: None)
    after = rows(tmp_path)
    assert cell.is_ranked
    pd.testing.assert_frame_equal(after.drop(columns="ranking"), before.drop(columns="ranking"))
    mine = after[(after["method"] == "aloe") & (after["seed"] == 0)]
    said = [json.loads(text) for text in mine["ranking"]]
    assert [(one["version"], one["steps"]) for one in said] == [(0, 4), (1, 4), (2, 4)]
    assert [one["success"] for one in said] == (mine["successes"] / 3).tolist()
    assert after["ranking"].notna().sum() == 3
    said_before: list[str] = []
    rank_cell(cell, said_before.append)
    assert said_before == []


def test_without_names_everything_is_ranked_that_can_be():
    every, ranked = (Benchmark(suite="small", rank=rank).methods_of(SMALL) for rank in (False, True))
    assert set(every) - set(ranked) == {"recap"}
    assert Benchmark(suite="small", rank=True, methods=("recap",)).methods_of(SMALL) == ("recap",)


@pytest.mark.slow
def test_only_what_is_finished_and_still_there_can_be_ranked(played, tmp_path):
    with pytest.raises(ValueError, match="aloe-0 is not finished, so it cannot be ranked"):
        rank(tmp_path)
    shutil.copytree(played[0] / "results", tmp_path / "results")
    with pytest.raises(ValueError, match=r"aloe-0 cannot be ranked, its folder .*aloe-0 is gone"):
        rank(tmp_path)


@pytest.mark.slow
def test_a_run_is_ranked_by_the_benchmark_only_for_its_own_rows(played, tmp_path):
    shutil.copytree(played[0], tmp_path, dirs_exist_ok=True)
    mine = tmp_path / "runs" / "small" / "aloe-0"
    other = rows(tmp_path)
    other.loc[(other["method"] == "aloe") & (other["round"] == 2), "successes"] ^= 1  # 0 <-> 1, 2 <-> 3
    other.to_parquet(tmp_path / "results" / "small.parquet", index=False)
    with pytest.raises(ValueError, match=r"is not the run that is in .*: they differ in what was measured in round 2"):
        rank(tmp_path)
    (mine / "rounds" / "002" / "eval.done.json").unlink()
    with pytest.raises(ValueError, match="they differ in what was measured in round 2"):
        rank(tmp_path)
    config = json.loads((mine / "config.json").read_text())
    config["improve"]["steps"] += 1
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"aloe-0 cannot be ranked, its folder .* was made with another config"):
        rank(tmp_path)


@pytest.mark.slow
def test_the_rows_of_a_round_say_what_its_critics_were_worth(played):
    found = rows(played[0])
    assert found.loc[found["method"] == "sft", "trust"].isna().all()
    summary = json.loads((played[0] / "runs" / "small" / "aloe-1" / "summary.json").read_text())
    for row in found[(found["method"] == "aloe") & (found["seed"] == 1)].itertuples():
        entry = summary["rounds"][row.round]
        if row.round:
            assert json.loads(row.trust) == {"trust": entry["trust"], "warnings": entry["warnings"]}
        else:
            assert row.trust is pd.NA


@pytest.mark.slow
def test_folders_of_another_config_are_refused_before_anything_is_played(played):
    root, _ = played
    longer = dataclasses.replace(SMALL.config, sft=dataclasses.replace(SMALL.config.sft, steps=13))
    with pytest.raises(ValueError, match=r"base-0 was made with another config \(sft.steps: 12, now 13\).*delete that"):
        play(root, suite=dataclasses.replace(SMALL, config=longer))
    wider = dataclasses.replace(SMALL.config, improve=dataclasses.replace(SMALL.config.improve, steps=13))
    with pytest.raises(ValueError, match=r"sft-0 was made with another config \(improve.steps: 12, now 13\)"):
        play(root, suite=dataclasses.replace(SMALL, config=wider))


@pytest.mark.slow
def test_a_start_that_fails_takes_its_cells_along_and_is_named_at_the_end(tmp_path):
    hopeless = dataclasses.replace(SMALL.config.world, task="peg-insert-side-v3", max_steps=1)
    demos = dataclasses.replace(SMALL.config.demos, episodes=1)
    suite = dataclasses.replace(SMALL, config=dataclasses.replace(SMALL.config, world=hopeless, demos=demos))
    with pytest.raises(
        ValueError, match=r"1 of small failed: base-0: the scripted expert succeeded in 0 of .*base-0.log"
    ):
        play(tmp_path, seeds=(0,), suite=suite)
    assert not (tmp_path / "results").exists()


def test_a_cell_that_was_killed_is_named_with_the_signal_and_not_with_its_last_words_alone(tmp_path):
    cell = Cell.of(SMALL, "aloe", 0, tmp_path / "runs", tmp_path / "results")
    job = Job(what="cell", cell=cell)
    cell.folder.mkdir(parents=True)
    job.log.write_text("round 1: improving the policy\n")
    assert job.last_words(2) == "round 1: improving the policy"
    said = "killed by SIGKILL (out of memory? give fewer --jobs) after it said: round 1: improving the policy"
    assert job.last_words(-9) == said
    assert job.last_words(-15) == "killed by SIGTERM after it said: round 1: improving the policy"


def test_a_lost_start_is_made_anew_only_for_cells_that_have_not_begun(tmp_path):
    begun, new = (Cell.of(SMALL, method, 0, tmp_path / "runs", tmp_path / "results") for method in ("sft", "aloe"))
    begun.root.mkdir(parents=True)

    def waiting(*cells: Cell) -> list[str]:
        jobs = [Job(what="cell", cell=cell) for cell in cells]
        return [job.what for job in runner._Play("small", list(cells), jobs, 1, print).waiting]

    assert waiting(begun) == ["cell"]
    assert waiting(begun, new) == ["start", "cell", "cell"]


def test_where_there_is_no_git_rows_name_the_version_of_the_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() == f"aloe-vla {version('aloe-vla')}"


def test_a_start_is_made_once_and_then_left_alone(tmp_path):
    cell = Cell.of(SMALL, "aloe", 0, tmp_path / "runs", tmp_path / "results")
    said: list[str] = []
    run = play_start(cell, said.append)
    assert run.root == tmp_path / "runs" / "small" / "base-0"
    assert said[-1] == "round 1: collecting 2 episodes with the human watching"
    assert run.done(1, "improve") is None
    store = ExperienceStore.open(run.experience).columns()
    assert np.unique(store.policy_version).tolist() == [-1, 0]
    before = files(run.root, "**/*")
    said.clear()
    play_start(dataclasses.replace(cell, method="sft"), said.append)
    assert said == []
    assert files(run.root, "**/*") == before
    assert RunFolder(run.root).done(0, "eval") is not None


def test_a_start_is_cloned_alike_whatever_the_shares_of_a_batch_of_the_method_that_makes_it(tmp_path, monkeypatch):
    used, real = [], start.open_circle

    def noted(config, *rest, **more):
        used.append(config)
        return real(config, *rest, **more)

    monkeypatch.setattr(start, "open_circle", noted)
    play_start(Cell.of(SMALL, "aloe-half-corrections", 0, tmp_path / "runs", tmp_path / "results"), lambda line: None)
    assert {config.sources for config in used} == {SourceRatios()}


@pytest.mark.slow
def test_the_first_and_the_last_policy_are_measured_under_perturbations_on_as_many_episodes(tmp_path):
    config = dataclasses.replace(SMALL.config, rounds=2)
    suite = dataclasses.replace(SMALL, config=config, perturbations=("disturbance", "unseen"))
    play_cell(Cell.of(suite, "sft", 0, tmp_path / "runs", tmp_path / "results"), lambda line: None)
    found = rows(tmp_path)
    assert found[["round", "measurement"]].values.tolist() == [
        *([0, "disturbance"], [0, "plain"], [0, "unseen"]),
        [1, "plain"],
        *([2, "disturbance"], [2, "plain"], [2, "unseen"]),
    ]
    assert set(found["evaluation_episodes"]) == {3}
    perturbed = found[found["measurement"] != "plain"]
    assert (perturbed["evaluation_seconds"] > 0).all()
    assert (perturbed[["collecting_seconds", "training_seconds"]] == 0).all(axis=None)
    made = RunFolder(tmp_path / "runs" / "small" / "base-0")
    assert made.done(0, "eval-unseen") == RunFolder(tmp_path / "runs" / "small" / "sft-0").done(0, "eval-unseen")


def test_a_variant_that_changes_the_common_start_is_refused(tmp_path, monkeypatch):
    def shorter(config):
        return dataclasses.replace(config, sft=dataclasses.replace(config.sft, steps=1))

    monkeypatch.setitem(METHODS, "shorter", shorter)
    with pytest.raises(ValueError, match="shorter and sft differ in options that shape the common start"):
        play(tmp_path, methods=("sft", "shorter"))


def test_a_method_changes_its_own_options_alone():
    config = method_config(SMALL, "aloe-in-sample", 7)
    assert (config.seed, config.method, config.fit.bootstrap) == (7, "aloe", "in-sample")
    fit = dataclasses.replace(SMALL.config.fit, bootstrap="in-sample")
    assert config == dataclasses.replace(SMALL.config, seed=7, method="aloe", fit=fit)


def test_every_method_shares_the_start_of_the_others():
    assert len({StartConfig.of(method_config(SMALL, method, 0)) for method in METHODS}) == 1


@pytest.mark.slow
def test_where_critics_choose_while_collecting_the_last_policy_is_measured_with_their_choice_as_well(tmp_path):
    suite = dataclasses.replace(SMALL, config=with_options(SMALL.config, {"aloe__best_of": 2}))
    play_cell(Cell.of(suite, "aloe", 0, tmp_path / "runs", tmp_path / "results"), lambda line: None)
    last = rows(tmp_path).query("round == round.max()")
    assert last["measurement"].tolist() == ["choice", "plain"]
    run = RunFolder(tmp_path / "runs" / "small" / "aloe-0")
    assert last["successes"].tolist() == [
        round(3 * run.done(SMALL.config.rounds, stage)["success"]) for stage in ("eval-choice", "eval")
    ]


def test_the_hash_of_a_cell_follows_every_option_but_the_seed_and_the_perturbations(tmp_path):
    def hash_of(method: str = "aloe", seed: int = 0, suite: Suite = SMALL) -> str:
        return Cell.of(suite, method, seed, tmp_path, tmp_path).config_hash

    longer = dataclasses.replace(SMALL, config=dataclasses.replace(SMALL.config, rounds=3))
    perturbed = dataclasses.replace(SMALL, perturbations=("unseen",))
    hashes = [hash_of(), hash_of("sft"), hash_of(suite=longer), hash_of(suite=perturbed)]
    assert len(set(hashes)) == 4
    assert hash_of(seed=1) == hashes[0]  # seeds of one hash may be averaged


def test_a_cell_stays_finished_when_options_change_that_its_method_does_not_read(tmp_path):
    def hashes(config: RunConfig) -> dict[str, str]:
        suite = dataclasses.replace(SMALL, config=config)
        return {method: Cell.of(suite, method, 0, tmp_path, tmp_path).config_hash for method in METHODS}

    before, changed = hashes(SMALL.config), with_options(SMALL.config, {"aloe__clip": 2.0})
    differ = {method for method, after in hashes(changed).items() if after != before[method]}
    assert differ == {method for method in METHODS if method.startswith("aloe")}
    changed = with_options(SMALL.config, {"fit__steps": 3})
    differ = {method for method, after in hashes(changed).items() if after != before[method]}
    assert differ == set(METHODS) - {"sft", "dagger", "filtered", "filtered-half-corrections"}
    changed = with_options(SMALL.config, {"improve__steps": 3})
    assert all(after != before[method] for method, after in hashes(changed).items())


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        (("bc",), (0,), "unknown method 'bc'; small has sft, dagger"),
        (("sft",), (-1,), "seeds of small are 0 to 99, not -1"),
        ((), (0,), "name at least one method and one seed"),
        (("sft",), (), "name at least one method and one seed"),
        (("sft", "sft"), (0,), "named twice"),
        (("sft",), (1, 1), "named twice"),
    ],
)
def test_what_cannot_be_played_is_said_at_once(tmp_path, methods, seeds, message):
    with pytest.raises(ValueError, match=message):
        play(tmp_path, methods, seeds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark", "precison-state"], "unknown suite 'precison-state'; did you mean precision-state?"),
        (["benchmark-report"], "no results of methods in results; play a suite first: aloe benchmark precision-state"),
        (["benchmark-report", "precision", "--page", "page.md"], "there is no results/precision.parquet"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").touch()
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.touch()
    monkeypatch.setattr(sys, "argv", ["aloe", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_task_is_a_suite_with_pictures_and_one_with_state():
    tasks = [f"{task}{kind}" for task in TASKS for kind in ("", "-state", *OTHERWISE)]
    assert sorted(SUITES) == sorted([*tasks, FLAWLESS, NOVICE, WRIST, ABLATION])
    for task in TASKS:
        pictures, state = find_suite(task), find_suite(f"{task}-state")
        assert (pictures.name, state.name) == (task, f"{task}-state")
        assert (pictures.config.world.observations, state.config.world.observations) == ("pictures", "state")
        for name in ("collect", "human", "fit", "aloe", "eval", "policy"):
            assert getattr(pictures.config, name) == getattr(state.config, name), name
        twice = dataclasses.replace(state.config.improve, steps=2 * state.config.improve.steps)
        assert pictures.config.improve == twice
        assert dataclasses.replace(pictures.config.world, observations="state") == state.config.world
        assert pictures.config.demos.episodes > state.config.demos.episodes


def test_words_alone_tell_the_tasks_that_share_a_scene_in_instructions():
    world = MetaWorld(find_suite("instructions-state").config.world)
    starts = [[world.reset(seed=s, options={"task": i})[0]["observation.state"] for s in range(3)] for i in range(4)]
    reach, place, reach_behind, place_behind = np.array(starts)
    np.testing.assert_array_equal(reach, place)
    np.testing.assert_allclose(reach_behind, place_behind, atol=1e-4)  # a puck lies 0.01 mm lower
    assert (reach != reach_behind).any(), "another scene"
    world.close()


@pytest.mark.parametrize(("name", "human"), [(FLAWLESS, (None, 0, 0)), (NOVICE, (10, 0.2, 0.3))])
def test_a_suite_under_another_human_differs_from_precision_in_the_human_alone(name, human):
    watched, precision = find_suite(name).config, find_suite("precision-state").config
    assert (watched.human.takeovers, watched.human.action_noise, watched.human.miss_probability) == human
    assert dataclasses.replace(watched, human=precision.human) == precision


def test_a_reactive_suite_differs_from_its_task_in_the_executed_actions_alone():
    for task in TASKS:
        reactive, usual = find_suite(f"{task}-reactive-state"), find_suite(f"{task}-state")
        assert usual.config.policy.execute == 2
        assert reactive.config.policy == dataclasses.replace(usual.config.policy, execute=1)
        assert dataclasses.replace(reactive.config, policy=usual.config.policy) == usual.config
        assert dataclasses.replace(reactive, name=usual.name, config=usual.config) == usual


def test_a_long_suite_differs_from_its_task_in_the_rounds_alone():
    for task in TASKS:
        long, usual = find_suite(f"{task}-long-state"), find_suite(f"{task}-state")
        assert (long.config.rounds, usual.config.rounds) == (10, 5)
        assert dataclasses.replace(long, name=usual.name, config=usual.config) == usual
        assert dataclasses.replace(long.config, rounds=5) == usual.config


def test_a_suite_of_few_takeovers_differs_from_its_task_in_the_humans_attention_alone():
    for task in TASKS:
        few, usual = find_suite(f"{task}-few-takeovers-state"), find_suite(f"{task}-state")
        assert (few.config.human.takeovers, usual.config.human.takeovers) == (5, 10)
        human = dataclasses.replace(few.config.human, takeovers=10)
        assert dataclasses.replace(few.config, human=human) == usual.config
        assert dataclasses.replace(few, name=usual.name, config=usual.config) == usual


def test_the_suite_with_a_camera_in_the_hand_differs_from_precision_in_cameras_and_demonstrations_alone():
    wrist, usual = find_suite(WRIST), find_suite("precision")
    assert wrist.config.world.cameras == ("topview", "gripperPOV")
    assert 2 * wrist.config.demos.episodes == usual.config.demos.episodes
    config = dataclasses.replace(wrist.config, world=usual.config.world, demos=usual.config.demos)
    assert dataclasses.replace(config.world, cameras=wrist.config.world.cameras) == wrist.config.world
    assert dataclasses.replace(wrist, name=usual.name, config=config) == usual


def test_a_short_suite_differs_from_its_task_in_the_length_of_chunks_alone():
    for task in TASKS:
        short, usual = find_suite(f"{task}-short-state"), find_suite(f"{task}-state")
        window = short.config.window
        assert (window.horizon, short.config.policy.execute) == (4, 2)
        assert window.chunk_discount**2 == pytest.approx(usual.config.window.chunk_discount)  # of 8 steps
        assert dataclasses.replace(short.config, window=usual.config.window) == usual.config
        assert dataclasses.replace(short, name=usual.name, config=usual.config) == usual


def test_an_unknown_suite_is_named():
    with pytest.raises(ValueError, match="unknown suite 'speed'; there are precision-state"):
        find_suite("speed")


def test_durations_are_written_as_people_say_them():
    assert [duration(s) for s in (0.4, 42, 720, 11_100)] == ["0 s", "42 s", "12 min", "3:05 h"]


if __name__ == "__main__":
    play(Path(sys.argv[1]), seeds=(0,), jobs=1)
