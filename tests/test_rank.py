"""`aloe rank` on a tiny run, and what it is made of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aloe import stages
from aloe.config import PRESETS, RunConfig
from aloe.experience.mixture import RootConfig
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows
from aloe.loop import run_circle
from aloe.rank import discounted_return, measures, open_run, rank_run, settings
from aloe.run import RunFolder, from_plain, to_plain
from aloe.stages import EvaluatedEpisode, PolicyConfig

CONFIG = replace(PRESETS["tiny"], rounds=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return run_circle(CONFIG, tmp_path_factory.mktemp("rank") / "run", say=lambda _: None)


def test_every_version_is_predicted_by_every_estimator_and_compared(run):
    content = rank_run(run.root, 4, ("aloe", "monte-carlo", "fqe"), say=lambda _: None)
    assert content == json.loads((run.root / "ranking.json").read_text())
    summary = json.loads((run.root / "summary.json").read_text())
    assert summary["ranking"] == content["estimators"]
    assert len(summary["rounds"]) == 2, "the rounds are still there"
    assert [row["version"] for row in content["versions"]] == [0, 1]
    for row in content["versions"]:
        assert row["success"] == (run.done(row["version"], "eval") or {})["success"]
        assert len({row["aloe"], row["monte-carlo"], row["fqe"]}) == 3
    first, second = content["versions"]
    assert first["aloe"] != second["aloe"]  # the same start states and batches, under another policy
    assert set(content["estimators"]["fqe"]["return"]) == {"spearman", "regret@1", "regret@3"}
    assert content["estimators"]["fqe"]["return"]["regret@3"] is None  # of two versions


def test_what_was_predicted_before_is_not_predicted_again_and_an_interrupted_ranking_gives_the_same(run):
    said = []
    first = rank_run(run.root, 4, ("aloe",), say=said.append)
    answers = sorted((run.cache / "ranking").rglob("aloe-*.json"))
    times = [path.stat().st_mtime_ns for path in answers]
    assert rank_run(run.root, 4, ("aloe",), say=said.append) == first
    assert [path.stat().st_mtime_ns for path in answers] == times
    answers[-1].unlink()  # as if it had been killed before the last
    assert rank_run(run.root, 4, ("aloe",), say=said.append) == first
    assert rank_run(run.root, 5, ("aloe",), say=said.append)["versions"] != first["versions"]


def test_chunks_are_drawn_once_a_version_in_batches_as_large_as_the_run_allows(run, tmp_path, monkeypatch):
    root = shutil.copytree(run.root, tmp_path / "run", ignore=shutil.ignore_patterns("ranking*"))
    config = json.loads((root / "config.json").read_text())
    config["fit"]["sample_batch"] = 3
    (root / "config.json").write_text(json.dumps(config))
    drawn, real = [], stages.sample_stage

    def counting(inputs, samples, key, out, batch_size):
        drawn.append((out.name[:5], batch_size))
        real(inputs, samples, key, out, batch_size)

    monkeypatch.setattr(stages, "sample_stage", counting)
    rank_run(root, 1, ("aloe", "monte-carlo"), say=lambda _: None)
    assert sorted(drawn) == [("sampl", 3)] * 2 + [("start", 3)] * 2  # of two versions


def test_return_of_an_episode_is_what_the_windows_give_its_first_step(run):
    store = ExperienceStore.open(run.round(0) / "fresh")
    facts = EvaluatedEpisode.read(run.round(0) / "fresh.json")[:2]
    frames = store.columns()
    windows = make_windows(frames, CONFIG.window, 15.0)
    wanted = windows.monte_carlo[frames.step == 0]
    got = [discounted_return(fact, CONFIG.window, 15.0) for fact in facts]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_return_of_a_success_and_of_a_failure_of_three_steps():
    # Discount 0.5, C = 2, penalty 3: success -0.5 - 0.25 + 0; failure -0.5 - 0.25 - 0.25 * 3
    window = WindowConfig(horizon=2, chunk_discount=0.25, failure_penalty=3.0)
    won = EvaluatedEpisode(seed=0, steps=3, success=True, failure_step=None, disturbed_at=None)
    assert discounted_return(won, window, 2.0) == -0.75
    assert discounted_return(replace(won, success=False), window, 2.0) == -1.5


def test_measures_against_return_and_success():
    # Ranks of the prediction 3 1 2 4: of the return 3 1 2 4 (Spearman 1); success is best in versions 0 and 3
    rows = [
        {"version": 0, "success": 0.9, "return": -0.5, "aloe": -0.6},
        {"version": 1, "success": 0.1, "return": -2.0, "aloe": -1.9},
        {"version": 2, "success": 0.5, "return": -1.0, "aloe": -0.8},
        {"version": 3, "success": 0.7, "return": -0.4, "aloe": -0.5},
    ]
    result = measures(rows, "aloe")
    assert result["return"] == {"spearman": pytest.approx(1.0), "regret@1": 0.0, "regret@3": 0.0}
    # success ranks 4 1 2 3: 1 - 6 * 2 / (4 * 15) = 0.8; version 3 lacks 0.2 of 0.8; the top 3 hold version 0
    assert result["success"] == {
        "spearman": pytest.approx(0.8),
        "regret@1": pytest.approx(0.25),
        "regret@3": 0.0,
    }


def test_fitted_q_evaluation_has_one_action_a_chunk_and_the_discount_of_a_step():
    window, fit = settings(CONFIG, "fqe", 7)
    assert (window.horizon, fit.bootstrap, fit.steps) == (1, "policy", 7)
    assert window.discount == pytest.approx(CONFIG.window.discount)
    assert settings(CONFIG, "monte-carlo", 7)[1].bootstrap == "monte-carlo"
    assert settings(CONFIG, "aloe", 7) == (CONFIG.window, replace(CONFIG.fit, steps=7))


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_comes_back_from_json_as_it_was(name):
    roots, rename = (
        {"demos": RootConfig(root=Path("somewhere/demos"))},
        {"observation.images.top": "observation.images.front"},
    )
    policy = PolicyConfig(path=Path("somewhere/pretrained_model"))
    config = replace(PRESETS[name], policy=policy, offline=True, experience=roots, rename=rename)
    assert from_plain(RunConfig, to_plain(config)) == config


def test_a_config_of_another_version_is_refused():
    with pytest.raises(ValueError, match="does not know: colour"):
        from_plain(RunConfig, to_plain(CONFIG) | {"colour": "red"})


def test_what_cannot_be_ranked_says_why(run, tmp_path):
    with pytest.raises(ValueError, match="is no run"):
        open_run(tmp_path)
    shutil.copytree(run.root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "rounds" / "000" / "fresh")
    with pytest.raises(ValueError, match="kept no start states"):
        open_run(tmp_path / "run")
    (tmp_path / "run" / "rounds" / "001" / "eval.done.json").unlink()
    with pytest.raises(ValueError, match="measured 1 policy versions"):
        open_run(tmp_path / "run")
