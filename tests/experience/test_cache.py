import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aloe.experience import cache
from aloe.experience.cache import FeatureCache, FrameCache
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


def check_pictures(frames: FrameCache, episodes: list[Episode]) -> None:
    for camera in frames.store.cameras:
        np.testing.assert_array_equal(frames.array(camera), np.concatenate([e.images[camera] for e in episodes]))


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
    frames = FrameCache(tmp_path / "cache", store)
    assert len(frames.array("top")) == 0
    assert frames.update() == 2
    check_pictures(frames, episodes[:2])

    store.append(episodes[2])
    assert frames.update() == 1
    assert frames.update() == 0
    check_pictures(frames, episodes)

    again = FrameCache(tmp_path / "cache", ExperienceStore.open(store.root))
    assert again.update() == 0
    check_pictures(again, episodes)
    assert decoded == [0, 1, 2]


def test_gathered_rows_are_in_the_order_asked_for(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    fill(store, [make_episode(0), make_episode(1)])
    frames = FrameCache(tmp_path / "cache", store)
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
    FrameCache(tmp_path / "cache", store).update()
    change_episode(store, 1)
    frames = FrameCache(tmp_path / "cache", ExperienceStore.open(store.root))
    assert len(frames.array("top")) == 0  # nothing unchecked
    assert frames.update() == 2
    expected = np.concatenate([episodes[0].images["top"], episodes[1].images["top"][::-1], episodes[2].images["top"]])
    np.testing.assert_array_equal(frames.array("top"), expected)
    assert decoded == [0, 1, 2, 1, 2]


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
            FrameCache(tmp_path / "cache", store).update()
    # As if it had died in the middle of writing: rows beyond what the index counts.
    with (tmp_path / "cache/top.bin").open("ab") as file:
        file.write(b"half a picture")
    frames = FrameCache(tmp_path / "cache", store)
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

    frames = FrameCache(tmp_path / "frames", store)
    features = FeatureCache(tmp_path / "features", "abc123", frames, shape=(3,))
    assert features.update(mean_colour, batch_size=4) == 2
    assert batches == [4, 2, 3]
    expected = np.concatenate(
        [np.stack([e.images[c].mean((1, 2)) for c in ("top", "wrist")], 1) for e in episodes]
    ).astype(np.float16)
    np.testing.assert_array_equal(features.array(), expected)
    np.testing.assert_array_equal(features.gather(np.array([8, 2])), expected[[8, 2]])

    assert FeatureCache(tmp_path / "features", "abc123", frames, shape=(3,)).update(mean_colour) == 0
    assert FeatureCache(tmp_path / "features", "other", frames, shape=(3,)).update(mean_colour) == 2
    assert decoded == [0, 1]
    with pytest.raises(ValueError, match=r"got shape \(6, 2, 3\), expected \(6, 2, 5\)"):
        FeatureCache(tmp_path / "features", "third", frames, shape=(5,)).update(mean_colour)
    with pytest.raises(ValueError, match="names a folder"):
        FeatureCache(tmp_path / "features", "../elsewhere", frames, shape=(3,))


def test_cache_of_another_shape_is_built_anew(
    tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    fill(store, [make_episode(0)])
    frames = FrameCache(tmp_path / "frames", store)

    def constant(size: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        return lambda pictures: np.full((len(pictures["top"]), 2, size), size, np.float16)

    for size in (3, 5):
        features = FeatureCache(tmp_path / "features", "abc123", frames, shape=(size,))
        assert features.update(constant(size)) == 1
        assert features.array().shape == (6, 2, size)
        assert (features.array() == size).all()
