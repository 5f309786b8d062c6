"""Who may write a store, and what the others see meanwhile."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]


@contextmanager
def another_process(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """`work` in a process of its own while the block runs: its pid, and what it writes to the pipe that it is given."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            work(writer)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        yield pid, reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def test_second_writer_is_refused_at_once_and_told_who_writes(
    store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    store.append(make_episode(0))
    store.close()

    def write(pipe: int) -> None:
        mine = ExperienceStore.open(store.root)
        os.write(pipe, b".")
        signal.pause()
        mine.close()

    with another_process(write) as (pid, pipe):
        assert os.read(pipe, 1) == b"."
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"is being written by process {pid} on .+ since 20.+only read the store"):
            ExperienceStore.open(store.root)
        assert time.monotonic() - start < 5
        assert ExperienceStore.read(store.root).num_episodes == 1
    # The kernel has lifted the lock of the process that was killed.
    with ExperienceStore.open(store.root) as mine:
        assert mine.append(make_episode(1)) == 1


def test_lock_is_not_kept_by_a_child_that_outlives_the_writer(store: ExperienceStore) -> None:
    with another_process(lambda pipe: os.write(pipe, b".") and None) as (_, pipe):
        os.read(pipe, 1)  # the child is there, and was forked with the store open
        store.close()

        def write(pipe: int) -> None:
            ExperienceStore.open(store.root)
            os.write(pipe, b"!")

        with another_process(write) as (_, other):
            assert os.read(other, 1) == b"!"


def test_store_that_was_forked_along_does_not_write(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    def write(pipe: int) -> None:
        with pytest.raises(ValueError, match=rf"was opened by process {os.getppid()}; open it again"):
            store.append(make_episode(0))
        os.write(pipe, b".")

    with another_process(write) as (_, pipe):
        assert os.read(pipe, 1) == b"."
    assert store.append(make_episode(0)) == 0


def test_stores_of_one_process_share_its_lock(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    again = ExperienceStore.open(store.root)
    store.close()
    assert again.append(make_episode(0)) == 0
    with pytest.raises(ValueError, match=r"open for reading; open it with ExperienceStore\.open"):
        store.append(make_episode(1))


def test_reader_keeps_the_snapshot_that_it_opened_while_a_writer_appends(
    store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    kept = [make_episode(i) for i in range(2)]
    for episode in kept:
        store.append(episode)
    store.close()
    reader = ExperienceStore.read(store.root)

    def write(pipe: int) -> None:
        with ExperienceStore.open(store.root) as mine:
            while mine.num_episodes < 12:
                mine.append(make_episode(mine.num_episodes, task=f"task {mine.num_episodes}"))
                os.write(pipe, b".")

    with another_process(write) as (_, pipe):
        for told in range(3, 13):  # each byte says that one more is committed; there may be more already
            os.read(pipe, 1)
            newer = ExperienceStore.read(store.root)
            seen = newer.num_episodes
            assert seen >= told
            np.testing.assert_array_equal(newer.columns().step, np.tile(np.arange(6), seen))
            assert len(newer.tasks) == seen - 1  # the two kept ones share a task
    assert (reader.num_episodes, len(reader.tasks)) == (2, 1)
    np.testing.assert_array_equal(reader.columns().action, np.concatenate([e.action for e in kept]))
    np.testing.assert_array_equal(reader.pictures(1)["top"], kept[1].images["top"])


def test_reader_changes_nothing_not_even_leftovers(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    store.append(make_episode(0))
    store.close()
    leftover = store.root / "data/chunk-000/file-001.parquet"
    leftover.write_bytes(b"PAR1 half a file")

    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in store.root.rglob("*")}

    before = state()
    reader = ExperienceStore.read(store.root)
    assert (len(reader.columns()), list(reader.verify())) == (6, [])
    assert state() == before


def copy_rest(root: Path, copy: Path) -> None:
    """The second command of docs/store.md, without rsync."""
    for path in root.rglob("*"):
        if path.is_file() and path != root / "meta/info.json" and path.name != ".writer.json":
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def copy_info(root: Path, copy: Path) -> None:
    (copy / "meta").mkdir(parents=True, exist_ok=True)
    (copy / "meta/info.json").write_bytes((root / "meta/info.json").read_bytes())


def test_store_that_was_copied_while_it_was_written_is_whole_if_the_count_was_copied_first(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path: Path
) -> None:
    store.append(make_episode(0))
    copy = tmp_path / "copy"
    copy_info(store.root, copy)
    store.append(make_episode(1, task="another"))  # between the two
    store.append(make_episode(2))
    copy_rest(store.root, copy)
    with ExperienceStore.open(copy) as copied:
        np.testing.assert_array_equal(copied.columns().action, make_episode(0).action)
        assert list(copied.verify()) == []
        assert json.loads((copy / "meta/stats.json").read_text())["action"]["count"] == [6]
        assert copied.append(make_episode(1)) == 1


@pytest.mark.parametrize("rows_too", [False, True], ids=["data are missing", "rows are missing"])
def test_copy_whose_count_is_newer_than_its_data_says_how_to_copy(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path: Path, rows_too: bool
) -> None:
    store.append(make_episode(0))
    copy = tmp_path / "copy"
    copy_rest(store.root, copy)
    store.append(make_episode(1))
    copy_info(store.root, copy)
    if not rows_too:
        rows = "meta/episodes/chunk-000/file-000.parquet"
        (copy / rows).write_bytes((store.root / rows).read_bytes())
    with pytest.raises(ValueError, match=r"was it copied while it was written\? Copy it again, meta/info\.json first"):
        ExperienceStore.read(copy)
    copy_info(store.root, copy)
    copy_rest(store.root, copy)
    assert list(ExperienceStore.read(copy).verify()) == []


def test_recipe_of_the_docs_copies_with_rsync(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path: Path
) -> None:
    assert shutil.which("rsync"), "there is no rsync; make test installs it, or says how"
    recipe = (Path(__file__).parents[2] / "docs/store.md").read_text()
    lines = [line.strip() for line in recipe.splitlines() if line.startswith(("    mkdir", "    rsync"))]
    first, second, third = (
        shlex.split(line.replace("STORE", str(store.root)).replace("COPY", str(tmp_path / "copy"))) for line in lines
    )
    store.append(make_episode(0))
    (store.root / "staging-x").mkdir()
    subprocess.run(first, check=True)
    subprocess.run(second, check=True)
    store.append(make_episode(1))
    subprocess.run(third, check=True)
    assert not list((tmp_path / "copy").glob("staging-*"))
    np.testing.assert_array_equal(ExperienceStore.open(tmp_path / "copy").columns().action, make_episode(0).action)
