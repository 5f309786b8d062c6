"""Several roots as one experience: two stores of ALOE's, and datasets that LeRobot's own recorder wrote."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aloe.experience.cache import Cache, FrameCache
from aloe.experience.importers import import_dataset
from aloe.experience.mixture import Mixture, RootConfig, SourceRatios, open_root, with_roots
from aloe.experience.resolve import ImportConfig
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Episode, Source

MakeEpisode = Callable[..., Episode]
Record = Callable[..., Path]


@pytest.fixture
def two(tmp_path: Path, store: ExperienceStore, make_episode: MakeEpisode) -> tuple[ExperienceStore, ExperienceStore]:
    """Three episodes of two tasks, and one of a third task and of the second."""
    for seed, task in ((0, "push"), (1, "pull"), (2, "push")):
        store.append(make_episode(seed, task=task))
    cameras = dict(reversed(store.cameras.items()))
    other = ExperienceStore.create(tmp_path / "other", cameras=cameras, state_dim=5, action_dim=3, fps=20)
    other.append(make_episode(3, task="turn", steps=4))
    other.append(make_episode(4, task="pull"))
    return store, other


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_root_may_not_take_the_name_of_the_runs_own_store(store: ExperienceStore) -> None:
    with pytest.raises(ValueError, match=r"give --experience\.recorded another name"):
        with_roots(store, {"recorded": RootConfig(root=store.root)})


def test_episodes_of_all_roots_follow_one_another(
    two: tuple[ExperienceStore, ExperienceStore], make_episode: MakeEpisode, tmp_path: Path
) -> None:
    mixture = Mixture({"a": (two[0], None), "b": (two[1], 0.5)})
    frames = mixture.columns()
    assert mixture.lengths == [6, 6, 6, 4, 6]
    np.testing.assert_array_equal(frames.episode, np.repeat([0, 1, 2, 3, 4], mixture.lengths))
    np.testing.assert_array_equal(frames.action, np.concatenate([make_episode(i).action for i in range(3)] + [
        make_episode(3, steps=4).action, make_episode(4).action,
    ]))  # fmt: skip
    assert [frames.tasks[i] for i in frames.task_index[frames.step == 0]] == ["push", "pull", "push", "turn", "pull"]
    assert len(frames.tasks) == 3
    assert mixture.shares.ratio == (None, 0.5)
    np.testing.assert_array_equal(mixture.shares.part, [0] * 18 + [1] * 10)
    pictures = FrameCache(Cache(root=tmp_path / "cache"), mixture)
    assert pictures.update() == 5
    for camera in ("top", "wrist"):  # the second root has them in the other order
        np.testing.assert_array_equal(
            pictures.gather(camera, np.array([18, 24]))[0], make_episode(3, steps=4).images[camera][0]
        )
        np.testing.assert_array_equal(pictures.gather(camera, np.array([18, 24]))[1], make_episode(4).images[camera][2])


def test_what_a_root_gains_later_is_seen(
    two: tuple[ExperienceStore, ExperienceStore], make_episode: MakeEpisode
) -> None:
    mixture = Mixture({"a": (two[0], None), "b": (two[1], None)})
    two[0].append(make_episode(9))
    assert mixture.lengths == [6, 6, 6, 6, 4, 6]
    np.testing.assert_array_equal(mixture.columns().action[18:24], make_episode(9).action)
    assert mixture.episode_digest(3) == two[0].episode_digest(3)
    assert mixture.episode_digest(5) == two[1].episode_digest(1)


def test_roots_of_another_kind_are_refused_by_name(
    two: tuple[ExperienceStore, ExperienceStore], tmp_path: Path
) -> None:
    faster = ExperienceStore.create(tmp_path / "faster", cameras=two[0].cameras, state_dim=5, action_dim=3, fps=30)
    with pytest.raises(ValueError, match=r"faster \(new\) has fps 30, .*store \(old\) has 20; one policy"):
        Mixture({"old": (two[0], None), "new": (faster, None)})


@pytest.mark.parametrize(
    ("ratios", "total"), [((0.7, 0.4), "1.1"), ((0.5, 0.4), "0.9"), ((0.0, 0.0), "0")], ids=["more", "less", "nothing"]
)
def test_ratios_that_are_not_of_one_whole_are_refused(
    two: tuple[ExperienceStore, ExperienceStore], ratios: tuple[float, float], total: str
) -> None:
    with pytest.raises(ValueError, match=rf"ratios of a, b add up to {total}; make it 1, or leave out"):
        Mixture({"a": (two[0], ratios[0]), "b": (two[1], ratios[1])})


def test_ratio_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        RootConfig(root=Path("x"), ratio=1.2)


# ---- who acted


def test_batches_are_divided_by_who_acted(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    store.append(make_episode(0))  # four steps of a policy, two of the human who took over
    halves = with_roots(store, {}, sources=SourceRatios(demos=0.3, corrections=0.5))
    store.append(make_episode(1, steps=3, source=np.zeros(3, np.int64), policy_version=np.full(3, NO_POLICY)))
    assert halves.shares is not None
    assert halves.shares.ratio == (0.3, None, 0.5)  # demonstrations, rollouts, corrections
    np.testing.assert_array_equal(halves.shares.part, [1, 1, 1, 1, 2, 2, 0, 0, 0])
    assert with_roots(store, {}, sources=SourceRatios()) is store


def test_batches_divided_by_root_and_by_who_acted_are_refused(two: tuple[ExperienceStore, ExperienceStore]) -> None:
    roots = {"other": RootConfig(root=two[1].root, ratio=0.5)}
    with pytest.raises(ValueError, match=r"by root or by who acted; leave out --experience\.other\.ratio or --sources"):
        with_roots(two[0], roots, sources=SourceRatios(demos=0.5))


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"demos": 1.2}, "between 0 and 1, not at 1.2"),
        ({"demos": 0.7, "corrections": 0.4}, "--sources.corrections add up to 1.1"),
        ({"demos": 0.2, "rollouts": 0.2, "corrections": 0.5}, "add up to 0.9; make it 1, or leave out one"),
    ],
    ids=["no share", "more", "less"],
)
def test_shares_of_sources_that_are_not_of_one_whole_are_refused(ratios: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceRatios(**ratios)


# ---- datasets of others where they lie


def test_foreign_dataset_in_place_is_what_its_import_would_be(record_with_lerobot: Record, tmp_path: Path) -> None:
    episodes = [
        {"intervention": [False, True, True], "next.success": [False, False, True]},
        {"intervention": [False, False, False, False], "next.success": [False] * 4},
    ]
    folder = record_with_lerobot(episodes, cameras={"observation.images.top": (16, 24)})
    before = state_of(folder)
    here = open_root("rollouts", RootConfig(root=folder, policy_version=3))
    imported = import_dataset(folder, tmp_path / "store", ImportConfig(policy_version=3), say=lambda _: None)
    ours, theirs = vars(here.columns()), vars(imported.columns())
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], name)
    assert (here.cameras, here.state_dim, here.action_dim, here.fps) == ({"top": (16, 24)}, 3, 2, 10)
    for index in (0, 1):
        shown = here.pictures(index)["top"]
        np.testing.assert_array_equal(shown, imported.pictures(index)["top"])
        np.testing.assert_array_equal(here.pictures(index, every=2, enough=8)["top"], shown[::2, ::3, ::3])
    FrameCache(Cache(root=tmp_path / "cache"), here).update()
    assert state_of(folder) == before


def test_name_of_a_root_says_who_acted_where_nothing_else_does(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([{"next.success": [False, True]}])
    for name, source in (("demos", Source.DEMO), ("rollouts", Source.POLICY), ("corrections", Source.HUMAN)):
        assert set(open_root(name, RootConfig(root=folder)).columns().source) == {source}
    assert set(open_root("demos", RootConfig(root=folder, source="policy")).columns().source) == {Source.POLICY}
    with pytest.raises(ValueError, match=r"who acted.*give --experience\.cubes\.source demo"):
        open_root("cubes", RootConfig(root=folder))


def test_missing_outcome_is_asked_for_by_the_option_of_the_root(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([{"extra": [0.5, 0.5]}])
    with pytest.raises(
        ValueError, match=r"succeeded.*give --experience\.demos\.outcome success.*--experience\.demos\.outcomes FILE"
    ):
        open_root("demos", RootConfig(root=folder))
    frames = open_root("demos", RootConfig(root=folder, outcome="success")).columns()
    np.testing.assert_array_equal(frames.success, [False, True])
    with pytest.raises(ValueError, match="nobody is asked during training"):
        RootConfig(root=folder, outcome="ask")


def test_rewritten_dataset_is_decoded_anew(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([{"next.success": [False, True]}], cameras={"observation.images.top": (16, 24)})
    before = open_root("demos", RootConfig(root=folder)).episode_digest(0)
    (data,) = folder.glob("data/*/*.parquet")
    data.write_bytes(data.read_bytes())
    assert open_root("demos", RootConfig(root=folder)).episode_digest(0) != before


def test_store_needs_and_takes_no_options(two: tuple[ExperienceStore, ExperienceStore]) -> None:
    two[0].close()
    found = open_root("demos", RootConfig(root=two[0].root))
    np.testing.assert_array_equal(found.columns().action, two[0].columns().action)
    with pytest.raises(ValueError, match=r"is a store.*--experience\.demos\.failure-end would; leave it out"):
        open_root("demos", RootConfig(root=two[0].root, failure_end="timeout"))


def test_store_that_is_given_learns_alone_where_no_root_is_named(two: tuple[ExperienceStore, ExperienceStore]) -> None:
    assert with_roots(two[0], {}) is two[0]
    both = with_roots(two[0], {"demos": RootConfig(root=two[1].root, ratio=0.25)})
    assert both.lengths == [4, 6, 6, 6, 6]  # what is recorded comes last, since it grows
    assert both.shares is not None
    assert both.shares.ratio == (0.25, None)
    with pytest.raises(ValueError, match=r"give --dataset\.root, or --experience\.NAME\.root"):
        with_roots(None, {})
