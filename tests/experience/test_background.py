"""Recording beside a control loop, with a real process that encodes real video, and real kills."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import StreamingVideoEncoder

from aloe.experience.background import BackgroundRecorder, RecordingError
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, NO_SEED, Episode, Source

MakeEpisode = Callable[..., Episode]
CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
TASK = "put the peg into the hole"


def smooth(steps: int, first: int, size: tuple[int, int]) -> np.ndarray:
    """A gradient whose brightness says which step it is: neighbouring pictures are 10 apart."""
    h, w = size
    gradient = np.linspace(0, 60, w)[None, :, None] + np.zeros((h, w, 3))
    return np.stack([gradient + 10 * ((first + t) % 19) for t in range(steps)]).astype(np.uint8)


@pytest.fixture
def episode(make_episode: MakeEpisode) -> Callable[..., Episode]:
    def make(seed: int, steps: int) -> Episode:
        images = {camera: smooth(steps, seed * 3, size) for camera, size in CAMERAS.items()}
        return make_episode(seed, steps=steps, cameras=CAMERAS, images=images)

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20, video=True).close()
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, BackgroundRecorder]]:
    """For tests that leave it open: the other process takes seconds to start."""
    root = tmp_path_factory.mktemp("shared") / "store"
    ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20, video=True).close()
    with BackgroundRecorder(root) as recorder:
        yield root, recorder


def feed(recorder: BackgroundRecorder, episode: Episode, first: int = 0, end: int | None = None) -> None:
    for t in range(first, end or episode.steps):
        recorder.add(
            {camera: pictures[t] for camera, pictures in episode.images.items()},
            episode.state[t],
            episode.action[t],
            proposed_action=episode.proposed_action[t],
            source=Source(episode.source[t]),
            policy_version=int(episode.policy_version[t]),
        )


def feed_slowly(recorder: BackgroundRecorder, episode: Episode) -> None:
    for t in range(episode.steps):
        feed(recorder, episode, t, t + 1)
        time.sleep(0.01)


def record(recorder: BackgroundRecorder, episode: Episode) -> None:
    feed(recorder, episode)
    recorder.finish(task=episode.task, success=True, seed=episode.seed)


def check(root: Path, expected: list[Episode]) -> None:
    """The newest episodes of the store are these, undamaged, and LeRobot agrees."""
    store = ExperienceStore.read(root)
    assert list(store.verify()) == []
    frames, first = store.columns(), store.num_episodes - len(expected)
    frames_from = int(np.sum(store.lengths[:first]))
    assert store.lengths[first:] == [one.steps for one in expected]
    for name in ("state", "action", "proposed_action", "source", "policy_version", "reward", "terminated", "success"):
        given = np.concatenate([getattr(one, name) for one in expected])
        np.testing.assert_array_equal(getattr(frames, name)[frames_from:], given, name)
    dataset = LeRobotDataset("local/store", root=root)
    assert (dataset.num_episodes, len(dataset)) == (store.num_episodes, len(frames))
    row = frames_from
    for index, one in enumerate(expected, first):
        decoded = store.pictures(index)
        for camera, pictures in one.images.items():
            assert decoded[camera].shape == pictures.shape
            # Half the distance of neighbouring steps: none was taken for another.
            assert np.abs(decoded[camera].astype(int) - pictures).mean((1, 2, 3)).max() < 5
        item = dataset[row]
        np.testing.assert_array_equal(item["action"], one.action[0])
        top = item["observation.images.top"].permute(1, 2, 0).numpy() * 255
        assert np.abs(top - one.images["top"][0]).mean() < 5
        row += one.steps


def test_episodes_of_any_length_come_back_as_they_were_given(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]
) -> None:
    root, recorder = shared
    episodes = [episode(0, 6), episode(1, 1), episode(2, 40)]
    record(recorder, episodes[0])
    feed(recorder, episode(7, 5))
    recorder.discard()
    recorder.discard()  # nothing is there
    for one in episodes[1:]:
        record(recorder, one)
    recorder.flush()
    assert (recorder.num_committed, recorder.backlog) == (3, 0)
    check(root, episodes)
    assert ExperienceStore.read(root).columns().seed[[0, 6, 7]].tolist() == [1000, 1001, 1002]
    assert not list(root.glob("staging-*"))


def test_outcomes_and_defaults(shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]) -> None:
    root, recorder = shared
    one = episode(3, 3)
    before = recorder.num_committed
    for success, timeout in ((True, False), (False, False), (False, True)):
        for t in range(3):
            recorder.add({camera: pictures[t] for camera, pictures in one.images.items()}, one.state[t], one.action[t])
        recorder.finish(task="another task", success=success, timeout=timeout)
    recorder.flush()
    frames = ExperienceStore.read(root).columns()
    last = [3 * k + 2 for k in range(3)]
    rows = slice(len(frames) - 9, None)
    assert recorder.num_committed == before + 3
    assert frames.success[rows][last].tolist() == [True, False, False]
    assert frames.reward[rows].tolist() == [-1, -1, 0, *[-1] * 6]
    assert frames.terminated[rows][last].tolist() == [True, True, False]
    assert frames.truncated[rows][last].tolist() == [False, False, True]
    assert frames.terminated[rows].sum() == 2
    assert np.isnan(frames.proposed_action[rows]).all()
    assert set(frames.source[rows]) == {Source.DEMO}
    assert set(frames.policy_version[rows]) == {NO_POLICY}
    assert set(frames.seed[rows]) == {NO_SEED}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"top": np.zeros((48, 64, 3), np.uint8)}}, r"pictures of \['top'\], the store needs"),
        ({"top": np.zeros((64, 48, 3), np.uint8)}, r"camera 'top' gave uint8 \(64, 48, 3\), the store needs uint8"),
        ({"top": np.zeros((48, 64, 3))}, r"camera 'top' gave float64 \(48, 64, 3\)"),
        ({"action": np.array([0, np.nan, 0])}, "action holds NaN"),
        ({"state": np.array([0, 0, 0, 0, np.inf])}, "state holds NaN or infinite"),
        ({"state": np.zeros(4)}, r"state has shape \(4,\), the store needs \(5,\)"),
        ({"proposed_action": np.array([0, np.nan, 0])}, "proposed_action holds NaN"),
    ],
)
def test_step_that_does_not_fit_loses_its_episode_and_no_other(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode], change: dict, message: str
) -> None:
    root, recorder = shared
    one, other = episode(4, 4), episode(5, 2)
    record(recorder, one)
    recorder.flush()
    committed = recorder.num_committed
    step = {"state": one.state[0], "action": one.action[0]} | {"images": {c: p[0] for c, p in one.images.items()}}
    for way_out in (recorder.discard, lambda: recorder.finish(task=TASK, success=True)):
        feed(recorder, episode(6, 3))
        wrong = step | {name: value for name, value in change.items() if name != "top"}
        if "top" in change:
            wrong["images"] = step["images"] | {"top": change["top"]}
        with pytest.raises(ValueError, match=rf"episode \d+ of this recording is lost: step 3: .*{message}"):
            recorder.add(**wrong)
        for _ in range(2):  # a loop that goes on does not begin another episode in the middle of this one
            with pytest.raises(RecordingError, match=message):
                recorder.add(**step)
        if way_out == recorder.discard:
            way_out()
        else:
            with pytest.raises(RecordingError, match=message):
                way_out()
    record(recorder, other)
    recorder.flush()
    assert recorder.num_committed == committed + 1
    check(root, [one, other])


def test_episode_without_steps_or_with_two_ends_is_refused(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]
) -> None:
    root, recorder = shared
    with pytest.raises(ValueError, match="at least one step"):
        recorder.finish(task=TASK, success=True)
    feed(recorder, episode(8, 2))
    with pytest.raises(ValueError, match="timeout only without success"):
        recorder.finish(task=TASK, success=True, timeout=True)
    recorder.finish(task=TASK, success=True)
    recorder.flush()
    assert ExperienceStore.read(root).lengths[-1] == 2


def test_files_that_may_not_grow_lose_their_episodes_only(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]
) -> None:
    """As on a full disk: while the pictures are encoded, and when the episode is committed."""
    root, recorder = shared
    one, other = episode(9, 5), episode(10, 5)
    record(recorder, one)
    recorder.flush()
    committed, unlimited = recorder.num_committed, resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE)
    try:
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (2000, unlimited[1]))
        record(recorder, episode(11, 5))
        with pytest.raises(RecordingError, match=r"episode \d+ of this recording is lost: .*(encoded|written)"):
            recorder.flush()
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
        long = episode(12, 300)
        with pytest.raises(RecordingError, match=r"is lost: .*camera 'top' could not be encoded: File too large"):
            feed_slowly(recorder, long)  # until the encoder has something to write
        recorder.discard()
    finally:
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, unlimited)
    record(recorder, other)
    recorder.flush()
    assert recorder.num_committed == committed + 1
    check(root, [one, other])


def test_loss_of_an_earlier_episode_leaves_the_one_in_progress_whole(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]
) -> None:
    root, recorder = shared
    one = episode(13, 4)
    feed(recorder, episode(14, 2))
    recorder.flush()
    (root / ".writer.json").rename(root / "elsewhere")
    recorder.finish(task=TASK, success=True)
    while list(root.glob("staging-*")):  # removed when the loss was told
        time.sleep(0.01)
    (root / "elsewhere").rename(root / ".writer.json")
    step = ({camera: pictures[0] for camera, pictures in one.images.items()}, one.state[0], one.action[0])
    with pytest.raises(RecordingError, match=r"is lost: .*has vanished or was replaced"):
        recorder.add(*step)
    for _ in range(3):  # the call that told of it had done its work
        recorder.add(*step)
    recorder.finish(task=TASK, success=True)
    recorder.flush()
    store = ExperienceStore.read(root)
    np.testing.assert_array_equal(store.columns().action[-4:], np.stack([one.action[0]] * 4))
    assert store.lengths[-1] == 4


def test_process_that_is_killed_leaves_what_it_had_committed(root: Path, episode: Callable[..., Episode]) -> None:
    one, two, other = episode(0, 5), episode(1, 200), episode(2, 3)
    with BackgroundRecorder(root) as recorder:
        record(recorder, one)
        recorder.flush()
        feed(recorder, episode(3, 2))
        os.kill(recorder.pid, signal.SIGKILL)
        died = r"died \(signal 9\).*episodes \[1\] of this recording.*open another"
        with pytest.raises(RecordingError, match=died):
            feed_slowly(recorder, two)  # a step or two may still go through before the kernel has done it
        for call in (recorder.discard, recorder.flush, lambda: recorder.finish(task=TASK, success=True)):
            with pytest.raises(RecordingError, match=died):
                call()
    with pytest.raises(RecordingError, match=died):
        feed(recorder, one)
    with BackgroundRecorder(root) as recorder:
        record(recorder, other)
        with pytest.raises(ValueError, match=rf"is being written by process {recorder.pid}"):
            ExperienceStore.open(root)
    check(root, [one, other])
    with pytest.raises(RecordingError, match="closed; open another"):
        feed(recorder, one)


LOOP = """
import sys, time
import numpy as np
from aloe.experience.background import BackgroundRecorder
with BackgroundRecorder(sys.argv[1]) as recorder:
    pictures = {"top": np.zeros((48, 64, 3), np.uint8), "wrist": np.zeros((64, 64, 3), np.uint8)}
    for episode in range(4):
        for t in range(10):
            recorder.add(pictures, np.full(5, t), np.full(3, episode))
        if episode < 3:
            recorder.finish(task="press", success=True)
    print(recorder.pid, flush=True)
    time.sleep(600)
"""


def test_loop_that_is_killed_leaves_every_episode_that_it_had_finished(root: Path) -> None:
    loop = subprocess.Popen([sys.executable, "-c", LOOP, str(root)], stdout=subprocess.PIPE)
    assert loop.stdout is not None
    pid = int(loop.stdout.readline())
    loop.kill()
    loop.communicate()
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        time.sleep(0.02)
    with ExperienceStore.open(root) as store:
        assert store.lengths == [10, 10, 10]
        assert store.columns().action[::10, 0].tolist() == [0, 1, 2]
        assert list(store.verify()) == []
    assert not (root / "quarantine").exists()


def test_encoder_that_falls_behind_loses_the_episode_rather_than_steps_of_it(
    tmp_path: Path, make_episode: MakeEpisode
) -> None:
    root = tmp_path / "png"
    ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20).close()
    one = make_episode(0, steps=4, cameras=CAMERAS)
    with BackgroundRecorder(root, buffer_seconds=0.15) as recorder:
        os.kill(recorder.pid, signal.SIGSTOP)
        with pytest.raises(RecordingError, match=r"episode 0 .*the encoder is 3 steps behind, and the buffer is full"):
            feed(recorder, one)
        os.kill(recorder.pid, signal.SIGCONT)
        recorder.discard()
        recorder.flush()
        for t in range(one.steps):
            feed(recorder, one, t, t + 1)
            recorder.flush()
        recorder.finish(task=TASK, success=True)
    store = ExperienceStore.read(root)
    assert store.lengths == [4]
    np.testing.assert_array_equal(store.pictures(0)["top"], one.images["top"])


def test_episode_that_nobody_finished_is_said_to_be_lost(root: Path, episode: Callable[..., Episode]) -> None:
    unfinished = "episode 0 of this recording is lost: it was neither finished nor discarded"
    with pytest.raises(KeyError) as raised, BackgroundRecorder(root) as recorder:
        feed_and_fail(recorder, episode(0, 2))
    assert unfinished in raised.value.__notes__[0]
    recorder = BackgroundRecorder(root)
    feed(recorder, episode(0, 2))
    with pytest.raises(RecordingError, match=unfinished):
        recorder.close()
    with ExperienceStore.open(root) as store:
        assert store.num_episodes == 0


def feed_and_fail(recorder: BackgroundRecorder, episode: Episode) -> None:
    feed(recorder, episode)
    raise KeyError("the loop's own")


@pytest.mark.slow
def test_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no store"):
        BackgroundRecorder(tmp_path)


def test_encoder_takes_no_real_time_priority(
    shared: tuple[Path, BackgroundRecorder], episode: Callable[..., Episode]
) -> None:
    """SVT-AV1 gives it to itself where root records, and would go before the loop."""
    recorder, one = shared[1], episode(0, 4)
    feed(recorder, one)
    while recorder.backlog:
        time.sleep(0.01)
    threads = [int(name) for name in os.listdir(f"/proc/{recorder.pid}/task")]
    policies = {os.sched_getscheduler(thread) for thread in threads}
    recorder.finish(task=one.task, success=True)
    recorder.flush()
    assert len(threads) > 10  # the encoders' are among them
    assert policies <= {os.SCHED_OTHER, os.SCHED_BATCH}


def test_videos_and_statistics_are_lerobots(tmp_path: Path) -> None:
    size = (64, 96)
    ExperienceStore.create(tmp_path / "s", cameras={"top": size}, state_dim=5, action_dim=3, fps=20, video=True).close()
    seen = np.random.default_rng(0).integers(0, 200, (30, *size, 3), np.uint8)
    encoder = StreamingVideoEncoder(20, RGBEncoderConfig(), queue_maxsize=31)
    encoder.start_episode(["top"], tmp_path)
    with ExperienceStore.open(tmp_path / "s") as store, store.begin() as pictures:
        for picture in seen:
            pictures.add({"top": picture})
            encoder.feed_frame("top", picture)
        ours = pictures.finish()["observation.images.top"].read_bytes()
        stats = pictures.stats()["observation.images.top"]
    assert ours == encoder.finish_episode()["top"][0].read_bytes()
    assert not list(store.root.glob("staging-*"))
    theirs = get_feature_stats(seen.transpose(0, 3, 1, 2), axis=(0, 2, 3), keepdims=True)
    assert stats.keys() == theirs.keys()
    assert stats["count"].tolist() == theirs["count"].tolist() == [30]
    for name in stats.keys() - {"count"}:
        assert stats[name].shape == (3, 1, 1)
        np.testing.assert_allclose(stats[name], theirs[name][0] / 255, atol=1 / 255, err_msg=name)
