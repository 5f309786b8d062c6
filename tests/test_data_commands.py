"""`aloe data`, from a dataset that LeRobot recorded to a store with labels and a picture of it."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aloe import cli
from aloe.data.commands import Compact
from aloe.data.inventory import Played, played
from aloe.data.sheet import COLOURS
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Episode, Source

Record = Callable[..., Path]
HELP = {
    "import": ["SOURCE", "--root", "--source", "--outcome", "--outcomes", "--failure-end", "--ignore"],
    "info": ["ROOT", "Folder of the store"],
    "label": ["ROOT", "EPISODE", "--outcome", "--reward", "--source", "--undo"],
    "show": ["ROOT", "EPISODE", "--output"],
    "verify": ["ROOT", "Exit code 1"],
    "compact": ["ROOT", "quarantine/"],
}


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        aloe(*arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aloe: ")]
    assert ended.value.code == 2
    return line


@pytest.fixture
def root(record_with_lerobot: Record, tmp_path: Path) -> Path:
    """Two episodes of 6 and 4 steps at 10 fps; the human takes over in the first, which succeeds."""
    episodes = [
        {"intervention": [False] * 3 + [True] * 3, "next.success": [False] * 5 + [True]},
        {"intervention": [False] * 4, "next.success": [False] * 4},
    ]
    folder = record_with_lerobot(episodes, cameras={"observation.images.top": (16, 24)})
    aloe("data", "import", folder, "--root", tmp_path / "store", "--policy-version", 2)
    return tmp_path / "store"


@pytest.mark.parametrize("name", [name.removeprefix("data ") for name in cli.COMMANDS if name.startswith("data ")])
def test_help_names_the_options_and_what_the_command_is_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        aloe("data", name, "--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert [option for option in HELP[name] if option not in said] == []
    assert cli.COMMANDS[f"data {name}"][1].split(".")[0].split(":")[0] in " ".join(said.split())


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"]])
def test_aloe_data_lists_its_own_commands_alone(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    aloe(*arguments)
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [name.removeprefix("data ") for name in cli.COMMANDS if name.startswith("data ")]


def test_unknown_data_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "data", "imprt", "somewhere") == "aloe: unknown command 'data imprt'"


def test_import_says_how_it_understood_the_labels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    aloe("data", "import", root.parent / "foreign", "--root", root, "--policy-version", 2)  # a second time: nothing new
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "state, action observation.state, action",
        "who acted intervention",
        "outcome by next.success (2)",
        "ends 1 by success, 1 by time-out or stop",
        f"2 episodes, 10 frames in {root}",
    ]


def test_import_without_outcomes_is_one_line_with_the_remedy_and_leaves_nothing(
    record_with_lerobot: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record_with_lerobot([{"next.reward": [0.0, 0.0]}])
    line = refused(capsys, "data", "import", folder, "--root", tmp_path / "store", "--source", "demo")
    assert "--outcome success, failure or ask" in line
    assert not (tmp_path / "store").exists()


def test_outcomes_are_asked_for_at_the_terminal_until_they_are_understood(
    record_with_lerobot: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record_with_lerobot([{"next.reward": [0.0, 0.0]}] * 2)
    options = ["data", "import", folder, "--root", tmp_path / "store", "--source", "demo", "--outcome", "ask"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("success\n"))
    assert "nobody says how episode 1 ended" in refused(capsys, *options)
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("s\n\nperhaps\nfail\n"))
    aloe(*options)
    assert capsys.readouterr().out.count("episode 1, 0.2 s, 'stack the cubes': success or failure?") == 3
    assert ExperienceStore.open(tmp_path / "store").columns().success.tolist() == [False, True, False, False]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    aloe(*options)  # answered already


def test_inventory_counts_by_policy_version(tmp_path: Path) -> None:
    # A demonstration of 3 steps; version 1 alone succeeds in 4 steps, and fails in 6 although it is taken over twice.
    store = ExperienceStore.create(tmp_path / "store", cameras={}, state_dim=1, action_dim=1, fps=10)
    store.append(plain_episode([0, 0, 0], NO_POLICY, success=True))
    store.append(plain_episode([1, 1, 1, 1], 1, success=True))
    store.append(plain_episode([1, 2, 2, 1, 2, 1], 1, success=False))
    demo = {"version": NO_POLICY, "episodes": 1, "frames": 3, "successes": 1, "unaided": 1}
    first = {"version": 1, "episodes": 2, "frames": 10, "successes": 1, "unaided": 1}
    assert played(store.columns()) == [
        Played(**demo, taken_over=0, takeovers=0, human_frames=0),
        Played(**first, taken_over=1, takeovers=2, human_frames=3),
    ]


def plain_episode(source: list[int], version: int, success: bool, actions: int = 1) -> Episode:
    steps = len(source)
    last = np.arange(steps) == steps - 1
    return Episode(
        task="stack the cubes",
        seed=0,
        images={},
        state=np.zeros((steps, 1), np.float32),
        action=np.linspace(0, 1, steps * actions, dtype=np.float32).reshape(steps, actions),
        proposed_action=np.full((steps, actions), np.nan, np.float32),
        source=np.array(source, np.int64),
        policy_version=np.full(steps, version),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=last & success,
        truncated=last & (not success),
        success=last & success,
    )


def test_info_shows_what_the_store_holds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aloe("data", "label", root, 1, "--outcome", "success")
    capsys.readouterr()
    aloe("data", "info", root)
    cells = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in capsys.readouterr().out.splitlines()
    ]
    for row in (
        ["episodes", "2"],
        ["frames", "10"],
        ["fps", "10"],
        ["cameras", "top 24 x 16"],
        ["tasks", "stack the cubes (2 episodes)"],
        ["labelled later", "1 episodes"],
        # version, episodes, frames, success, unaided, taken over, takeovers, share of the human's frames
        ["version", "episodes", "frames", "success", "unaided", "over", "takeovers", "human"],  # none is cut
        ["2", "2", "10", "100%", "50%", "50%", "1", "30%"],
        ["policy", "2", "7", "0.00", "70%"],
        ["human", "1", "3", "0.00", "30%"],
    ):
        assert row in cells


def test_info_shows_brackets_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExperienceStore.create(tmp_path / "[old]", cameras={}, state_dim=1, action_dim=1, fps=10) as store:
        store.append(replace(plain_episode([0, 0], NO_POLICY, success=True), task="put the [red] cube [/away]"))
    aloe("data", "info", tmp_path / "[old]")
    said = capsys.readouterr().out
    assert "put the [red] cube [/away] (1 episodes)" in said
    assert "[old]" in said


def test_info_on_an_empty_store_and_on_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ExperienceStore.create(tmp_path / "store", cameras={}, state_dim=1, action_dim=1, fps=10)
    aloe("data", "info", tmp_path / "store")
    assert "none" in capsys.readouterr().out
    assert "is no store" in refused(capsys, "data", "info", tmp_path / "nothing")


def test_label_and_undo(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aloe("data", "label", root, 0, "--outcome", "failure", "--reward", -5)
    frames = ExperienceStore.open(root).columns()
    assert (frames.success[5], frames.reward[5]) == (False, -5)
    assert capsys.readouterr().out.splitlines()[-1] == "episode 0: outcome failure, reward -5.0"
    assert "give no other one with it" in refused(capsys, "data", "label", root, 0, "--undo", "--reward", 1)
    aloe("data", "label", root, 0, "--undo")
    frames = ExperienceStore.open(root).columns()
    assert (frames.success[5], frames.reward[5]) == (True, 0)
    assert "no label to undo" in refused(capsys, "data", "label", root, 0, "--undo")
    assert "a label says something" in refused(capsys, "data", "label", root, 0)
    assert "there is no episode 2" in refused(capsys, "data", "label", root, 2, "--outcome", "success")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels are of this colour."""
    return int((np.abs(picture.astype(int) - colour).max(-1) <= 3).sum())


def rgb(source: Source) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(COLOURS[source][1:]))


def test_sheet_shows_pictures_and_who_acted(root: Path, tmp_path: Path) -> None:
    aloe("data", "show", root, 0, "--output", tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    # Each of the 6 pictures is of one colour, (30 t, 0, 50), and as large as the others.
    areas = [share(sheet, (30 * t, 0, 50)) for t in range(6)]
    assert min(areas) > 10_000
    assert max(areas) < 1.05 * min(areas)
    # Half of the steps are the human's, half of the band is, too (the key has a patch of each).
    policy, human = share(sheet, rgb(Source.POLICY)), share(sheet, rgb(Source.HUMAN))
    assert policy > 10_000
    assert human == pytest.approx(policy, rel=0.1)
    aloe("data", "show", root, 1, "--output", tmp_path / "other.png")
    assert share(pixels(tmp_path / "other.png"), rgb(Source.HUMAN)) == 0


@pytest.mark.parametrize("actions", [3, 12])
def test_sheet_without_cameras(tmp_path: Path, actions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ExperienceStore.create(tmp_path / "store", cameras={}, state_dim=1, action_dim=actions, fps=10)
    store.append(plain_episode([0] * 40, NO_POLICY, success=True, actions=actions))
    monkeypatch.chdir(tmp_path)
    aloe("data", "show", tmp_path / "store", 0)
    assert share(pixels(tmp_path / "episode-000.png"), rgb(Source.DEMO)) > 10_000


def test_sheet_of_no_episode_or_into_another_kind_of_file_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no episode 2" in refused(capsys, "data", "show", root, 2, "--output", tmp_path / "a.png")
    assert "there is no episode -1" in refused(capsys, "data", "show", root, "-1", "--output", tmp_path / "a.png")
    assert "should end in .png" in refused(capsys, "data", "show", root, 0, "--output", tmp_path / "a.txt")
    assert not (tmp_path / "a.png").exists()


def test_what_was_imported_is_written_down(root: Path) -> None:
    (line,) = (root / "meta/aloe_imports.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["dataset"], record["first"], record["episodes"]) == ("foreign", 0, 2)
    assert record["success"] == [True, False]
    assert record["options"]["policy_version"] == 2
    assert record["notes"]["who acted"] == "intervention"


def verified(capsys: pytest.CaptureFixture[str], root: Path) -> list[str]:
    """What `aloe data verify` says of a store that is damaged."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        aloe("data", "verify", root)
    assert ended.value.code == 1
    return capsys.readouterr().out.splitlines()


def test_verify_names_each_damaged_episode_and_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    aloe("data", "verify", root)
    assert capsys.readouterr().out == "2 episodes checked: none damaged\n"
    data, stats = root / "data/chunk-000/file-001.parquet", root / "meta/stats.json"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    changed = json.loads(stats.read_text())
    changed["action"]["min"][0] -= 1
    stats.write_text(json.dumps(changed))
    assert verified(capsys, root) == [
        "data/chunk-000/file-001.parquet of episode 1 is not what was recorded (its SHA-256 differs)",
        "meta/stats.json has another 'action' than its episodes",
        "2 episodes checked: 1 damaged, and 1 files of the store as a whole",
    ]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("meta/info.json", "meta/info.json cannot be read (JSONDecodeError"),
        ("meta/episodes/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet cannot be read"),
        ("meta/tasks.parquet", "meta/tasks.parquet cannot be read"),
        ("meta/aloe_labels.jsonl", "cannot be opened"),
    ],
)
def test_verify_names_what_it_can_where_the_store_cannot_even_be_opened(
    root: Path, capsys: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    (root / path).write_text("no longer\n")
    (root / "data/chunk-000/file-000.parquet").unlink()
    lines = verified(capsys, root)
    assert said in lines[0] + lines[-2]
    assert "data/chunk-000/file-000.parquet of episode 0 cannot be read (No such file or directory)" in lines
    assert "cannot be opened" in lines[-2]
    assert lines[-1].startswith("2 episodes checked: 1 damaged")


def test_verify_of_no_store_is_the_users_mistake(
    record_with_lerobot: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no store" in refused(capsys, "data", "verify", tmp_path)
    folder = record_with_lerobot([{"next.success": [False, True]}])
    assert "aloe data import" in refused(capsys, "data", "verify", folder)


def test_verify_says_which_episodes_have_no_checksums(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "meta/checksums/chunk-000/file-000.json").unlink()
    capsys.readouterr()
    aloe("data", "verify", root)
    assert "2 have no checksums (episode 0-1)" in capsys.readouterr().out
    (root / "data/chunk-000/file-000.parquet").write_text("PAR1 no longer")
    assert "data/chunk-000/file-000.parquet of episode 0 cannot be read" in verified(capsys, root)[0]


def test_compact_says_where_the_old_version_is_and_how_to_remove_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    aloe("data", "compact", root)
    aside = root / "quarantine/000"
    assert capsys.readouterr().out.splitlines() == [
        f"{root}: 3 files became 2",
        f"the version before is in {aside}; when you need it no more: rm -r {aside}",
    ]
    assert ExperienceStore.read(aside).num_episodes == 2
    aloe("data", "compact", root)
    assert capsys.readouterr().out == f"{root}: 2 files, and nothing to merge\n"
    aloe(
        "data", "import", root.parent / "foreign", "--root", root, "--policy-version", 2
    )  # its episodes are known still
    assert ExperienceStore.read(root).num_episodes == 2
    data = root / "data/chunk-001/file-000.parquet"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert verified(capsys, root) == [
        "data/chunk-001/file-000.parquet of episode 0-1 is not what was recorded (its SHA-256 differs)",
        "2 episodes checked: 2 damaged",
    ]
    with ExperienceStore.open(root), pytest.raises(ValueError, match="is not compacted"):
        Compact(root=root).main()
