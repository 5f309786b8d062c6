"""Every command alone, on what the one before it has left; and the folder that `aloe run` leaves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aloe import cli
from aloe.experience.lock import LOCK_FILE
from aloe.experience.store import ExperienceStore
from aloe.policies.bundle import PolicyBundle
from aloe.run import RunFolder, write_json
from aloe.types import Source

WORLD = [
    "--world.task",
    "reach-v3",
    "--world.image-size",
    "32",
    "--world.max-steps",
    "20",
    "--world.action-repeat",
    "4",
]
SMALL = ["--policy.vision-width", "8", "--policy.keypoints", "4", "--policy.width", "32", "--policy.depth", "1"]
BRIEF = ["--steps", "6", "--batch-size", "8", "--window.horizon", "4"]
CRITIC = ["--critic.critics", "2", "--critic.width", "16", "--critic.layers", "1", "--critic.heads", "2"]


TABLES = ("advantages.parquet", "fresh_values.parquet")


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of writing of every file, but the locks: who wrote last."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != LOCK_FILE]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> tuple[Path, dict[str, list[object]]]:
    """One round, command by command. Folder, and what was typed."""
    root = tmp_path_factory.mktemp("by_hand")
    store, cloned = root / "store", root / "sft" / "pretrained_model"
    source = ["--policy.path", cloned, "--dataset.root", store]
    advantages = ["--advantages", root / "critic" / "advantages.parquet"]
    commands = {
        "demos": ["demos", "--output-dir", store, "--episodes", 2, "--workers", 1, *WORLD],
        "sft": ["sft", "--dataset.root", store, "--output-dir", root / "sft", *BRIEF, *SMALL],
        "collect": ["collect", *source, "--episodes", 2, "--workers", 1, "--human.time-fraction", 0.5, *WORLD],
        "critic": ["critic", *source, "--output-dir", root / "critic", *BRIEF, *CRITIC, "--aloe.samples", 2],
        "improve": ["improve", *source, *advantages, "--output-dir", root / "improved", *BRIEF[:4]],
        "eval": [
            *["eval", "--policy.path", root / "improved" / "pretrained_model", "--episodes", 2, "--workers", 1],
            *["--output", root / "success.json", *WORLD],
        ],
    }
    for command in commands.values():
        aloe(*command)
    return root, commands


def test_demos_and_collect_fill_one_store(by_hand):
    root, _ = by_hand
    frames = ExperienceStore.open(root / "store").columns()
    demo = frames.source == Source.DEMO
    assert list(np.unique(frames.episode[demo])) == [0, 1]
    assert list(np.unique(frames.episode[~demo])) == [2, 3]
    assert frames.success[demo].sum() == 2
    assert set(frames.policy_version[~demo]) == {0}


@pytest.mark.slow
def test_a_run_records_into_the_store_of_the_other_commands(by_hand, tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    shutil.copytree(by_hand[0] / "store", store)
    before = ExperienceStore.read(store).num_episodes
    command = ["run", "--preset", "tiny", "--rounds", 1, "--seed", 5, "--output-dir", run]
    aloe(*command, "--dataset.root", store)
    # 2 demonstrations were there, as many as the preset wants; a round has 2 episodes
    assert ExperienceStore.read(store).num_episodes == before + 2
    assert RunFolder(run).experience == store.resolve()
    assert json.loads((run / "summary.json").read_text())["rounds"][1]["episodes"] == before + 2
    aloe("collect", *by_hand[1]["collect"][1:3], "--dataset.root", store, "--episodes", 1, "--seed", 6, *WORLD)
    assert ExperienceStore.read(store).num_episodes == before + 3
    with pytest.raises(SystemExit):
        aloe(*command, "--dataset.root", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    aloe(*command)  # done, whatever has been recorded since


@pytest.mark.slow
def test_a_run_whose_scenes_the_store_holds_already_is_refused_before_it_clones(by_hand, tmp_path, capsys):
    """`aloe collect` and `aloe run` have the same seed and first round unless they are told otherwise."""
    store = by_hand[0] / "store"
    with pytest.raises(SystemExit):
        aloe("run", "--preset", "tiny", "--rounds", 1, "--output-dir", tmp_path / "run", "--dataset.root", store)
    assert "holds scenes of round 1 and seed 0 already" in capsys.readouterr().err
    assert not (tmp_path / "run" / "rounds" / "000" / "demos.done.json").exists()


def test_sft_and_improve_leave_different_policies_that_load(by_hand):
    root, _ = by_hand
    cloned, improved = (PolicyBundle.load(root / name / "pretrained_model").policy for name in ("sft", "improved"))
    assert cloned.config.chunk_size == 4
    assert not all((improved.state_dict()[name] == value).all() for name, value in cloned.state_dict().items())


def test_critic_writes_a_row_with_a_weight_for_every_step_of_the_store(by_hand):
    root, _ = by_hand
    frames = ExperienceStore.open(root / "store").columns()
    table = pd.read_parquet(root / "critic" / "advantages.parquet")
    assert table["episode"].tolist() == frames.episode.tolist()
    assert table["step"].tolist() == frames.step.tolist()
    assert (table["weight"] >= 0).all()
    # A = min over the critics of Q, minus V
    np.testing.assert_allclose(table["advantage"], table[["q_0", "q_1"]].min(axis=1) - table["value"], atol=1e-6)


def test_eval_writes_success_with_its_interval(by_hand):
    root, _ = by_hand
    report = json.loads((root / "success.json").read_text())
    assert report["episodes"] == 2
    assert report["success"] == report["successes"] / 2
    assert 0 <= report["low"] <= report["success"] <= report["high"] <= 1


@pytest.mark.parametrize("name", ["demos", "sft", "collect", "critic", "improve"])
def test_a_command_that_is_done_changes_nothing_when_given_again(by_hand, name, capsys):
    root, commands = by_hand
    before = state_of(root)
    aloe(*commands[name])
    assert state_of(root) == before
    said = capsys.readouterr().out
    assert ("already done" if name in ("sft", "critic", "improve") else "4 episodes") in said


def test_what_was_made_with_earlier_labels_is_not_taken_for_the_present_ones(by_hand, tmp_path, capsys):
    for name in ("store", "critic"):
        shutil.copytree(by_hand[0] / name, tmp_path / name)
    source = ["--policy.path", by_hand[0] / "sft" / "pretrained_model", "--dataset.root", tmp_path / "store"]
    critic = ["critic", *source, "--output-dir", tmp_path / "critic", *BRIEF, *CRITIC, "--aloe.samples", 2]
    aloe("data", "label", tmp_path / "store", 0, "--outcome", "failure")
    before = state_of(tmp_path / "critic")
    config = json.loads((tmp_path / "critic" / "config.json").read_text())
    config["dataset"]["root"] = str(tmp_path / "store")  # as if it had been made here
    write_json(tmp_path / "critic" / "config.json", config)
    aloe(*critic)
    assert "labels have changed since" in capsys.readouterr().out
    (tmp_path / "critic" / "rounds" / "000" / "advantages.done.json").unlink()
    with pytest.raises(SystemExit):
        aloe(*critic)  # which would go on with critics of the earlier labels
    assert "begun with 4 episodes" in (said := capsys.readouterr().err)
    assert "choose another --output-dir" in said
    table = tmp_path / "critic" / "advantages.parquet"
    assert table.read_bytes() == before[str(table)][0]
    with pytest.raises(SystemExit):
        aloe("improve", *source, "--advantages", table, "--output-dir", tmp_path / "improved", *BRIEF[:4])
    assert "before labels were corrected; give the same, or run `aloe critic` with another" in capsys.readouterr().err
    assert not (tmp_path / "improved").exists()


def test_critic_goes_on_from_an_earlier_critic(by_hand):
    root, commands = by_hand
    again = ["--warm-start", root / "critic" / "critic.safetensors", "--output-dir", root / "warm"]
    options = iter(commands["critic"])
    kept = [o for o in options if o != "--output-dir" or not next(options)]
    aloe(*kept, *again)
    cold, warm = (pd.read_parquet(root / name / "advantages.parquet")["q_0"] for name in ("critic", "warm"))
    assert (cold != warm).any()


HELP = {
    "run": ["--preset", "--output-dir", "--seed", "--rounds", "--method", "--world.task", "--sft.steps", "--fit.steps"],
    "demos": ["--output-dir", "--episodes", "--noise", "--seed", "--workers", "--world.task", "--world.cameras"],
    "sft": ["--dataset.root", "--output-dir", "--steps", "--batch-size", "--seed", "--policy.path", "--window.horizon"],
    "collect": ["--policy.path", "--dataset.root", "--episodes", "--round", "--watched", "--human.patience-steps"],
    "critic": ["--policy.path", "--dataset.root", "--output-dir", "--bootstrap", "--warm-start", "--critic.critics"],
    "improve": ["--policy.path", "--dataset.root", "--advantages", "--output-dir", "--steps", "--learning-rate"],
    "eval": ["--policy.path", "--episodes", "--execute", "--seed", "--output", "--world.max-steps"],
    "report": ["PATH", "--output", "--episodes", "--text", "--rerun", "--png", "Run folders"],
    "rank": ["PATH", "--steps", "--estimators", "monte-carlo", "fqe"],
    "benchmark": ["SUITE", "--methods", "--seeds", "--output-dir", "--results", "--jobs"],
    "benchmark-report": ["Suites", "`overview`", "--results", "--page"],
}


@pytest.mark.parametrize("name", HELP)
def test_help_names_the_options_and_what_the_command_is_for(name, capsys):
    with pytest.raises(SystemExit) as ended:
        aloe(name, "--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert [option for option in HELP[name] if option not in said] == []
    purpose = cli.COMMANDS[name][1].split(".")[0].split(":")[0]
    assert purpose in " ".join(said.split())


def test_help_goes_on_in_a_line_where_the_source_breaks_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit):
        aloe("critic", "--help")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "policy, so that padding does not give away" in line], (
        "of the command's base class"
    )
    assert [line for line in lines if "episode short does not make it cheaper" in line], "of a config within it"


def test_aloe_alone_lists_every_command(capsys):
    aloe()
    said = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"  {name} " not in said] == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_the_list_says_of_a_command_is_what_its_own_help_says(name):
    purpose = cli.COMMANDS[name][1]
    assert purpose.endswith((".", "?", "!"))
    assert (" ".join(cli.find_command(name).__doc__.split()) + " ").startswith(purpose + " ")


def test_the_list_of_commands_needs_no_pytorch():
    found = "import sys, aloe.cli; aloe.cli.main(); print(sorted({'torch', 'lerobot', 'numpy'} & {*sys.modules}))"
    said = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run") / "tiny"
    aloe("run", "--preset", "tiny", "--rounds", 1, "--output-dir", root)
    return root


def test_the_run_folder_holds_what_it_should(run):
    policy = {
        "config.json",
        "model.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_4_normalizer_processor.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    }
    assert {p.name for p in run.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "report.html"),
        *("tensorboard", "experience", "cache", "rounds"),
    }
    assert {p.name for p in (run / "rounds").iterdir()} == {"000", "001"}
    for index, files in (
        ("000", {"optimizer.safetensors"}),
        (
            "001",
            {"optimizer.safetensors", "critic.safetensors", "advantages.parquet", "fresh_values.parquet", "trust.json"},
        ),
    ):
        folder = run / "rounds" / index
        assert {p.name for p in (folder / "pretrained_model").iterdir()} == policy
        always = {"pretrained_model", "fresh", "fresh.json"}
        assert {p.name for p in folder.iterdir() if not p.name.endswith(".done.json")} == files | always
    assert ExperienceStore.open(run / "experience").num_episodes == 4  # 2 demonstrations and 2 of the round


def test_advantages_have_the_columns_of_the_documentation(run):
    table = pd.read_parquet(run / "rounds" / "001" / "advantages.parquet")
    assert list(table) == [
        *("episode", "step", "source", "policy_version", "return"),
        *("q_0", "q_1", "value", "advantage", "weight"),
    ]
    assert len(table) == ExperienceStore.open(run / "experience").num_frames
    assert not table.isna().any(axis=None)


def test_the_summary_counts_what_the_store_holds(run):
    summary = json.loads((run / "summary.json").read_text())
    frames = ExperienceStore.open(run / "experience").columns()
    assert list(summary) == ["task", "method", "seed", "rounds"]
    assert (summary["task"], summary["method"], summary["seed"]) == ("reach-v3", "aloe", 0)
    first, last = summary["rounds"]
    assert set(last) >= {
        *("round", "episodes", "env_steps", "human_steps", "takeovers", "seconds"),
        *("success", "success_low", "success_high", "steps_to_success"),
    }
    assert (first["round"], first["episodes"], first["human_steps"], first["takeovers"]) == (0, 2, 0, 0)
    assert first["env_steps"] == (frames.episode < 2).sum()
    assert (last["round"], last["episodes"], last["env_steps"]) == (1, 4, len(frames))
    assert last["human_steps"] == (frames.source == Source.HUMAN).sum()
    assert last["takeovers"] == len(np.unique(frames.episode[frames.source == Source.HUMAN]))
    assert list(first["seconds"]) == ["demos", "sft", "eval"]
    assert list(last["seconds"]) == ["collect", "sample", "critic", "advantages", "trust", "improve", "eval"]


def test_tensorboard_shows_the_metrics(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        values = {k: v for k, v in line.items() if k not in ("round", "stage", "step")}
        assert values, line
        for name, value in values.items():
            shown = [event.value for event in events.Scalars(f"{line['stage']}/{name}")]
            assert pytest.approx(value, rel=1e-6) in shown
    # steps count on from round to round: one measurement of success after cloning, one after the round
    assert [event.step for event in events.Scalars("eval/success")] == [0, 1]
    assert [event.step for event in events.Scalars("critic/loss")] == [0, 11]


def test_a_run_that_is_done_changes_nothing_when_given_again(run):
    before = state_of(run)
    aloe("run", "--preset", "tiny", "--rounds", 1, "--output-dir", run)
    after = state_of(run)
    report = str(run / "report.html")  # made anew: it says when
    assert {k: v for k, v in after.items() if k != report} == {k: v for k, v in before.items() if k != report}


def test_report_shows_every_round_and_draws_the_curve(run, tmp_path, capsys):
    aloe("report", run, "--text", "--png", tmp_path / "curve.png")
    said = capsys.readouterr().out
    rows = [row for row in said.partition("the critics of")[0].splitlines() if "│" in row]
    assert "aloe on reach-v3, seed 0" in said
    assert len(rows) >= 2
    assert [row.split("│")[1].strip() for row in rows[-2:]] == ["0", "1"]
    assert [row.split("│")[2].strip() for row in rows[-2:]] == ["2", "4"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
