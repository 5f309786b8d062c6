import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aloe.experience import cache
from aloe.experience.cache import Cache, FeatureCache, FrameCache
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Index of every episode whose pictures are decoded, as it happens."""
    calls, pictures = [], ExperienceStore.pictures

    def counting(self: ExperienceStore, index: int) -> dict[str, np.ndarray]:
        calls.append(index)
        return pictures(self, index)

    monkeypatch.setattr(ExperienceStore, "pictures", counting)
    return calls


def fill(store: ExperienceStore, episodes: list[Episode]) -> None:
    for episode in episodes:
        store.append(episode)


def everything(frames: FrameCache, camera: str) -> np.ndarray:
    return frames.gather(camera, np.arange(sum(frames.store.lengths)))


def check_pictures(frames: FrameCache, episodes: list[Episode]) -> None:
    for camera in frames.store.cameras:
        np.testing.assert_array_equal(everything(frames, camera), np.concatenate([e.images[camera] for e in episodes]))


def change_episode(store: ExperienceStore, index: int) -> None:
    """Give an episode the pictures of its steps in reverse, as somebody who repairs a store without checksums might."""
    shutil.rmtree(store.root / "meta/checksums")
    path = store.root / f"data/chunk-000/file-{index:03d}.parquet"
    table = pq.read_table(path)
    key = "observation.images.top"
    column = table[key].combine_chunks()
    place = table.column_names.index(key)
    pq.write_table(table.set_column(place, table.schema.field(key), column[::-1]), path)


def test_cached_pictures_are_the_stores_and_each_is_decoded_once(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, decoded: list[int]
) -> None:
    episodes = [make_episode(0), make_episode(1, steps=3), make_episode(2, steps=4)]
    fill(store, episodes[:2])
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    with pytest.raises(ValueError, match=r"of 0 cached ones"):
        everything(frames, "top")
    assert frames.update() == 2
    check_pictures(frames, episodes[:2])

    store.append(episodes[2])
    assert frames.update() == 1
    assert frames.update() == 0
    check_pictures(frames, episodes)

    again = FrameCache(Cache(root=tmp_path / "cache"), ExperienceStore.open(store.root))
    assert again.update() == 0
    check_pictures(again, episodes)
    assert decoded == [0, 1, 2]


def test_gathered_rows_are_in_the_order_asked_for(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    fill(store, [make_episode(0), make_episode(1)])
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    frames.update()
    rows = frames.gather("wrist", np.array([7, 0, 7]))
    # Episode 0 has steps 0 to 5, so frame 7 is step 1 of episode 1.
    expected = [make_episode(1).images["wrist"][1], make_episode(0).images["wrist"][0]]
    np.testing.assert_array_equal(rows, [expected[0], expected[1], expected[0]])
    store.append(make_episode(2))
    with pytest.raises(ValueError, match=r"of 12 cached ones; call update\(\)"):
        frames.gather("wrist", np.array([12]))
    with pytest.raises(ValueError, match=r"call update\(\)"):
        frames.gather("wrist", np.array([-1]))


def test_changed_episode_is_never_served_stale(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, decoded: list[int]
) -> None:
    episodes = [make_episode(i) for i in range(3)]
    fill(store, episodes)
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    change_episode(store, 1)
    frames = FrameCache(Cache(root=tmp_path / "cache"), ExperienceStore.open(store.root))
    with pytest.raises(ValueError, match=r"of 0 cached ones"):
        everything(frames, "top")  # nothing unchecked
    assert frames.update() == 1
    expected = np.concatenate([episodes[0].images["top"], episodes[1].images["top"][::-1], episodes[2].images["top"]])
    np.testing.assert_array_equal(everything(frames, "top"), expected)
    assert decoded == [0, 1, 2, 1]


def test_interrupted_build_is_taken_up_where_it_stopped(
    tmp_path: Path,
    store: ExperienceStore,
    make_episode: MakeEpisode,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "_COMMIT_SECONDS", -1.0)  # commit every episode
    episodes = [make_episode(i) for i in range(3)]
    fill(store, episodes)
    pictures = ExperienceStore.pictures

    def fail_at_two(self: ExperienceStore, index: int) -> dict[str, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return pictures(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ExperienceStore, "pictures", fail_at_two)
        with pytest.raises(KeyboardInterrupt):
            FrameCache(Cache(root=tmp_path / "cache"), store).update()
    # As if it had died in the middle of writing: rows beyond what the index counts.
    (pack,) = (tmp_path / "cache").rglob("pack-*")
    with (pack / "top.bin").open("ab") as file:
        file.write(b"half a picture")
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    assert frames.update() == 1
    check_pictures(frames, episodes)
    assert decoded == [0, 1, 2]


def test_features_are_encoded_once_in_batches_for_each_key(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, decoded: list[int]
) -> None:
    episodes = [make_episode(0), make_episode(1, steps=3)]
    fill(store, episodes)
    batches = []

    def mean_colour(pictures: dict[str, np.ndarray]) -> np.ndarray:
        assert list(pictures) == ["top", "wrist"]
        batches.append(len(pictures["top"]))
        return np.stack([pictures[camera].mean((1, 2)) for camera in pictures], axis=1).astype(np.float16)

    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    features = FeatureCache(Cache(root=tmp_path / "cache"), "abc123", frames, shape=(3,))
    assert features.update(mean_colour, batch_size=4) == 2
    assert batches == [4, 2, 3]
    expected = np.concatenate(
        [np.stack([e.images[c].mean((1, 2)) for c in ("top", "wrist")], 1) for e in episodes]
    ).astype(np.float16)
    np.testing.assert_array_equal(features.gather(np.arange(9)), expected)
    np.testing.assert_array_equal(features.gather(np.array([8, 2])), expected[[8, 2]])

    assert FeatureCache(Cache(root=tmp_path / "cache"), "abc123", frames, shape=(3,)).update(mean_colour) == 0
    assert FeatureCache(Cache(root=tmp_path / "cache"), "other", frames, shape=(3,)).update(mean_colour) == 2
    assert decoded == [0, 1]
    with pytest.raises(ValueError, match=r"got shape \(6, 2, 3\), expected \(6, 2, 5\)"):
        FeatureCache(Cache(root=tmp_path / "cache"), "third", frames, shape=(5,)).update(mean_colour)
    with pytest.raises(ValueError, match="names a folder"):
        FeatureCache(Cache(root=tmp_path / "cache"), "../elsewhere", frames, shape=(3,))


def test_a_bound_that_holds_pictures_or_features_but_not_both_is_refused(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    fill(store, [make_episode(0)])
    # Pictures of 6 steps: 6 * 3 * (16 * 24 + 20 * 16) = 12672 bytes; features: 6 * 2 * 500 * 2 = 12000
    bounded = Cache(root=tmp_path / "cache", max_gb=20000e-9)
    frames = FrameCache(bounded, store)
    features = FeatureCache(bounded, "abc", frames, shape=(500,))
    with pytest.raises(ValueError, match="raise it, or leave it out"):
        features.update(lambda pictures: np.zeros((len(pictures["top"]), 2, 500), np.float16))
    assert frames.update() == 0  # nothing was thrown away for what cannot be


def test_rows_of_another_shape_are_built_besides(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    fill(store, [make_episode(0)])
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)

    def constant(size: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        return lambda pictures: np.full((len(pictures["top"]), 2, size), size, np.float16)

    for size in (3, 5):
        features = FeatureCache(Cache(root=tmp_path / "cache"), "abc123", frames, shape=(size,))
        assert features.update(constant(size)) == 1
        assert features.gather(np.arange(6)).shape == (6, 2, size)
        assert (features.gather(np.arange(6)) == size).all()


def test_two_stores_share_a_cache_and_a_copy_of_an_episode_is_not_decoded_again(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, decoded: list[int]
) -> None:
    """As two runs that began with the same demonstrations."""
    fill(store, [make_episode(0), make_episode(1)])
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    shutil.copytree(store.root, tmp_path / "copy")
    other = ExperienceStore.open(tmp_path / "copy")
    other.append(make_episode(5))
    store.append(make_episode(2))
    frames = [FrameCache(Cache(root=tmp_path / "cache"), one) for one in (store, other)]
    assert [one.update() for one in frames] == [1, 1]
    check_pictures(frames[0], [make_episode(i) for i in (0, 1, 2)])
    check_pictures(frames[1], [make_episode(i) for i in (0, 1, 5)])
    assert decoded == [0, 1, 2, 2]


def test_packs_end_when_they_are_full_and_rows_are_gathered_across_them(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PACK_BYTES", 1)  # full with one episode
    episodes = [make_episode(i) for i in range(3)]
    fill(store, episodes)
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    assert frames.update() == 3
    assert len(list((tmp_path / "cache/pictures").rglob("pack-*"))) == 3
    check_pictures(frames, episodes)
    rows = frames.gather("top", np.array([17, 0, 8, 17]))
    np.testing.assert_array_equal(rows, [episodes[e].images["top"][t] for e, t in ((2, 5), (0, 0), (1, 2), (2, 5))])


def test_bounded_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, make_episode: MakeEpisode, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PACK_BYTES", 1)
    cameras = {"top": (10, 10)}  # 3 x 10 x 10 bytes a step, 6 steps: 1800 bytes an episode

    def one_episode(name: str, seed: int) -> ExperienceStore:
        made = ExperienceStore.create(tmp_path / name, cameras=cameras, state_dim=5, action_dim=3, fps=20)
        made.append(make_episode(seed, cameras=cameras))
        return made

    stores = [one_episode(f"store-{i}", i) for i in range(3)]
    bounded = Cache(root=tmp_path / "cache", max_gb=2 * 1800e-9)
    packs, first = [], FrameCache(bounded, stores[0])
    for age, frames in enumerate([first, FrameCache(bounded, stores[1])]):
        frames.update()
        (new,) = set((tmp_path / "cache").rglob("pack-*")) - set(packs)
        os.utime(new / "index.json", (1000 + age, 1000 + age))
        packs.append(new)
    first.update()  # used again, so that the other one is older
    FrameCache(bounded, stores[2]).update()
    assert packs[0].exists()
    assert not packs[1].exists()
    check_pictures(first, [make_episode(0, cameras=cameras)])
    assert FrameCache(bounded, stores[0]).update() == 0
    assert FrameCache(bounded, stores[1]).update() == 1
    with pytest.raises(ValueError, match=r"needs 0\.00 GB, --cache\.max-gb allows 1e-09"):
        FrameCache(Cache(root=tmp_path / "small", max_gb=1e-9), stores[0]).update()


def test_two_processes_that_build_one_cache_at_once_both_get_every_row(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    episodes = [make_episode(i) for i in range(4)]
    fill(store, episodes)
    pictures = ExperienceStore.pictures
    reader, writer = os.pipe()

    def build_slowly() -> None:
        def slow(self: ExperienceStore, index: int) -> dict[str, np.ndarray]:
            os.write(writer, b".")
            time.sleep(0.2)  # long enough for the other one to build all of it
            return pictures(self, index)

        ExperienceStore.pictures = slow
        FrameCache(Cache(root=tmp_path / "cache"), ExperienceStore.read(store.root)).update()

    if (pid := os.fork()) == 0:
        code = 1
        try:
            build_slowly()
            code = 0
        finally:
            os._exit(code)
    os.read(reader, 1)  # it is in the middle of its first episode
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    assert frames.update() == 4
    check_pictures(frames, episodes)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    again = FrameCache(Cache(root=tmp_path / "cache"), store)
    assert again.update() == 0
    check_pictures(again, episodes)


def test_rows_that_another_run_removes_stay_readable_for_who_has_them_mapped(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, decoded: list[int]
) -> None:
    fill(store, [make_episode(0)])
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    frames.update()
    Cache(root=tmp_path / "cache", max_gb=1e-9).make_room(0, keep=set())
    assert not list((tmp_path / "cache").rglob("*.bin"))
    check_pictures(frames, [make_episode(0)])
    assert frames.update() == 1
    check_pictures(frames, [make_episode(0)])


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        ("top.bin", lambda whole: whole[:-1], "is shorter than its index says"),
        ("top.bin", lambda whole: whole[:700] + bytes([whole[700] ^ 1]) + whole[701:], "not what was written"),
        ("wrist.bin", lambda whole: bytes(len(whole)), "not what was written"),
        ("index.json", lambda whole: whole[:-1], "its index cannot be read"),
        ("index.json", lambda _: b"[[1]]", "its index cannot be read"),
    ],
    ids=["cut", "a bit", "zeros", "index cut", "another index"],
)
def test_damaged_pack_is_named_and_never_learnt_from(
    tmp_path: Path,
    store: ExperienceStore,
    make_episode: MakeEpisode,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: Callable[[bytes], bytes],
    problem: str,
) -> None:
    fill(store, [make_episode(0), make_episode(1)])
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    (pack,) = (tmp_path / "cache").rglob("pack-*")
    (pack / file).write_bytes(damage((pack / file).read_bytes()))
    monkeypatch.setattr(cache, "_CHECKED", set())  # as in another process
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)

    def learn() -> None:
        frames.update()
        everything(frames, "top")

    with pytest.raises(ValueError, match=rf"{pack.name} is damaged \(.*{problem}.*delete that folder"):
        learn()
    shutil.rmtree(pack)
    assert FrameCache(Cache(root=tmp_path / "cache"), store).update() == 2


def test_episodes_that_are_intact_can_be_used_beside_a_damaged_one(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [make_episode(0), make_episode(1)])
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    (rows,) = (tmp_path / "cache").rglob("top.bin")
    whole = bytearray(rows.read_bytes())
    whole[-1] ^= 1  # in the last step of the second
    rows.write_bytes(whole)
    monkeypatch.setattr(cache, "_CHECKED", set())
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    frames.update()
    np.testing.assert_array_equal(frames.gather("top", np.arange(6)), make_episode(0).images["top"])
    with pytest.raises(ValueError, match="rows 6 to 11 are not what was written"):
        frames.gather("top", np.array([0, 6]))


def test_pack_that_another_run_removes_before_it_is_locked_is_not_written_to(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [make_episode(0)])
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    (old,) = (tmp_path / "cache").rglob("pack-*")
    fill(store, [make_episode(1)])
    locked = cache._Pack.locked

    def too_late(pack: cache._Pack) -> object:
        if pack.path == old and old.exists():
            shutil.rmtree(old)
        return locked(pack)

    monkeypatch.setattr(cache._Pack, "locked", too_late)
    frames = FrameCache(Cache(root=tmp_path / "cache"), store)
    frames.update()
    assert not old.exists()
    check_pictures(frames, [make_episode(0), make_episode(1)])


def test_pack_that_another_run_locks_as_soon_as_it_is_made_is_left_to_it(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [make_episode(0)])
    locked, others = cache._Pack.locked, ExitStack()
    theirs: list[Path] = []

    def slower(pack: cache._Pack) -> object:
        if not theirs:  # the other run has listed the folder meanwhile, and is the first
            theirs.append(pack.path)
            assert others.enter_context(locked(pack))
        return locked(pack)

    monkeypatch.setattr(cache._Pack, "locked", slower)
    with others:
        frames = FrameCache(Cache(root=tmp_path / "cache"), store)
        frames.update()
        assert list(theirs[0].glob("*.bin")) == []
    check_pictures(frames, [make_episode(0)])


def test_room_that_another_run_has_made_meanwhile_counts(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [make_episode(0)])
    first = FrameCache(Cache(root=tmp_path / "cache"), store)
    first.update()
    (old,) = (tmp_path / "cache").rglob("pack-*")
    size = sum(path.stat().st_size for path in old.glob("*.bin"))

    def forestalled(pack: cache._Pack) -> int:
        shutil.rmtree(pack.path)  # by another run, which clears at the same time
        return 0

    monkeypatch.setattr(cache._Pack, "remove", forestalled)
    Cache(root=tmp_path / "cache", max_gb=size * 1e-9).make_room(size, keep=set())
    assert not old.exists()


def test_what_another_run_clears_away_at_the_same_time_is_no_error(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [make_episode(0)])
    FrameCache(Cache(root=tmp_path / "cache"), store).update()
    (old,) = (tmp_path / "cache").rglob("pack-*")
    move = os.replace

    def and_cleared(source: Path, target: Path) -> None:
        move(source, target)
        if target.name.startswith(".removing-"):
            shutil.rmtree(target)

    monkeypatch.setattr(os, "replace", and_cleared)
    assert cache._Pack(old).remove() > 0


def test_what_was_read_once_is_not_read_again_for_a_new_episode(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path: Path
) -> None:
    """No step of the loop reads the whole store: once it is gone from the disk, numbers and pictures still come."""
    store.append(make_episode(0))
    pictures = FrameCache(Cache(root=tmp_path / "cache"), store)
    pictures.update()
    assert len(store.columns()) == 6
    (store.root / "data/chunk-000/file-000.parquet").rename(tmp_path / "elsewhere")
    store.append(make_episode(1))
    assert pictures.update() == 1
    np.testing.assert_array_equal(store.columns().action[6:], make_episode(1).action)
    np.testing.assert_array_equal(
        pictures.gather("top", np.array([2, 8])), [make_episode(i).images["top"][2] for i in (0, 1)]
    )
    assert FrameCache(Cache(root=tmp_path / "cache"), store).update() == 0  # nor by another stage of the same process
