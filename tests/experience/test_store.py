import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features

from aloe.experience import schema
from aloe.experience.store import ExperienceStore, Frames
from aloe.types import Episode, Source

MakeEpisode = Callable[..., Episode]


def load_with_lerobot(store: ExperienceStore) -> LeRobotDataset:
    return LeRobotDataset("local/store", root=store.root)


def files(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_frames(frames: Frames, episodes: list[Episode]) -> None:
    """Every column of the store holds the episodes' steps in order."""
    for name in ("state", "action", "proposed_action", "source", "policy_version", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(frames, name), np.concatenate([getattr(e, name) for e in episodes]), name)
    np.testing.assert_array_equal(frames.truncated, np.concatenate([e.truncated for e in episodes]))
    np.testing.assert_array_equal(frames.success, np.concatenate([e.success for e in episodes]))
    np.testing.assert_array_equal(frames.step, np.concatenate([np.arange(e.steps) for e in episodes]))
    np.testing.assert_array_equal(frames.episode, np.repeat(range(len(episodes)), [e.steps for e in episodes]))
    np.testing.assert_array_equal(frames.seed, np.repeat([e.seed for e in episodes], [e.steps for e in episodes]))
    assert [frames.tasks[i] for i in frames.task_index] == [e.task for e in episodes for _ in range(e.steps)]


def test_appended_episode_comes_back_through_lerobot(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    episode = make_episode()
    assert store.append(episode) == 0
    dataset = load_with_lerobot(store)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (6, 1, 20)
    for t in range(6):
        item = dataset[t]
        for camera, pictures in episode.images.items():
            picture = (item[f"observation.images.{camera}"] * 255).round().byte().permute(1, 2, 0)
            np.testing.assert_array_equal(picture, pictures[t])
        np.testing.assert_array_equal(item["observation.state"], episode.state[t])
        np.testing.assert_array_equal(item["action"], episode.action[t])
        assert item["task"] == episode.task
        assert item["timestamp"].item() == pytest.approx(t / 20)
        assert item["next.reward"].item() == episode.reward[t]
        assert item["next.done"].item() == episode.terminated[t]
        assert item["intervention"].item() == (episode.source[t] == Source.HUMAN)
        assert item["policy_version"].item() == episode.policy_version[t]
    # Nothing was proposed for the last step: LeRobot sees the executed action, and that it is no proposal.
    np.testing.assert_array_equal(dataset[5]["proposed_action"], episode.action[5])
    assert [dataset[t]["has_proposal"].item() for t in (4, 5)] == [True, False]


def test_appended_episodes_come_back_through_the_store(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    episodes = [
        make_episode(0, steps=6),
        make_episode(1, steps=3, task="open the door"),
        make_episode(2, steps=1 + 3),
    ]
    assert len(store.columns()) == 0
    assert [store.append(episode) for episode in episodes[:2]] == [0, 1]
    check_frames(store.columns(), episodes[:2])
    again = ExperienceStore.open(store.root)
    assert again.append(episodes[2]) == 2
    check_frames(again.columns(), episodes)
    assert (again.num_episodes, again.num_frames, again.lengths) == (3, 13, [6, 3, 4])
    for i, episode in enumerate(episodes):
        for camera, pictures in again.pictures(i).items():
            np.testing.assert_array_equal(pictures, episode.images[camera])
            thinned = again.pictures(i, every=4, enough=9)[camera]  # the longer sides have 24 and 20 px
            np.testing.assert_array_equal(thinned, episode.images[camera][::4, ::2, ::2])
    assert len(load_with_lerobot(again)) == 13


def test_videos_come_back_within_what_the_codec_loses(tmp_path: Path, make_episode: MakeEpisode) -> None:
    ramp = np.linspace(0, 200, 64 * 96 * 3).reshape(64, 96, 3)
    pictures = np.stack([ramp + 10 * t for t in range(5)]).astype(np.uint8)
    store = ExperienceStore.create(
        tmp_path / "v",
        cameras={"top": (64, 96), "wrist": (64, 96)},
        state_dim=5,
        action_dim=3,
        fps=20,
        video=True,
    )
    images = {"top": pictures, "wrist": pictures[::-1].copy()}
    episodes = [make_episode(i, steps=5, images=images) for i in range(2)]
    for episode in episodes:
        store.append(episode)
    store = ExperienceStore.open(store.root)
    check_frames(store.columns(), episodes)
    dataset = load_with_lerobot(store)
    for camera in images:
        found = store.pictures(1)[camera].astype(int)
        # Neighbouring pictures are 10 apart; under half of that, none was taken for the next.
        assert np.abs(found - images[camera]).mean((1, 2, 3)).max() < 4
        # Of 64 x 96 px are 40 enough: every second. Of 100 none could be left out.
        thinned = store.pictures(1, every=2, enough=40)[camera].astype(int)
        assert thinned.shape == (3, 32, 48, 3)
        assert np.abs(thinned - found[::2, ::2, ::2]).mean((1, 2, 3)).max() < 4  # a row is 3 brighter than the last
        np.testing.assert_array_equal(store.pictures(1, enough=100)[camera], found)
        through_lerobot = dataset[9][f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
        assert np.abs(through_lerobot - images[camera][4]).mean() < 4


def test_policy_sees_nothing_but_pictures_state_and_action(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    store.append(make_episode())
    seen = {key: feature.type for key, feature in dataset_to_policy_features(load_with_lerobot(store).features).items()}
    assert seen == {
        "observation.images.top": FeatureType.VISUAL,
        "observation.images.wrist": FeatureType.VISUAL,
        "observation.state": FeatureType.STATE,
        "action": FeatureType.ACTION,
    }


def test_statistics_are_json_and_of_all_steps(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    episodes = [make_episode(0), make_episode(1, steps=3)]
    for episode in episodes:
        store.append(episode)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    stats = json.loads((store.root / "meta/stats.json").read_text(), parse_constant=refuse)
    actions = np.concatenate([e.action for e in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-5)
    tops = np.concatenate([e.images["top"] for e in episodes])
    np.testing.assert_allclose(np.ravel(stats["observation.images.top"]["mean"]), tops.mean((0, 1, 2)) / 255, atol=1e-4)


def test_store_continues_what_lerobot_recorded_and_lerobot_what_the_store_did(
    tmp_path: Path, make_episode: MakeEpisode
) -> None:
    columns = schema.features({"top": (16, 24), "wrist": (20, 16)}, 5, 3, video=False)

    def record(dataset: LeRobotDataset, episode: Episode) -> None:
        for t in range(episode.steps):
            frame = {key: np.zeros(f["shape"], f["dtype"]) for key, f in columns.items() if f["shape"] == (1,)}
            frame |= {f"observation.images.{camera}": pictures[t] for camera, pictures in episode.images.items()}
            frame |= {
                "observation.state": episode.state[t],
                "action": episode.action[t],
                "task": episode.task,
            }
            dataset.add_frame(frame | {"proposed_action": episode.action[t]})
        dataset.save_episode()

    root, episodes = tmp_path / "recorded", [make_episode(i, steps=2 + i) for i in range(4)]
    recorder = LeRobotDataset.create("local/store", 20, columns, root=root)
    record(recorder, episodes[0])
    record(recorder, episodes[1])  # both in one file
    recorder.finalize()

    store = ExperienceStore.open(root)
    assert store.append(episodes[2]) == 2
    recorder = LeRobotDataset.resume("local/store", root=root)
    record(recorder, episodes[3])
    recorder.finalize()

    store = ExperienceStore.open(root)
    np.testing.assert_array_equal(store.columns().action, np.concatenate([e.action for e in episodes]))
    assert len({store.episode_digest(i) for i in range(4)}) == 4
    for i, episode in enumerate(episodes):
        np.testing.assert_array_equal(store.pictures(i)["wrist"], episode.images["wrist"])
    assert not (root / "quarantine").exists()


def in_a_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; its pid. It never returns into pytest."""
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("moves", range(7))
def test_death_between_any_two_steps_of_a_commit_keeps_the_store_whole(
    store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """A commit moves data, meta/episodes, meta/checksums, tasks (for a new one), stats and info."""
    kept = [make_episode(i) for i in range(2)]
    for episode in kept:
        store.append(episode)

    def die_after_some_moves() -> None:
        replace, left = os.replace, iter(range(moves))

        def replace_or_die(source: Path, target: Path) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        mine = ExperienceStore.open(store.root)
        monkeypatch.setattr(os, "replace", replace_or_die)
        mine.append(make_episode(2, task="a new task"))
        os.kill(os.getpid(), signal.SIGKILL)

    store.close()
    _, status = os.waitpid(in_a_child(die_after_some_moves), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL

    expected = kept if moves < 6 else [*kept, make_episode(2, task="a new task")]
    if moves == 3:  # LeRobot can read what nobody has tidied yet
        assert len(load_with_lerobot(store)) == 12
    again = ExperienceStore.open(store.root)
    check_frames(again.columns(), expected)
    counted = json.loads((again.root / "meta/stats.json").read_text())["action"]["count"]
    assert counted == [again.num_frames]
    again.append(make_episode(3, task="another task"))
    check_frames(ExperienceStore.open(store.root).columns(), [*expected, make_episode(3, task="another task")])
    dataset = load_with_lerobot(again)
    assert len(dataset) == again.num_frames
    assert dataset[len(dataset) - 1]["task"] == "another task"
    assert dataset[0]["task"] == kept[0].task


def test_killed_recorder_loses_no_committed_episode(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    store.close()
    reader, writer = os.pipe()

    def append_for_ever() -> None:
        mine = ExperienceStore.open(store.root)
        while True:
            os.write(writer, bytes([mine.append(make_episode(mine.num_episodes))]))

    promised = 0
    for delay in (0.0, 0.02, 0.05):
        pid = in_a_child(append_for_ever)
        promised = os.read(reader, 1)[0] + 1
        promised = max(promised, os.read(reader, 1)[0] + 1)
        time.sleep(delay)  # somewhere in the next append
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            promised = max([promised, *(index + 1 for index in os.read(reader, 100))])
        os.set_blocking(reader, True)
        again = ExperienceStore.open(store.root)
        again.close()
        assert again.num_episodes >= promised
    check_frames(again.columns(), [make_episode(i) for i in range(again.num_episodes)])
    assert len(load_with_lerobot(again)) == again.num_frames


def test_leftovers_are_moved_aside_with_one_line(
    store: ExperienceStore, make_episode: MakeEpisode, capsys: pytest.CaptureFixture[str]
) -> None:
    store.append(make_episode(0))
    half = [
        store.root / name for name in ("data/chunk-000/file-001.parquet", "meta/episodes/chunk-000/file-001.parquet")
    ]
    for path in half:
        path.write_bytes(b"PAR1 half a file")
    again = ExperienceStore.open(store.root)
    assert capsys.readouterr().out.count("\n") == 1
    check_frames(again.columns(), [make_episode(0)])
    for path in half:
        assert not path.exists()
        moved = store.root / "quarantine/000" / path.relative_to(store.root)
        assert moved.read_bytes() == b"PAR1 half a file"
    assert len(load_with_lerobot(again)) == 6
    ExperienceStore.open(store.root)
    assert capsys.readouterr().out == ""


def test_missing_committed_file_is_named_and_nothing_is_moved(
    store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    store.append(make_episode(0))
    store.append(make_episode(1))
    (store.root / "data/chunk-000/file-000.parquet").rename(store.root / "data/chunk-000/file-009.parquet")
    before = files(store.root)
    with pytest.raises(ValueError, match=r"lacks 1 files.*data/chunk-000/file-000\.parquet"):
        ExperienceStore.open(store.root)
    assert files(store.root) == before


@pytest.mark.parametrize("key", ["next.success", "has_proposal", "observation.state"])
def test_missing_column_is_named(store: ExperienceStore, key: str) -> None:
    path = store.root / "meta/info.json"
    info = json.loads(path.read_text())
    del info["features"][key]
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf"no column '{key}'.*ExperienceStore\.create"):
        ExperienceStore.open(store.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"top": (16, 24)}}, r"cameras \['top'\], the store \['top', 'wrist'\]"),
        ({"cameras": {"top": (16, 25), "wrist": (20, 16)}}, r"camera 'top' gave uint8 \(6, 16, 25, 3\)"),
        ({"action": np.zeros((6, 4), np.float32)}, r"action has shape \(6, 4\)"),
        ({"state": np.zeros((6, 4), np.float32)}, r"state has shape \(6, 4\)"),
        ({"proposed_action": np.array([[0, np.nan, 0]] * 6, np.float32)}, "finite, or NaN throughout"),
        ({"reward": np.full(6, np.nan, np.float32)}, "reward"),
    ],
)
def test_episode_that_does_not_fit_is_refused_and_nothing_written(
    store: ExperienceStore, make_episode: MakeEpisode, changes: dict, message: str
) -> None:
    before = files(store.root)
    with pytest.raises(ValueError, match=message):
        store.append(make_episode(**changes))
    assert files(store.root) == before
    assert store.num_episodes == 0


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"top": np.zeros((48, 32, 3), np.uint8)},
            r"camera 'top' gave uint8 \(48, 32, 3\), the store needs uint8 \(48, 64, 3",
        ),
        ({"top": np.zeros((48, 64, 3), np.float32)}, r"camera 'top' gave float32 \(48, 64, 3\)"),
        ({"left": np.zeros((48, 64, 3), np.uint8)}, r"pictures of \['left'\], the store needs \['top'\]"),
    ],
)
def test_picture_that_does_not_fit_is_refused_as_it_comes(
    tmp_path: Path, make_episode: MakeEpisode, video: bool, wrong: dict, message: str
) -> None:
    root, size = tmp_path / "store", {"top": (48, 64)}
    store = ExperienceStore.create(root, cameras=size, state_dim=5, action_dim=3, fps=20, video=video)
    episode = make_episode(0, steps=2, cameras=size)
    with store.begin() as pictures:
        pictures.add({"top": episode.images["top"][0]})
        with pytest.raises(ValueError, match=message):
            pictures.add(wrong)
        pictures.add({"top": episode.images["top"][1]})  # nothing of the wrong one was taken
        assert store.append(replace(episode, images={}), pictures) == 0
    assert store.pictures(0)["top"].shape == (2, 48, 64, 3)


def test_video_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    sizes = {"state_dim": 5, "action_dim": 3, "fps": 20}
    with pytest.raises(ValueError, match="camera 'top' of 64 x 24 pixels is too narrow for a video, 32 are needed"):
        ExperienceStore.create(tmp_path / "store", cameras={"top": (64, 24)}, **sizes, video=True)
    assert not list(tmp_path.iterdir())
    ExperienceStore.create(tmp_path / "store", cameras={"top": (64, 24)}, **sizes)


def test_failed_append_can_be_repeated(
    store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = os.replace, iter(range(2))

    def replace_until_full(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise OSError("No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_full)
        with pytest.raises(OSError, match="No space"):
            store.append(make_episode(0))
    assert store.append(make_episode(1)) == 0
    check_frames(ExperienceStore.open(store.root).columns(), [make_episode(1)])


def test_second_appending_store_of_a_process_is_refused(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    other = ExperienceStore.open(store.root)
    other.append(make_episode(0))
    with pytest.raises(ValueError, match="something else appended; open it again"):
        store.append(make_episode(1))


def test_folder_that_holds_something_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty; name another folder"):
        ExperienceStore.create(tmp_path, cameras={"top": (8, 8)}, state_dim=1, action_dim=1, fps=10)
    with pytest.raises(ValueError, match=r"no store.*ExperienceStore\.create"):
        ExperienceStore.open(tmp_path)


def test_one_dimensional_state_and_action_keep_their_axis(tmp_path: Path, make_episode: MakeEpisode) -> None:
    store = ExperienceStore.create(
        tmp_path / "one", cameras={"top": (16, 24), "wrist": (20, 16)}, state_dim=1, action_dim=1, fps=10
    )
    column = np.arange(6, dtype=np.float32)[:, None]
    episode = make_episode(state=column, action=-column, proposed_action=np.full((6, 1), np.nan, np.float32))
    store.append(episode)
    check_frames(ExperienceStore.open(store.root).columns(), [episode])


@pytest.mark.parametrize("video", [False, True])
def test_store_without_cameras_is_a_dataset_like_any_other(
    tmp_path: Path, make_episode: MakeEpisode, video: bool
) -> None:
    store = ExperienceStore.create(tmp_path / "blind", cameras={}, state_dim=5, action_dim=3, fps=20, video=video)
    episodes = [make_episode(seed, images={}) for seed in range(3)]
    for episode in episodes[:2]:
        store.append(episode)
    again = ExperienceStore.open(store.root)
    again.append(episodes[2])
    assert again.cameras == {}
    assert again.pictures(0) == {}
    check_frames(again.columns(), episodes)
    dataset = LeRobotDataset("local/blind", root=store.root)
    assert len(dataset) == sum(episode.steps for episode in episodes)
    assert dataset.meta.camera_keys == []
    np.testing.assert_array_equal(dataset[1]["observation.state"], episodes[0].state[1])
    with pytest.raises(ValueError, match=r"the episode has cameras \['top', 'wrist'\], the store \[\]"):
        again.append(make_episode(3))
