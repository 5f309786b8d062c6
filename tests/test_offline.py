"""`aloe run` with neither robot nor simulator: a checkpoint and recorded experience in, a better checkpoint out."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.policies.factory import get_policy_class
from safetensors import safe_open

from aloe import cli, stages
from aloe.config import PRESETS
from aloe.experience.mixture import RootConfig, with_roots
from aloe.experience.schema import Frames, digest_of
from aloe.experience.store import ExperienceStore
from aloe.experience.view import View, only_cameras
from aloe.types import NO_POLICY, Episode, Source

CAMERAS = {"top": (32, 32), "wrist": (32, 32)}
SMALL = [
    *("--policy.vision-width", 8, "--policy.keypoints", 4, "--policy.width", 16, "--policy.depth", 1),
    *("--policy.execute", 2, "--window.horizon", 3, "--steps", 2, "--batch-size", 4),
]
BRIEF = [
    *("--window.horizon", 3, "--critic.critics", 2, "--critic.width", 16, "--critic.layers", 1, "--critic.heads", 2),
    *("--fit.steps", 4, "--fit.batch-size", 4, "--fit.target-samples", 2, "--aloe.samples", 2),
    *("--improve.steps", 4, "--improve.batch-size", 4, "--trust.held-out", 0.4),
]


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        aloe(*arguments)
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def episode(seed: int, source: Source, success: bool, cameras: dict[str, tuple[int, int]] = CAMERAS) -> Episode:
    steps = 6 + seed % 3
    rng, last = np.random.default_rng(seed), np.arange(steps) == steps - 1
    return Episode(
        task="press the button",
        seed=seed,
        images={c: rng.integers(0, 255, (steps, h, w, 3), np.uint8) for c, (h, w) in cameras.items()},
        state=rng.standard_normal((steps, 4)).astype(np.float32),
        action=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        proposed_action=np.full((steps, 3), np.nan, np.float32),
        source=np.full(steps, source),
        policy_version=np.full(steps, NO_POLICY if source == Source.DEMO else 0),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=last,
        truncated=np.zeros(steps, bool),
        success=last & success,
    )


def record(root: Path, seeds: range, source: Source, cameras: dict[str, tuple[int, int]] = CAMERAS) -> Path:
    with ExperienceStore.create(root, cameras=cameras, state_dim=4, action_dim=3, fps=10) as store:
        for seed in seeds:
            store.append(episode(seed, source, success=source == Source.DEMO or seed % 2 == 0, cameras=cameras))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demos, rollouts, and a checkpoint that was cloned from the former."""
    folder = tmp_path_factory.mktemp("data")
    record(folder / "demos", range(3), Source.DEMO)
    record(folder / "rollouts", range(10, 18), Source.POLICY)
    aloe("sft", "--dataset.root", folder / "demos", "--output-dir", folder / "sft", *SMALL)
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Callable[..., Path]:
    def start(*more: object, roots: tuple[str, ...] = ("demos", "rollouts")) -> Path:
        policy = data / "sft/pretrained_model"
        given = [text for name in roots for text in (f"--experience.{name}.root", data / name)]
        aloe("run", "--policy.path", policy, *given, "--output-dir", tmp_path / "run", *BRIEF, *more)
        return tmp_path / "run"

    return start


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_checkpoint_and_recorded_experience_give_a_better_checkpoint_without_any_world(
    data: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (data / "demos").rglob("*") if path.is_file()}
    folder = run()
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["success"] for row in summary["rounds"]] == [None, None]
    assert [row["episodes"] for row in summary["rounds"]] == [11, 11]
    assert not (folder / "experience").exists()
    assert {path: path.read_bytes() for path in (data / "demos").rglob("*") if path.is_file()} == before
    first, second = folder / "rounds/000/pretrained_model", folder / "rounds/001/pretrained_model"
    assert weights(first) == weights(data / "sft/pretrained_model")
    assert weights(second) != weights(first)
    policy = get_policy_class("tiny_vla").from_pretrained(second)
    assert policy.config.chunk_size == 3
    assert "last policy" in capsys.readouterr().out


def test_critics_are_judged_on_episodes_that_they_were_not_trained_on(
    data: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[np.ndarray] = []
    fit, judge = stages.critic_stage, stages.trust_stage

    def watched(data, *rest, **more) -> None:
        learnt.append(data.windows.has_target)
        fit(data, *rest, **more)

    def compared(fresh, facts, inputs, *rest, **more) -> dict[str, Any]:
        learnt.append(inputs.windows.ended)  # whose returns are those that were seen
        return judge(fresh, facts, inputs, *rest, **more)

    monkeypatch.setattr(stages, "critic_stage", watched)
    monkeypatch.setattr(stages, "trust_stage", compared)
    folder = run()
    frames = with_roots(None, {n: RootConfig(root=data / n) for n in ("demos", "rollouts")}).columns()
    held_out = stages.held_out(frames, 0.4)
    assert 0 < len(held_out) < 11
    assert len(learnt) == 2
    for rows in learnt:
        np.testing.assert_array_equal(rows & np.isin(frames.episode, held_out), False)
        assert rows.any()
    trust = json.loads((folder / "rounds/001/trust.json").read_text())
    assert trust["numbers"]["episodes"] == len(held_out)
    assert trust["numbers"]["value_rank_correlation"] is not None


def judged(critic: Path) -> int:
    """How many actions the critics of `BRIEF` see; besides, 2 readouts, state, words and 2 cameras have a position each."""
    with safe_open(critic, framework="pt") as file:
        return file.get_tensor("critic/position").shape[0] - 6


def test_offline_critics_see_what_the_checkpoint_executes_of_a_chunk(run: Callable[..., Path]) -> None:
    assert judged(run() / "rounds/001/critic.safetensors") == 2  # of 3, by `SMALL`


def test_offline_it_can_be_said_how_many_actions_the_robot_executed(run: Callable[..., Path]) -> None:
    folder = run("--policy.execute", 1)
    assert judged(folder / "rounds/001/critic.safetensors") == 1
    for version in ("000", "001"):  # what is handed over plays as it was judged
        policy = get_policy_class("tiny_vla").from_pretrained(folder / f"rounds/{version}/pretrained_model")
        assert policy.config.n_action_steps == 1


def test_critics_see_as_many_actions_as_are_said_to_be_executed(data: Path, tmp_path: Path) -> None:
    aloe(
        "critic", "--policy.path", data / "sft/pretrained_model", "--dataset.root", data / "demos", "--execute", 1,
        "--window.horizon", 3, "--critic.critics", 2, "--critic.width", 16, "--critic.layers", 1, "--critic.heads", 2,
        "--steps", 2, "--batch-size", 4, "--aloe.samples", 2, "--output-dir", tmp_path / "critic",
    )  # fmt: skip
    assert judged(tmp_path / "critic/critic.safetensors") == 1


def report_of(folder: Path) -> dict[str, Any]:
    page = (folder / "report.html").read_text()
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_the_report_shows_the_roots_episodes_and_which_of_them_the_critics_have_not_seen(
    data: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    assert f"report          {folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    shown = report_of(folder)
    frames = with_roots(None, {n: RootConfig(root=data / n) for n in ("demos", "rollouts")}).columns()
    kinds = ["held out" if e in stages.held_out(frames, 0.4) else "learnt from" for e in range(11)]
    assert [episode["kind"] for episode in shown["episodes"]] == kinds
    assert [camera for camera, *_ in shown["episodes"][0]["video"]["places"]] == ["top", "wrist"]
    assert shown["episodes"][10]["outcome"] == "failure"  # seed 17 is odd
    assert [row["success"] for row in shown["runs"][0]["rounds"]] == [None, None]


def test_where_nothing_is_measured_no_table_has_room_for_it(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    assert "success" not in " ".join(capsys.readouterr().out.split())
    assert [name for name, _ in report_of(folder)["runs"][0]["facts"] if name == "task"] == []


def test_values_of_states_learn_from_every_episode_and_so_no_report_calls_one_held_out(
    run: Callable[..., Path],
) -> None:
    folder = run("--method", "awr")
    assert {episode["kind"] for episode in report_of(folder)["episodes"]} == {"learnt from"}


def test_where_nobody_judges_the_critics_they_learn_from_every_episode(
    data: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[np.ndarray] = []
    fit = stages.critic_stage

    def watched(data, *rest, **more) -> None:
        learnt.append(data.windows.ended)
        fit(data, *rest, **more)

    monkeypatch.setattr(stages, "critic_stage", watched)
    folder = run("--trust.episodes", 0)
    assert learnt[0].all()
    assert {episode["kind"] for episode in report_of(folder)["episodes"]} == {"learnt from"}


def test_a_report_of_data_that_were_moved_away_or_have_grown_has_no_pictures_and_says_why(
    data: Path, run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "rollouts", tmp_path / "rollouts")
    folder = run("--experience.more.root", tmp_path / "rollouts", roots=("demos",))
    before = report_of(folder)["episodes"]
    with ExperienceStore.open(tmp_path / "rollouts") as store:
        store.append(episode(30, Source.POLICY, success=True))
    aloe("report", folder)
    assert "has changed since the last round" in report_of(folder)["note"]
    shutil.move(tmp_path / "rollouts", tmp_path / "elsewhere")
    capsys.readouterr()
    aloe("report", folder)
    assert "without pictures:" in capsys.readouterr().out
    shown = report_of(folder)
    assert "rollouts" in shown["note"]
    assert [one["video"] for one in shown["episodes"]] == [None] * 11
    assert {one["kind"] for one in shown["episodes"]} == {"perhaps learnt from"}  # nobody knows what was held out
    assert [one["lines"]["value"] for one in shown["episodes"]] == [one["lines"]["value"] for one in before]


def test_without_held_out_episodes_it_is_said_that_nobody_judges(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("--trust.held-out", 0)
    assert "the critics are not judged" in capsys.readouterr().out
    assert not (folder / "rounds/001/trust.json").exists()


def frames_with(actions: list[float]) -> Frames:
    """Episodes of one step each."""
    count = len(actions)
    numbers, vector = np.arange(count), np.array(actions, np.float32)[:, None]
    never = np.zeros(count, bool)
    return Frames(
        state=vector, action=vector, proposed_action=vector, source=numbers * 0, policy_version=numbers * 0,
        reward=vector[:, 0], terminated=never, truncated=never, success=never, seed=numbers, episode=numbers,
        step=numbers * 0, task_index=numbers * 0, tasks=["t"],
    )  # fmt: skip


def test_episode_that_was_held_out_stays_so_when_others_come() -> None:
    actions = np.random.default_rng(0).uniform(size=2000).tolist()
    before = stages.held_out(frames_with(actions[:1000]), 0.2)
    after = stages.held_out(frames_with(actions), 0.2)
    assert [episode for episode in after if episode < 1000] == before
    others_first = stages.held_out(frames_with([7, 8, 9, 10, 11, *actions[:1000]]), 0.2)
    assert [episode - 5 for episode in others_first if episode > 4] == before
    assert len(after) == pytest.approx(400, abs=4 * (2000 * 0.2 * 0.8) ** 0.5)  # four standard deviations


def test_next_round_learns_from_the_rollouts_that_came_since(
    data: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    first = weights(folder / "rounds/001/pretrained_model")
    if not (data / "newer").exists():
        record(data / "newer", range(20, 24), Source.POLICY)
    run("--rounds", 2, roots=("demos", "rollouts", "newer"))
    rounds = json.loads((folder / "summary.json").read_text())["rounds"]
    assert [row["episodes"] for row in rounds] == [11, 11, 15]
    assert weights(folder / "rounds/001/pretrained_model") == first
    (folder / "rounds/002/improve.done.json").unlink()  # as if it had been killed in the middle of the round
    line = refused(
        capsys, "run", "--policy.path", data / "sft/pretrained_model", "--experience.demos.root", data / "demos",
        "--output-dir", folder, *BRIEF, "--rounds", 2,
    )  # fmt: skip
    assert "round 2 was begun with 15 episodes, now there are 3" in line


def test_run_that_was_stopped_ends_with_the_same_weights(data: Path, run: Callable[..., Path], tmp_path: Path) -> None:
    whole = weights(run() / "rounds/001/pretrained_model")
    shutil.move(tmp_path / "run", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(stages, "advantage_stage", stop)
        with pytest.raises(SystemExit):
            run()
    assert weights(run() / "rounds/001/pretrained_model") == whole


def test_shares_by_who_acted_give_the_batches_that_roots_of_those_actors_would_with_these_shares(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    ends = []
    for divided in ("--sources.demos", "--experience.demos.ratio"):
        ends.append(weights(run(divided, 0.5) / "rounds/001/pretrained_model"))
        shutil.move(tmp_path / "run", tmp_path / divided)
    assert ends[0] == ends[1]
    assert ends[0] != weights(run() / "rounds/001/pretrained_model")


def test_round_that_was_begun_with_a_wrong_rename_does_not_go_on_with_the_right_one(
    data: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    top, wrist = (f"observation.images.{camera}" for camera in ("top", "wrist"))
    folder = run(f"--rename.{top}", wrist, f"--rename.{wrist}", top)
    (folder / "rounds/001/improve.done.json").unlink()  # as if it had been killed in the middle of the round
    roots = [text for name in ("demos", "rollouts") for text in (f"--experience.{name}.root", data / name)]
    line = refused(
        capsys, "run", "--policy.path", data / "sft/pretrained_model", *roots, "--output-dir", folder, *BRIEF
    )  # fmt: skip
    assert "was begun with --rename {" in line
    assert "to begin it anew" in line


def test_what_was_learnt_from_is_known_by_tasks_and_policy_versions_too() -> None:
    frames = frames_with([1, 2, 3])
    for name in ("task_index", "policy_version", "source", "success", "action"):
        column = getattr(frames, name)
        assert digest_of(replace(frames, **{name: (column + 1).astype(column.dtype)})) != digest_of(frames), name
    assert digest_of(replace(frames)) == digest_of(frames)


def test_camera_of_another_name_is_renamed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded `front` is the policy's `top`; a third camera, which the policy does not see, does no harm."""
    other = record(tmp_path / "other", range(4), Source.DEMO, {"front": (32, 32), "side": (16, 16), "wrist": (32, 32)})
    policy = data / "sft/pretrained_model"
    options = [
        "run",
        "--policy.path",
        policy,
        "--experience.demos.root",
        other,
        "--output-dir",
        tmp_path / "run",
        *BRIEF,
    ]
    line = refused(capsys, *options)
    assert "the policy sees camera 'top', but" in line
    assert "--rename.observation.images.front=observation.images.top" in line
    assert not (tmp_path / "run").exists()
    aloe(*options, "--rename.observation.images.front=observation.images.top")
    assert (tmp_path / "run/rounds/001/pretrained_model/model.safetensors").exists()


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"observation.images.left": "observation.images.top"}, "no camera 'left' to rename; there are top, wrist"),
        ({"observation.images.wrist": "observation.images.top"}, "two cameras of .* have one name: top, top"),
        ({"observation.state": "state"}, "only pictures can be renamed"),
    ],
)
def test_renaming_that_cannot_be_is_refused(data: Path, rename: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_roots(None, {"demos": RootConfig(root=data / "demos")}, rename)


def test_renamed_cameras_have_their_own_pictures_and_their_own_place_in_the_cache(data: Path) -> None:
    """Two cameras that change names: what was decoded under the old ones must not be served."""
    store = ExperienceStore.read(data / "demos")
    keys = [f"observation.images.{camera}" for camera in ("top", "wrist")]
    swapped = with_roots(None, {"demos": RootConfig(root=data / "demos")}, dict(zip(keys, keys[::-1], strict=True)))
    np.testing.assert_array_equal(swapped.pictures(1)["top"], store.pictures(1)["wrist"])
    assert swapped.episode_digest(1) != store.episode_digest(1)
    assert only_cameras(store, ["wrist"]).episode_digest(1) == store.episode_digest(1)
    assert only_cameras(store, ["wrist"]).cameras == {"wrist": (32, 32)}


def test_view_of_some_episodes_is_those_and_no_others(data: Path) -> None:
    roots = {"demos": RootConfig(root=data / "demos", ratio=0.25), "rollouts": RootConfig(root=data / "rollouts")}
    whole = with_roots(None, roots)
    view, frames = View(whole, episodes=[1, 4]), whole.columns()
    mine, rows = view.columns(), np.isin(frames.episode, [1, 4])
    np.testing.assert_array_equal(mine.action, frames.action[rows])
    np.testing.assert_array_equal(mine.episode, np.repeat([0, 1], view.lengths))
    np.testing.assert_array_equal(view.pictures(1)["top"], whole.pictures(4)["top"])
    assert view.shares is not None
    np.testing.assert_array_equal(view.shares.part, np.repeat([0, 1], view.lengths))


def test_offline_needs_experience(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name it: --experience.NAME.root DIR" in refused(capsys, "run", "--preset", "offline")
    assert PRESETS["offline"].offline
