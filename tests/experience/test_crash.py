"""What is left when the process ends in the middle of things: at every write of a commit, and wherever chance has it."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience import compact as compaction
from aloe.experience.compact import compact
from aloe.experience.labels import Label, undo_label, write_label
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]
CAMERAS = {"top": (8, 8)}
DIED = 77


def in_a_child(work: Callable[[], None]) -> int:
    """Exit code of `work` in a process of its own: 0, or what it left with."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class WritePoints:
    """Ends the process at one of the points where it is about to change the disk: files opened for writing, folders made
    and removed, links, renames, a compaction's exchange, and each fsync. What Arrow and the video encoder write lies
    between two of them."""

    def __init__(self, root: Path) -> None:
        self._root, self.seen, self._last = str(root), [], None
        sys.addaudithook(self._hear)
        fsync, exchange = os.fsync, compaction.exchange

        def exchange_or_die(one: Path, other: Path) -> None:
            self._meet(f"exchange {one}")
            exchange(one, other)

        compaction.exchange = exchange_or_die

        def fsync_or_die(handle: int) -> None:
            self._meet("fsync " + os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        os.fsync = fsync_or_die

    def die_at(self, number: int) -> None:
        self.seen, self._last = [], number

    def _hear(self, event: str, args: tuple) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")
        if event == "open":
            writes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and (self._root in str(args[0]) or self._root in str(args[-1])):
            self._meet(f"{event} {args[1] if event == 'os.rename' else args[0]}")

    def _meet(self, point: str) -> None:
        if self._last is not None and len(self.seen) == self._last:
            os._exit(DIED)
        self.seen.append(point)


@pytest.fixture
def episode(make_episode: MakeEpisode) -> Callable[..., Episode]:
    return lambda seed, **changes: make_episode(seed, steps=3, cameras=CAMERAS, **changes)


def check(root: Path, expected: list[Episode], lerobot: bool = True) -> None:
    """The store holds just these episodes, undamaged, and LeRobot agrees (which takes ten times as long to find out)."""
    with ExperienceStore.open(root) as store:
        frames = store.columns()
        assert list(store.verify()) == []
        assert all(store.has_checksums(index) for index in range(len(expected)))
    np.testing.assert_array_equal(frames.seed[frames.step == 0], [episode.seed for episode in expected])
    np.testing.assert_array_equal(frames.action, np.concatenate([episode.action for episode in expected]))
    assert [frames.tasks[i] for i in frames.task_index[frames.step == 0]] == [episode.task for episode in expected]
    if lerobot:
        check_lerobot(root, expected)


def check_lerobot(root: Path, expected: list[Episode]) -> None:
    """LeRobot opens the folder as it is and reads the committed episodes."""
    dataset = LeRobotDataset("local/store", root=root)
    assert (dataset.num_episodes, len(dataset)) == (len(expected), sum(e.steps for e in expected))
    start = 0
    for index, episode in enumerate(expected):
        item = dataset[start]
        assert (item["episode_index"].item(), item["task"]) == (index, episode.task)
        np.testing.assert_array_equal(item["action"], episode.action[0])
        start += episode.steps


def write_points(root: Path, work: Callable[[], object], log: Path) -> list[str]:
    """What `work` is about to change on the disk, one point after the other, tried out on a copy."""

    def note() -> None:
        points = WritePoints(root)
        work()
        log.write_text("\n".join(points.seen))

    assert in_a_child(note) == 0
    return log.read_text().splitlines()


@pytest.mark.slow
def test_process_that_ends_at_any_write_of_a_commit_loses_nothing_committed(tmp_path: Path, episode) -> None:
    root, spare = tmp_path / "store", tmp_path / "spare"
    kept, new = [episode(0), episode(1)], episode(2, task="a new task")
    with ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20) as store:
        for one in kept:
            store.append(one)
    shutil.copytree(root, spare)
    points = write_points(root, lambda: ExperienceStore.open(root).append(new), tmp_path / "points")
    (commit,) = [i for i, point in enumerate(points) if point == f"os.rename {root}/meta/info.json"]
    first_move = next(i for i, point in enumerate(points) if point.startswith("os.rename"))
    # Six files are synced and moved: data, row, checksums, tasks, stats, info.
    assert sum(point.startswith("fsync") for point in points[:commit]) >= 6
    assert points[commit + 1] == f"fsync {root}/meta"
    assert len(points) > 25

    def die(number: int) -> None:
        trap = WritePoints(root)
        trap.die_at(number)
        ExperienceStore.open(root).append(new)

    for number in range(len(points)):
        shutil.rmtree(root)
        shutil.copytree(spare, root)
        assert in_a_child(lambda number=number: die(number)) == DIED, points[number]
        expected = kept if number <= commit else [*kept, new]
        if first_move <= number <= commit + 1:
            check_lerobot(root, expected)  # before anybody has tidied up
        np.testing.assert_array_equal(
            ExperienceStore.read(root).columns().action, np.concatenate([e.action for e in expected]), points[number]
        )
        check(root, expected, lerobot=number % 4 == 0)


@pytest.mark.slow
def test_process_that_ends_at_any_write_of_tidying_up_loses_nothing(tmp_path: Path, episode) -> None:
    root, spare = tmp_path / "store", tmp_path / "spare"
    kept, new = [episode(0), episode(1)], episode(2, task="a new task")
    with ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20) as store:
        for one in kept:
            store.append(one)
    points = write_points(root, lambda: ExperienceStore.open(root).append(new), tmp_path / "points")
    shutil.rmtree(root)  # played to its end; now up to the commit
    with ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20) as store:
        for one in kept:
            store.append(one)

    def die_at(number: int, work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            WritePoints(root).die_at(number)
            work()

        return run

    commit = points.index(f"os.rename {root}/meta/info.json")
    assert in_a_child(die_at(commit, lambda: ExperienceStore.open(root).append(new))) == DIED
    shutil.copytree(root, spare)
    points = write_points(root, lambda: ExperienceStore.open(root), tmp_path / "points")
    assert any("quarantine" in point for point in points)
    for number in range(len(points)):
        shutil.rmtree(root)
        shutil.copytree(spare, root)
        assert in_a_child(die_at(number, lambda: ExperienceStore.open(root))) == DIED
        check(root, kept, lerobot=False)
        aside = {path.relative_to(root).parts[2:] for path in root.glob("quarantine/*/**/*") if path.is_file()}
        assert ("data", "chunk-000", "file-002.parquet") in aside
        assert ("meta", "episodes", "chunk-000", "file-000.parquet") in aside
        other = episode(3)
        with ExperienceStore.open(root) as store:
            store.columns()  # what it knows of checksums now, it must not believe of the next episode
            store.append(other)
            assert len(store.columns()) == 9
        check(root, [*kept, other], lerobot=number % 4 == 0)


@pytest.mark.slow
def test_process_that_ends_at_any_write_of_a_compaction_leaves_the_old_or_the_new_store(
    tmp_path: Path, episode
) -> None:
    """Before anybody has tidied up, LeRobot reads it as well; and whatever is not in use is kept."""
    root, spare = tmp_path / "disk" / "store", tmp_path / "spare"
    kept = [episode(0), episode(1, task="a new task"), episode(2)]
    with ExperienceStore.create(root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20) as store:
        for one in kept:
            store.append(one)
        write_label(root, store.columns(), 1, Label(reward=-7.0))
    shutil.copytree(root.parent, spare)
    points = write_points(root.parent, lambda: compact(root), tmp_path / "points")
    (swap,) = [i for i, point in enumerate(points) if point.startswith("exchange")]
    (aside,) = [i for i, point in enumerate(points) if point.endswith("quarantine/000")]
    # Data, rows, checksums and all that stays are on the disk before, each in its folder; the swap itself is right after.
    assert sum(point.startswith("fsync") for point in points[:swap]) >= 12
    assert points[swap + 1] == f"fsync {root.parent}"

    def die(number: int) -> None:
        WritePoints(root.parent).die_at(number)
        compact(root)

    for number in range(len(points)):
        shutil.rmtree(root.parent)
        shutil.copytree(spare, root.parent)
        assert in_a_child(lambda number=number: die(number)) == DIED, points[number]
        assert len(list(root.glob("data/*/*"))) == (3 if number <= swap else 1), points[number]
        reader = ExperienceStore.read(root)
        assert (list(reader.verify()), reader.columns().reward[5]) == ([], -7.0)
        if number % 20 == 0 or abs(number - swap) < 3:
            check_lerobot(root, kept)
        check(root, kept, lerobot=False)
        assert os.listdir(root.parent) == ["store"]
        before = list(root.glob("quarantine/*/data/*/*"))
        assert number <= swap or len(before) == 3, points[number]
        if number % 10 == 0 or swap <= number <= aside:
            compact(root)
            other = episode(3)
            with ExperienceStore.open(root) as store:
                store.append(other)
            check(root, [*kept, other], lerobot=number % 20 == 0)


@pytest.mark.slow
def test_sigkill_of_a_recording_with_video_loses_no_committed_episode() -> None:
    command = [sys.executable, "benchmarks/store_kill.py", "--kills", "20", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "| 20 | 0 | 0 | 0 |" in found.stdout


@contextlib.contextmanager
def files_no_larger_than(size: int):
    """As on a full disk, but without one: the kernel refuses to let any file of this process grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_any_sequence_of_appends_labels_compactions_faults_and_deaths_keeps_what_was_committed(
    tmp_path: Path, episode
) -> None:
    """Against a model in memory: the episodes whose append returned, and their labels that hold."""
    number = 0

    class Store(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            nonlocal number
            number += 1
            self.root = tmp_path / f"disk-{number}" / "store"
            self.store = ExperienceStore.create(self.root, cameras=CAMERAS, state_dim=5, action_dim=3, fps=20)
            self.model: list[Episode] = []
            self.labels: dict[int, list[float]] = {}
            self.known: dict[int, float] = {}  # of the labels, what the open store knows: those when it was opened
            self.made = 0
            self.readers: list[tuple[ExperienceStore, int, dict[int, float]]] = []

        def next(self) -> Episode:
            self.made += 1
            return episode(self.made, task=f"task {self.made % 3}")

        def open(self) -> None:
            self.store.close()
            self.store = ExperienceStore.open(self.root)
            self.known = self.last_labels()

        def last_labels(self) -> dict[int, float]:
            return {index: rewards[-1] for index, rewards in self.labels.items() if rewards}

        def dies(self, point: int, work: Callable[[], object]) -> int:
            self.store.close()

            def die() -> None:
                WritePoints(self.root.parent).die_at(point)
                work()

            code = in_a_child(die)
            assert code in (0, DIED)
            return code

        @initialize()
        def begin(self) -> None:
            for _ in range(2):
                self.append()

        @rule()
        def append(self) -> None:
            one = self.next()
            assert self.store.append(one) == len(self.model)
            self.model.append(one)

        @rule(size=st.integers(1, 40_000))
        def append_on_a_full_disk(self, size: int) -> None:
            one = self.next()
            with contextlib.suppress(OSError), files_no_larger_than(size):
                self.store.append(one)
                self.model.append(one)

        @rule(point=st.integers(0, 45))
        def die_in_an_append(self, point: int) -> None:
            one = self.next()
            code = self.dies(point, lambda: ExperienceStore.open(self.root).append(one))
            self.open()
            assert self.store.num_episodes - len(self.model) in ((1,) if code == 0 else (0, 1))
            if self.store.num_episodes > len(self.model):
                self.model.append(one)

        @precondition(lambda self: self.model)
        @rule(which=st.integers(0, 1), reward=st.integers(-9, -2))
        def label(self, which: int, reward: int) -> None:
            index = which % len(self.model)
            write_label(self.root, self.store.columns(), index, Label(reward=reward))
            self.labels.setdefault(index, []).append(reward)

        @precondition(lambda self: self.last_labels())
        @rule(which=st.integers(0, 1))
        def undo(self, which: int) -> None:
            index = sorted(self.last_labels())[which % len(self.last_labels())]
            assert undo_label(self.root, self.store.columns(), index).reward == self.labels[index].pop()
            self.open()

        @rule()
        def compact(self) -> None:
            self.store.close()
            compact(self.root)
            self.open()

        @rule(point=st.integers(0, 90))
        def die_in_a_compaction(self, point: int) -> None:
            self.dies(point, lambda: compact(self.root))
            self.open()

        @rule()
        def reopen(self) -> None:
            self.open()

        @precondition(lambda self: len(self.readers) < 3)
        @rule()
        def begin_to_read(self) -> None:
            self.readers.append((ExperienceStore.read(self.root), len(self.model), self.last_labels()))

        @rule()
        def verify(self) -> None:
            assert list(self.store.verify()) == []

        @invariant()
        def holds_what_the_model_holds(self) -> None:
            for store, episodes, labels in [(self.store, len(self.model), self.known), *self.readers]:
                assert store.num_episodes == episodes
                frames, kept = store.columns(), self.model[:episodes]
                np.testing.assert_array_equal(
                    frames.action, np.concatenate([np.zeros((0, 3)), *(e.action for e in kept)])
                )
                rewards = frames.reward[2::3]  # of the last of three steps each
                np.testing.assert_array_equal(rewards, [labels.get(i, e.reward[-1]) for i, e in enumerate(kept)])

        def teardown(self) -> None:
            self.store.close()
            assert os.listdir(self.root.parent) == ["store"]
            if self.model:
                check(self.root, self.model, lerobot=number % 3 == 0)

    rounds = settings(
        max_examples=15,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink what fails would take many minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Store, settings=rounds)
