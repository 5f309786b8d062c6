"""What a report reads from a run folder: of finished runs, of such under way, and of such whose data are gone."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rerun import recording

from aloe import cli
from aloe.experience.store import ExperienceStore
from aloe.report import rerun_file
from aloe.report.compare import differences
from aloe.report.episodes import Trace, choose, traces
from aloe.report.folder import RunSoFar
from aloe.report.health import CHECKS, by_source, shown, verdict_of
from aloe.report.page import make_page
from aloe.types import Source


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        aloe(*arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def data_of(run: Path, episodes: int = 30) -> dict:
    page = make_page([RunSoFar.read(run)], episodes).html
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def trace(
    value: list[float], came: list[float] | None = None, kind: str = "learnt from", human: int | None = None
) -> Trace:
    """human: from which step on a human acts."""
    steps = np.arange(len(value))
    return Trace(
        title="",
        task="",
        kind=kind,  # pyright: ignore
        critic=1,
        round=1,
        version=0,
        outcome="failure",
        source=np.where(steps >= (len(value) if human is None else human), Source.HUMAN, Source.POLICY),
        lines={"value": np.array(value), "return": np.array(value if came is None else came)},
        fps=10,
        pictures=None,
    )


# -- one episode ------------------------------------------------------------------------------------------------------


def test_the_largest_drop_the_disagreement_and_the_takeover_of_an_episode() -> None:
    one = trace([-1.0, -0.5, -1.3, -1.0], came=[-2.0, -2.0, -1.0, np.nan], human=2)
    assert one.drop == (1, pytest.approx(0.8))  # from -0.5 to -1.3
    assert one.disagreement == pytest.approx((1.0 + 1.5 - 0.3) / 3)  # what did not end says nothing
    assert one.takeovers == [2]


def test_of_many_episodes_half_are_such_as_the_critic_has_not_learnt_from() -> None:
    learnt = [trace([-1.0, -1.0 - i / 100]) for i in range(20)]
    fresh = [trace([-1.0, -1.0 - i / 100], kind="fresh") for i in range(20)]
    kinds = [one.kind for one in choose([*learnt, *fresh], 10)]
    assert kinds == ["learnt from"] * 5 + ["fresh"] * 5
    assert len(choose([*learnt, *fresh[:2]], 10)) == 10
    assert len(choose([*learnt[:3], *fresh], 10)) == 10
    assert choose(learnt, 20) == learnt


def test_the_largest_drop_disagreement_takeover_agreement_and_the_newest_get_a_place() -> None:
    plain = [trace([-1.0, -1.0], came=[-1.5, -1.5]) for _ in range(10)]
    drop = trace([0.0, -2.0], came=[-0.5, -2.5])
    wrong = trace([0.0, 0.0], came=[-3.0, -3.0])
    taken = trace([-1.0, -1.0], came=[-1.5, -1.5], human=1)
    right = trace([-1.0, -1.0])
    newest = trace([-1.0, -1.0], came=[-1.5, -1.5])
    everything = [right, *plain[:5], taken, wrong, *plain[5:], drop, newest]
    assert choose(everything, 5) == [right, taken, wrong, drop, newest]


# -- a critic ---------------------------------------------------------------------------------------------------------


def test_the_verdict_counts_what_warns_and_says_nothing_of_few_episodes() -> None:
    numbers = {"episodes": 20, "value_rank_correlation": 0.8, "value_bias": 0.1, "above_best_at_step": 0.1}
    assert verdict_of(numbers, {}) == (
        "nothing warns",
        "Its values follow what happened on 20 episodes that it has not learnt from, and none of 3 checks warns.",
    )
    assert verdict_of(numbers, {"value_bias": "."})[0] == "with caution"
    assert verdict_of(numbers, {"value_bias": ".", "above_best_at_step": "."})[0] == "do not trust"  # 2 of 3
    assert verdict_of(numbers, {"value_rank_correlation": "."})[0] == "do not trust"
    assert verdict_of(numbers | {"episodes": 9}, {})[0] == "too little to tell"


def test_a_number_is_a_part_of_the_range_where_there_is_one() -> None:
    level = CHECKS[1]
    assert shown(-0.5, level, 2.0) == "−0.50 (25.0%)"
    assert [shown(-0.5, level, nothing) for nothing in (0.0, float("nan"))] == ["−0.50", "−0.50"]


def test_histograms_share_their_edges_and_leave_out_what_has_no_weight() -> None:
    table = pd.DataFrame({"source": [0, 0, 1, 1, 1], "weight": [1.0, 3.0, 0.0, 2.0, 2.0]})
    histogram = by_source(table, "weight")
    assert set(histogram["shares"]) == {"demo", "policy"}
    for share in histogram["shares"].values():
        assert sum(share) == pytest.approx(1, abs=1e-3)
        assert len(share) == len(histogram["edges"]) - 1
    assert max(histogram["shares"]["policy"]) == 1  # both of its windows weigh the same


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_page_asks_for_nothing_from_elsewhere_and_says_what_the_run_says(finished: Path) -> None:
    page = make_page([RunSoFar.read(finished)], 30).html
    assert not re.search(r"""(src|href)=["']?(?!data:)[^"' >]""", page)
    assert "@import" not in page
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "{{" not in page
    (run,) = data_of(finished)["runs"]
    summary = json.loads((finished / "summary.json").read_text())
    for row, expected in zip(run["rounds"], summary["rounds"], strict=True):
        assert {key: row[key] for key in ("episodes", "takeovers", "success", "success_low")} == {
            key: expected[key] for key in ("episodes", "takeovers", "success", "success_low")
        }
    assert run["unfinished"] is None
    warned = [check["warning"] for check in run["health"][0]["checks"] if check["warning"]]
    assert sorted(warned) == sorted(summary["rounds"][1]["warnings"])


def test_every_episode_has_the_values_that_the_run_wrote(finished: Path) -> None:
    found, missing = traces(RunSoFar.read(finished))
    assert missing is None
    assert [one.kind for one in found] == ["learnt from"] * 5 + ["fresh"] * 2
    assert [one.round for one in found] == [0, 0, 1, 1, 1, 0, 0]
    table = pd.read_parquet(finished / "rounds/001/advantages.parquet")
    frames = ExperienceStore.read(finished / "experience").columns()
    for episode in range(5):
        rows = table[table["episode"] == episode]
        assert found[episode].lines["value"].tolist() == rows["value"].tolist()
        spread = np.abs(rows["q_0"] - rows["q_1"]) / 2  # the standard deviation of two
        np.testing.assert_allclose(found[episode].lines["spread"], spread, atol=1e-6)
        assert found[episode].outcome != "success" or frames.success[frames.episode == episode][-1]
    fresh = pd.read_parquet(finished / "rounds/001/fresh_values.parquet")
    assert found[6].lines["value"].tolist() == fresh[fresh["episode"] == 1]["value"].tolist()
    facts = json.loads((finished / "rounds/000/fresh.json").read_text())
    assert [one.failure_step for one in found[5:]] == [fact["failure_step"] for fact in facts[:2]]


def test_fewer_episodes_on_request(finished: Path) -> None:
    data = data_of(finished, episodes=4)
    assert (len(data["episodes"]), data["of"]) == (4, 7)
    assert data_of(finished, episodes=0)["episodes"] == []


def test_a_report_changes_nothing_but_its_file(finished: Path, copy_of) -> None:
    run = copy_of(finished)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    aloe("report", run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.pop(run / "report.html").startswith(b"<!doctype html>")
    assert after == before


def test_a_run_under_way_has_a_page_that_says_so(finished: Path, copy_of) -> None:
    run = copy_of(finished)
    for name in ("eval", "improve", "trust"):
        (run / f"rounds/001/{name}.done.json").unlink()
    (run / "rounds/001/trust.json").unlink()
    (run / "rounds/001/fresh_values.parquet").unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary["rounds"].pop()
    (run / "summary.json").write_text(json.dumps(summary))
    data = data_of(run)
    (shown,) = data["runs"]
    assert shown["unfinished"].startswith("This run is not finished: 1 of 2 rounds are complete")
    assert "Round 1 is under way; done so far: collect, sample, critic, advantages." in shown["unfinished"]
    assert [row["success"] is None for row in shown["rounds"]] == [False, True]
    assert shown["health"][0]["verdict"] == "not judged"
    assert len(data["episodes"]) == 5


def test_a_run_that_has_just_begun_has_a_page_too(finished: Path, copy_of) -> None:
    run = copy_of(finished)
    shutil.rmtree(run / "rounds")
    (run / "summary.json").unlink()
    data = data_of(run)
    assert data["runs"][0]["unfinished"] == (
        "This run is not finished: 0 of 2 rounds are complete, the first policy included."
    )
    assert {one["kind"] for one in data["episodes"]} == {"not judged"}


def test_episodes_recorded_since_the_last_critic_are_not_judged(finished: Path, copy_of) -> None:
    run = copy_of(finished)
    table = pd.read_parquet(run / "rounds/001/advantages.parquet")
    table[table["episode"] < 4].to_parquet(run / "rounds/001/advantages.parquet")
    last = data_of(run)["episodes"][4]
    assert (last["kind"], last["lines"], last["drop"]) == ("not judged", {}, None)


def test_values_are_never_shown_over_the_steps_of_other_episodes(finished: Path, copy_of) -> None:
    run = copy_of(finished)
    table = pd.read_parquet(run / "rounds/001/advantages.parquet")
    moved = table[table["episode"] > 0].assign(episode=table["episode"] - 1)  # as if the first had come since
    moved.to_parquet(run / "rounds/001/advantages.parquet")
    found, missing = traces(RunSoFar.read(run))
    assert "has changed since the critic of round 1 judged it" in (missing or "")
    assert [(one.pictures is None, one.outcome) for one in found[:4]] == [(True, "unknown")] * 4
    assert len(found[0]) == (moved["episode"] == 0).sum()


def test_what_differs_between_two_runs_but_not_seeds_and_what_one_does_not_read(finished: Path, copy_of) -> None:
    runs = [RunSoFar.read(copy_of(finished, name)) for name in ("first", "second", "third")]
    runs[1].config["seed"] = 7
    runs[1].config["workers"] = 9
    runs[1].config["fit"]["learning_rate"] = 1e-4
    runs[2].config["method"] = "dagger"  # which reads neither fit nor aloe
    runs[2].config["fit"]["steps"] = 99
    assert differences(runs) == [
        {"option": "method", "values": ["aloe", "aloe", "dagger"]},
        {"option": "fit.learning-rate", "values": [5e-4, 1e-4, None]},
    ]


def test_what_two_runs_started_from_and_learnt_from_besides_are_differences(finished: Path) -> None:
    runs = [RunSoFar.read(finished) for _ in range(3)]
    for run, place in zip(runs[1:], ("/here", "/there"), strict=True):  # the same on two machines
        run.config["policy"]["path"] = f"{place}/base"
        run.config["experience"]["old"] = {"root": f"{place}/last-year", "ratio": None}
    assert differences(runs[1:]) == []
    assert differences(runs) == [
        {"option": "policy.path", "values": [None, "base", "base"]},
        {"option": "experience.old.root", "values": [None, "last-year", "last-year"]},
    ]


# -- the command ------------------------------------------------------------------------------------------------------


def test_text_prints_the_tables_and_writes_nothing(finished: Path, copy_of, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(finished)
    aloe("report", run, "--text")
    said = capsys.readouterr().out
    assert "aloe on reach-v3, seed 0" in said
    assert "too little" in said
    assert not (run / "report.html").exists()


def test_brackets_in_names_are_no_markup(finished: Path, copy_of, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(finished, "[red]x")
    config = json.loads((run / "config.json").read_text())
    config["world"]["task"] = "[/a]task"
    (run / "config.json").write_text(json.dumps(config))
    aloe("report", run, "--text", "--png", run / "curve.png")
    said = capsys.readouterr().out
    for words in ("aloe on [/a]task", "the critics of [red]x", "[red]x/curve.png"):
        assert words in said.replace("\n", "")


def test_bad_input_is_one_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run: it has no config.json" in refused(capsys, "report", tmp_path)
    assert "name at least one run folder" in refused(capsys, "report")
    assert "--output curve.png should end in .html" in refused(capsys, "report", finished, "--output", "curve.png")
    assert "--png a.pdf should end in .png" in refused(capsys, "report", finished, "--png", "a.pdf")
    assert "--rerun is about the episodes of one run" in refused(
        capsys, "report", finished, finished, "--rerun", tmp_path / "a.rrd"
    )


def test_rerun_gets_the_same_videos_and_lines(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.rrd"
    rerun_file.write_rerun(RunSoFar.read(finished), path, episodes=4)
    chunks = recording.load_recording(path).schema().component_columns()
    paths = {column.entity_path for column in chunks}
    for name in ("value/value", "value/return", "advantage/advantage", "spread/spread", "weight/weight"):
        assert f"/episodes/00/{name}" in paths
    assert "/episodes/03/video" in paths
    assert "/run/success/success" in paths


def test_without_rerun_the_remedy_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    said = refused(capsys, "report", finished, "--rerun", tmp_path / "run.rrd")
    assert "pip install 'aloe-vla[rerun]'" in said
