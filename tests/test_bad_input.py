"""A mistake of the user is one line that names the thing and the remedy, exit code 2, and nothing half written."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aloe import cli
from aloe.experience.lock import LOCK_FILE
from aloe.experience.store import ExperienceStore
from aloe.stages import PolicyConfig, new_policy
from aloe.types import NO_POLICY, Episode, Source

CAMERAS = {"topview": (32, 32), "behindGripper": (32, 32)}
SMALL = PolicyConfig(vision_width=4, keypoints=2, width=16, depth=1)
WORLD = ["--world.task", "reach-v3", "--world.image-size", 32, "--world.max-steps", 2, "--workers", 1]


def demonstration(seed: int, *, steps: int = 6, success: bool = True) -> Episode:
    rng = np.random.default_rng(seed)
    last = np.arange(steps) == steps - 1
    return Episode(
        task="reach the goal",
        seed=seed,
        images={camera: rng.integers(0, 256, (steps, *size, 3), np.uint8) for camera, size in CAMERAS.items()},
        state=rng.standard_normal((steps, 4)).astype(np.float32),
        action=rng.standard_normal((steps, 4)).astype(np.float32),
        proposed_action=np.full((steps, 4), np.nan, np.float32),
        source=np.full(steps, Source.DEMO, np.int64),
        policy_version=np.full(steps, NO_POLICY),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=last & success,
        truncated=last & (not success),
        success=last & success,
    )


def make_store(root: Path, success: bool = True) -> Path:
    store = ExperienceStore.create(root, cameras=CAMERAS, state_dim=4, action_dim=4, fps=20)
    for seed in range(2):
        store.append(demonstration(seed, success=success))
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("bad") / "store")


@pytest.fixture(scope="module")
def policy(tmp_path_factory, store) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "pretrained_model"
    new_policy(ExperienceStore.open(store), SMALL, 4, (0, "policy")).save_atomically(folder)
    return folder


@pytest.fixture
def complaint(monkeypatch, capsys):
    """Runs `aloe`, which must refuse; returns the one line that it says."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err.split("\r")[-1].strip("\n").splitlines()  # after a progress bar, if any
        (line,) = [row for row in said if not re.search(r"episode/s|s/episode", row)]  # the latter on a slow machine
        assert line.startswith("aloe: ")
        return line

    return run


def assert_says(line: str, *words: str) -> None:
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize("command", [["demos"], ["run", "--preset", "tiny"]])
def test_unknown_task(complaint, tmp_path, command):
    line = complaint(*command, "--output-dir", tmp_path / "out", "--world.task", "peg-insert-v3")
    assert_says(line, "peg-insert-v3", "did you mean peg-insert-side-v3")
    assert not (tmp_path / "out").exists()


def test_unknown_task_on_a_terminal_that_knows_unicode(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["aloe", "eval", "--policy.path", "x", "--world.task", "dance-v3"])
    with pytest.raises(SystemExit):
        cli.main()
    (line,) = capfd.readouterr().err.splitlines()
    assert_says(line, "aloe: world: unknown Meta-World task 'dance-v3'; did you mean", "; see aloe eval --help")


def test_tokens_that_a_new_policy_does_not_make_of_a_picture(complaint, tmp_path):
    line = complaint("run", "--output-dir", tmp_path / "out", "--critic.image-tokens", 4)
    assert_says(line, "one token of a picture", "--critic.image-tokens 1", "--policy.path")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["awr", "recap"])
def test_bins_of_a_return_that_may_be_endless(complaint, tmp_path, method):
    endless = "--window.timeout", "bootstrap", "--window.chunk-discount", 1
    line = complaint("run", "--output-dir", tmp_path / "out", "--method", method, *endless)
    assert_says(line, "no lowest return", "a discount below 1", "--window.timeout failure")
    assert not (tmp_path / "out").exists()


def test_unknown_camera(complaint, tmp_path):
    line = complaint("demos", "--output-dir", tmp_path / "out", "--world.cameras", "ceiling")
    assert_says(line, "'ceiling'", "topview", "behindGripper")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--preset", "tiny"],
        ["sft", "--dataset.root", "STORE", "--steps", 1],
        ["benchmark", "precision", "--results", "out"],
    ],
)
def test_no_gpu_is_said_before_anything_is_made(complaint, store, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    command = [store if word == "STORE" else word for word in command]
    assert_says(complaint(*command, "--output-dir", "out", "--device", "cuda"), "no GPU", "--device cpu")
    assert not Path("out").exists()


def test_unknown_preset_and_command(complaint):
    assert_says(complaint("run", "--preset", "huge"), "'huge'", "quickstart", "tiny")
    assert_says(complaint("train"), "'train'")


def test_a_value_of_another_kind(complaint, tmp_path):
    line = complaint("demos", "--output-dir", tmp_path / "out", "--episodes", "many")
    assert_says(line, "--episodes", "many", "aloe demos --help")


def test_policy_of_an_unknown_type(complaint, policy, tmp_path):
    folder = shutil.copytree(policy, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type": "octopus"}))
    assert_says(complaint("eval", "--policy.path", folder), "'octopus'", "tiny_vla")


def test_no_policy_there(complaint, tmp_path):
    assert_says(complaint("eval", "--policy.path", tmp_path), str(tmp_path), "give a pretrained_model folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_policy(complaint, policy, tmp_path, name):
    folder = shutil.copytree(policy, tmp_path / "policy")
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    assert_says(complaint("eval", "--policy.path", folder), str(folder), "damaged", "copy the policy anew")


def test_policy_whose_weights_have_other_shapes(complaint, policy, store, tmp_path):
    folder = shutil.copytree(policy, tmp_path / "policy")
    wider = new_policy(ExperienceStore.open(store), replace(SMALL, width=24), 4, (0, "policy"))
    wider.save(tmp_path / "wider")
    shutil.copy(tmp_path / "wider" / "model.safetensors", folder)
    line = complaint("eval", "--policy.path", folder)
    assert_says(line, str(folder), "do not fit its config.json", "torch.Size([24")


def test_policy_for_other_pictures_than_the_world_has(complaint, policy, tmp_path):
    line = complaint("eval", "--policy.path", policy, "--world.cameras", "corner")
    assert_says(line, "'topview'", "corner", "use the cameras")
    line = complaint("eval", "--policy.path", policy, "--world.image-size", 48)
    assert_says(line, "(48, 48)", "(32, 32)", "use pictures of the size")
    line = complaint(
        "collect", "--policy.path", policy, "--dataset.root", tmp_path / "out", "--world.cameras", "corner", "corner2"
    )
    assert_says(line, "'topview'", "corner, corner2")
    assert not (tmp_path / "out").exists()


def test_no_store_there(complaint, tmp_path):
    line = complaint("sft", "--dataset.root", tmp_path / "none", "--output-dir", tmp_path / "out")
    assert_says(line, str(tmp_path / "none"), "meta/info.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["next.success", "proposed_action", "action", "observation.state"])
def test_dataset_without_a_key_that_is_needed(complaint, store, tmp_path, key):
    root = shutil.copytree(store, tmp_path / "store")
    info = json.loads((root / "meta" / "info.json").read_text())
    del info["features"][key]
    (root / "meta" / "info.json").write_text(json.dumps(info))
    line = complaint("sft", "--dataset.root", root, "--output-dir", tmp_path / "out")
    assert_says(line, repr(key), "ExperienceStore.create()")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sft", "critic", "improve"])
def test_policy_with_actions_of_another_size(complaint, policy, tmp_path, command):
    root = tmp_path / "store"
    other = ExperienceStore.create(root, cameras=CAMERAS, state_dim=4, action_dim=3, fps=20)
    whole = demonstration(0)
    other.append(replace(whole, action=whole.action[:, :3], proposed_action=whole.proposed_action[:, :3]))
    more = ["--advantages", tmp_path / "none.parquet"] if command == "improve" else []
    source = ["--policy.path", policy, "--dataset.root", root]
    line = complaint(command, *source, *more, "--output-dir", tmp_path / "out")
    assert_says(line, "action", "size 3", "made for 4", "same robot")
    assert not (tmp_path / "out").exists()


def test_chunk_longer_than_every_episode(complaint, store, tmp_path):
    line = complaint("sft", "--dataset.root", store, "--output-dir", tmp_path / "out", "--window.horizon", 7)
    assert_says(line, "horizon of 7", "longest: 6", "smaller")
    assert not (tmp_path / "out").exists()


def test_critic_of_no_action(complaint, policy, store, tmp_path):
    source = ["--policy.path", policy, "--dataset.root", store, "--execute", 0]
    assert_says(
        complaint("critic", *source, "--output-dir", tmp_path / "out"), "chunks of 4 actions", "--execute 1 to 4, not 0"
    )
    assert not (tmp_path / "out").exists()


def test_critic_whose_target_averages_more_chunks_than_are_drawn(complaint, policy, store, tmp_path):
    source = ["--policy.path", policy, "--dataset.root", store, "--target-samples", 3, "--aloe.samples", 2]
    line = complaint("critic", *source, "--output-dir", tmp_path / "out", "--window.horizon", 4)
    assert_says(line, "--target-samples 3", "--aloe.samples draws 2")
    assert not (tmp_path / "out").exists(), "nothing was sampled, and no config stands in the way of other options"


def test_critic_that_would_see_through_a_policy_with_other_units(complaint, policy, store, tmp_path):
    other = make_store(tmp_path / "other")
    ExperienceStore.open(other).append(demonstration(5))
    new_policy(ExperienceStore.open(other), SMALL, 4, (0, "policy")).save_atomically(tmp_path / "tower")
    source = ["--policy.path", policy, "--dataset.root", store, "--tower", tmp_path / "tower", "--window.horizon", 4]
    line = complaint("critic", *source, "--output-dir", tmp_path / "out")
    assert_says(line, "normalise actions differently")
    assert not (tmp_path / "out").exists()


def test_tokens_that_a_given_policy_does_not_make_of_a_picture(complaint, policy, store, tmp_path):
    given = ["run", "--offline", "--policy.path", policy, "--experience.demos.root", store, "--window.horizon", 4]
    line = complaint(*given, "--output-dir", tmp_path / "out", "--critic.image-tokens", 4)
    assert_says(line, "one token of a picture", "--critic.image-tokens 1")
    assert not (tmp_path / "out").exists()


def test_a_call_that_came_to_nothing_leaves_the_folder_free_for_other_options(complaint, store, tmp_path):
    run = ["run", "--preset", "tiny", "--dataset.root", store, "--output-dir", tmp_path / "out"]
    assert_says(complaint(*run, "--world.cameras", "corner", *WORLD), "use the same --world options, or another store")
    assert_says(complaint(*run, "--world.cameras", "corner2", *WORLD), "use the same --world options, or another store")


@pytest.mark.parametrize("name", ["config.json", "rounds/000/sft.done.json"])
def test_damaged_file_of_a_run(complaint, store, tmp_path, monkeypatch, name):
    sft = ["sft", "--dataset.root", store, "--output-dir", tmp_path / "out", "--window.horizon", 4, "--batch-size", 4]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, sft), "--steps", "1"])
    cli.main()
    (tmp_path / "out" / name).write_text("")
    line = complaint(*sft, "--steps", 1)
    assert_says(line, str(tmp_path / "out" / name), "damaged", "copy it" if name == "config.json" else "delete it")


def test_a_fault_within_a_library_keeps_its_traceback(policy, store, tmp_path, monkeypatch, capsys):
    def fault(*arguments: object) -> None:
        np.zeros(3).reshape(2, 2)

    monkeypatch.setattr("aloe.commands.make_windows", fault)
    sft = ["sft", "--dataset.root", store, "--output-dir", tmp_path / "out", "--window.horizon", 4]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, sft)])
    with pytest.raises(SystemExit):
        cli.main()
    *trace, last = capsys.readouterr().err.splitlines()
    assert last == "aloe: cannot reshape array of size 3 into shape (2,2)"
    assert any("test_bad_input.py" in line for line in trace)


def test_critic_of_longer_chunks_than_the_policys(complaint, policy, store, tmp_path):
    source = ["--policy.path", policy, "--dataset.root", store, "--window.horizon", 5]
    line = complaint("critic", *source, "--output-dir", tmp_path / "out")
    assert_says(line, "chunks of 4", "hold 5", "--window.horizon 4 or less")
    assert not (tmp_path / "out").exists()


def test_store_without_a_successful_demonstration(complaint, tmp_path):
    root = make_store(tmp_path / "store", success=False)
    line = complaint("sft", "--dataset.root", root, "--output-dir", tmp_path / "out")
    assert_says(line, "no successful demonstration", "aloe demos")
    assert not (tmp_path / "out").exists()


def test_expert_that_never_succeeds(complaint, tmp_path):
    line = complaint("demos", "--output-dir", tmp_path / "out", "--episodes", 1, *WORLD)
    # 4 times the episodes, and 10 more, before it gives up
    assert_says(line, "0 of 14 episodes of reach-v3", "another folder", "--world.max-steps")
    assert ExperienceStore.open(tmp_path / "out").num_episodes == 14


def test_improving_by_the_advantages_of_another_store(complaint, policy, store, tmp_path, monkeypatch):
    critic = ["critic", "--policy.path", policy, "--dataset.root", store, "--output-dir", tmp_path / "critic"]
    critic += ["--steps", 1, "--batch-size", 4, "--aloe.samples", 2, "--window.horizon", 4]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, critic)])
    cli.main()
    grown = shutil.copytree(store, tmp_path / "grown")
    ExperienceStore.open(grown).append(demonstration(7))
    source = ["--policy.path", policy, "--dataset.root", grown, "--output-dir", tmp_path / "out"]
    line = complaint("improve", *source, "--advantages", tmp_path / "critic" / "advantages.parquet")
    assert_says(line, "advantages.parquet", "12 windows", "18 frames", "aloe critic")
    assert_says(complaint("improve", *source, "--advantages", tmp_path / "no.parquet"), "no.parquet", "aloe critic")
    assert not (tmp_path / "out").exists()


def test_critic_checkpoint_of_other_shapes(complaint, policy, store, tmp_path, monkeypatch):
    common = ["critic", "--policy.path", policy, "--dataset.root", store, "--window.horizon", 4, "--steps", 1]
    common += ["--aloe.samples", 2, "--batch-size", 4]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, common), "--output-dir", str(tmp_path / "first")])
    cli.main()
    earlier = tmp_path / "first" / "critic.safetensors"
    line = complaint(*common, "--critic.width", 32, "--warm-start", earlier, "--output-dir", tmp_path / "second")
    assert_says(line, str(earlier), "another shape")
    assert not (tmp_path / "second" / "critic.safetensors").exists()


def test_damaged_training_checkpoint(complaint, store, tmp_path, monkeypatch):
    sft = ["sft", "--dataset.root", store, "--output-dir", tmp_path / "out", "--window.horizon", 4, "--steps", 1]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, sft), "--batch-size", "4"])
    cli.main()
    (tmp_path / "out" / "rounds" / "000" / "sft.done.json").unlink()
    checkpoint = tmp_path / "out" / "sft.checkpoint.safetensors"
    checkpoint.write_bytes((tmp_path / "out" / "optimizer.safetensors").read_bytes()[:1000])
    assert_says(complaint(*sft, "--batch-size", 4), str(checkpoint), "damaged", "delete it")


def test_output_folder_of_another_config(complaint, store, policy, tmp_path, monkeypatch):
    sft = ["sft", "--dataset.root", store, "--output-dir", tmp_path / "out", "--window.horizon", 4, "--batch-size", 4]
    monkeypatch.setattr(sys, "argv", ["aloe", *map(str, sft), "--steps", "1"])
    cli.main()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    line = complaint(*sft, "--steps", 2)
    assert_says(line, str(tmp_path / "out"), "steps: 1, now 2", "another --output-dir")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_output_folder_that_holds_something_else(complaint, store, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    line = complaint("sft", "--dataset.root", store, "--output-dir", tmp_path, "--window.horizon", 4)
    assert_says(line, str(tmp_path), "not empty", "another --output-dir")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_store_that_was_recorded_with_another_camera(complaint, store):
    def state() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.name != LOCK_FILE}

    before = state()
    line = complaint("demos", "--output-dir", store, "--world.cameras", "corner", *WORLD)
    assert_says(line, str(store), "topview", "corner", "another store")
    assert state() == before


def test_report_of_a_folder_without_a_run(complaint, tmp_path):
    assert_says(complaint("report", tmp_path), str(tmp_path), "config.json")
    assert_says(complaint("report"), "name at least one run folder")


def test_the_command_itself_ends_with_code_2_and_one_line():
    done = subprocess.run(
        [Path(sys.executable).with_name("aloe"), "eval", "--policy.path", "/nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "aloe: /nowhere holds no policy: there is no config.json; give a pretrained_model folder\n"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB; a function that leaves so many bytes free on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk takes the right to mount one: {mounted.stderr.strip()}")

    def leave(free: int | None) -> None:
        ballast = disk / "ballast"
        ballast.unlink(missing_ok=True)
        if free is not None:
            usage = shutil.disk_usage(disk).free
            ballast.write_bytes(bytes(max(0, usage - free)))

    yield disk, leave
    subprocess.run(["umount", "--lazy", disk], check=True)  # an error that pytest shows may keep a file open


def files(root: Path) -> dict[str, bytes]:
    """What a command has made, but for when it was made, and for the names by chance of the cache's packs."""
    return {
        re.sub(r"pack-\w+", "pack", str(p.relative_to(root))): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and not p.name.endswith((".done.json", "config.json"))
    }


@pytest.mark.parametrize("command", ["sft", "critic"])
def test_full_disk(policy, store, small_disk, tmp_path, monkeypatch, capsys, command):
    disk, leave = small_disk
    options = ["--dataset.root", store, "--policy.path", policy, "--window.horizon", 4]
    options += ["--steps", 4, "--batch-size", 4, "--save-every", 2]
    if command == "critic":
        options += ["--aloe.samples", 512, "--critic.width", 16, "--critic.heads", 2]
    monkeypatch.setattr(sys, "argv", ["aloe", command, *map(str, options), "--output-dir", str(tmp_path / "out")])
    cli.main()
    monkeypatch.setattr(sys, "argv", ["aloe", command, *map(str, options), "--output-dir", str(disk / "out")])
    capsys.readouterr()
    refusals = 0
    for free in range(0, 1024, 24):  # a little more each time, so that it ends at ever other places
        leave(free * 1024)
        code = None
        with contextlib.suppress(SystemExit):
            cli.main()
            code = 0
        if code == 0:
            break
        (line,) = capsys.readouterr().err.splitlines()
        assert_says(line, "aloe: ", "No space left on device", "free some space and give the same command again")
        refusals += 1
    assert refusals >= 4
    assert files(disk / "out") == files(tmp_path / "out")


def test_full_disk_while_episodes_are_recorded(small_disk, complaint):
    disk, leave = small_disk
    store = ExperienceStore.create(disk / "store", cameras=CAMERAS, state_dim=4, action_dim=4, fps=20)
    store.append(demonstration(0))
    leave(8 * 1024)
    with pytest.raises(OSError, match="No space left"):
        store.append(demonstration(1))
    leave(None)
    again = ExperienceStore.open(disk / "store")
    assert again.num_episodes == 1
    again.append(demonstration(1))
    np.testing.assert_array_equal(again.columns().action[6:], demonstration(1).action)
