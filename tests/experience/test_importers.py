"""Datasets are recorded by LeRobot itself (`record_with_lerobot`): step t of episode e has the action (e, t)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience.foreign import ForeignDataset
from aloe.experience.importers import import_dataset
from aloe.experience.resolve import ImportConfig, Resolved, resolve
from aloe.experience.schema import Frames
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows
from aloe.methods import dagger
from aloe.types import NO_POLICY, NO_SEED, Source

Record = Callable[..., Path]
D, P, H = Source.DEMO, Source.POLICY, Source.HUMAN
SUCCESS = {"next.success": [False, False, True]}
NAN = [np.nan, np.nan]


def quiet(_: str) -> None:
    """Nobody listens."""


def imported(folder: Path, **options) -> Frames:
    root = folder.parent / "store"
    import_dataset(folder, root, ImportConfig(**options), say=quiet)
    return ExperienceStore.open(root).columns()


def resolved(folder: Path, **options) -> Resolved:
    return resolve(ForeignDataset(folder), ImportConfig(**options))


def content_of(folder: Path) -> dict[Path, bytes]:
    """All files but the one that says since when somebody writes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".writer.json"}


# ---- who acted


@pytest.mark.parametrize(
    "flags", [[False, True, True, False], [0.0, 1.0, 1.0, 0.0], [0, 1, 1, 0]], ids=["bool", "float", "int"]
)
@pytest.mark.parametrize("column", ["intervention", "complementary_info.is_intervention", "intervene_flag"])
def test_steps_of_an_intervention_are_the_humans_and_the_rest_the_policys(
    record_with_lerobot: Record, column: str, flags: list
) -> None:
    folder = record_with_lerobot([{column: flags, "next.success": [False, False, False, True]}])
    frames = imported(folder, policy_version=7)
    np.testing.assert_array_equal(frames.source, [P, H, H, P])
    np.testing.assert_array_equal(frames.policy_version, [7, 7, 7, 7])
    np.testing.assert_array_equal(frames.action, [[0, 0], [0, 1], [0, 2], [0, 3]])
    np.testing.assert_array_equal(frames.state, [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert np.isnan(frames.proposed_action).all()
    assert set(frames.seed) == {NO_SEED}
    # The human hands back after step 2: the correction is imitated, and critics go on from it to the success.
    windows = make_windows(frames, WindowConfig(horizon=2), scale=4.0)
    assert dagger.actor_rows(frames, windows).rows.tolist() == [1, 2]
    assert windows.has_target[1:].all()


def test_who_acted_is_never_guessed(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS])
    with pytest.raises(ValueError, match=r"says who acted \(looked for intervention.*give --source"):
        resolved(folder)
    frames = imported(folder, source="demo", policy_version=3)
    np.testing.assert_array_equal(frames.source, [D, D, D])
    np.testing.assert_array_equal(frames.policy_version, [NO_POLICY] * 3)


def test_source_beside_a_column_that_says_it_is_refused(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS | {"intervention": [False, True, True]}])
    with pytest.raises(ValueError, match="'intervention' says who acted"):
        resolved(folder, source="demo")
    found = resolved(folder, source="demo", ignore=("intervention",))
    np.testing.assert_array_equal(found.episodes[0].source, [D, D, D])
    assert found.notes["not imported"] == "intervention"


def test_columns_that_contradict_each_other_are_refused_by_name(record_with_lerobot: Record) -> None:
    flags = {"intervention": [False, True, True], "intervene_flag": [False, False, True]}
    folder = record_with_lerobot([SUCCESS | flags])
    with pytest.raises(ValueError, match=r"'intervention' says 2 of 3 steps, column 'intervene_flag' 1 of 3 steps"):
        resolved(folder)
    np.testing.assert_array_equal(resolved(folder, ignore=("intervention",)).episodes[0].source, [P, P, H])
    with pytest.raises(ValueError, match="no column 'interventoin' to ignore"):
        resolved(folder, ignore=("interventoin",))


@pytest.mark.parametrize("wrong", [0.5, 2.0, np.nan])
def test_flag_that_is_neither_yes_nor_no_is_refused(record_with_lerobot: Record, wrong: float) -> None:
    folder = record_with_lerobot([SUCCESS | {"complementary_info.is_intervention": [0.0, wrong, 1.0]}])
    with pytest.raises(ValueError, match=rf"'complementary_info.is_intervention' holds {wrong} in episode 0; 0 or 1"):
        resolved(folder)


def test_intervene_action_was_executed_in_place_of_the_policys(record_with_lerobot: Record) -> None:
    # HIL-SERL: the human's action in steps 1 and 2; in step 2 it is what `action` holds already, (0, 2).
    folder = record_with_lerobot([SUCCESS | {"intervene_action": [NAN, [5.0, 6.0], [0.0, 2.0]]}])
    frames = imported(folder)
    np.testing.assert_array_equal(frames.source, [P, H, H])
    np.testing.assert_array_equal(frames.action, [[0, 0], [5, 6], [0, 2]])
    np.testing.assert_array_equal(frames.proposed_action, [NAN, [0, 1], NAN])


def test_intervene_action_that_is_missing_where_the_human_acted_is_refused(record_with_lerobot: Record) -> None:
    flags = {"intervene_flag": [False, True, False], "intervene_action": [NAN] * 3}
    folder = record_with_lerobot([SUCCESS | flags])
    with pytest.raises(
        ValueError, match=r"'intervene_action' holds NaN.*episode 0; if 'action' .* --ignore intervene_action"
    ):
        imported(folder)
    assert not (folder.parent / "store").exists()
    np.testing.assert_array_equal(imported(folder, ignore=("intervene_action",)).action, [[0, 0], [0, 1], [0, 2]])


def test_flag_says_where_intervene_action_counts(record_with_lerobot: Record) -> None:
    flags = {"intervene_flag": [False, True, False], "intervene_action": [[0.0, 0.0], [5.0, 6.0], [0.0, 0.0]]}
    frames = imported(record_with_lerobot([SUCCESS | flags]))
    np.testing.assert_array_equal(frames.source, [P, H, P])
    np.testing.assert_array_equal(frames.action, [[0, 0], [5, 6], [0, 2]])


def test_intervene_action_that_is_always_filled_tells_nothing(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS | {"intervene_action": [[0.0, 0.0], [5.0, 6.0], [0.0, 0.0]]}])
    with pytest.raises(ValueError, match="'intervene_action' is filled at every step"):
        resolved(folder)
    assert resolved(folder, ignore=("intervene_action",), source="human").episodes[0].source.tolist() == [H] * 3


# ---- how it ended


@pytest.mark.parametrize("flags", [[False, False, True], [False, True, True], [True, True, True]])
def test_success_of_the_last_step_is_the_episodes(record_with_lerobot: Record, flags: list[bool]) -> None:
    frames = imported(record_with_lerobot([{"next.success": flags}]), source="policy")
    np.testing.assert_array_equal(frames.success, [False, False, True])
    np.testing.assert_array_equal(frames.terminated, [False, False, True])
    np.testing.assert_array_equal(frames.truncated, [False, False, False])
    np.testing.assert_array_equal(frames.reward, [-1, -1, 0])


def test_success_that_is_taken_back_is_refused(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS, {"next.success": [False, True, False]}])
    with pytest.raises(ValueError, match=r"'next.success' is set in step 1 of episode 1, and not at its end in step 2"):
        resolved(folder, source="demo")


def test_dataset_of_rlinf_is_understood(record_with_lerobot: Record) -> None:
    # `is_success` is the episode's, at every step; `done` is set at the last step, whatever ended it.
    episodes = [
        {"is_success": [True] * 3, "done": [False, False, True], "intervene_flag": [False, True, True]},
        {"is_success": [False] * 2, "done": [False, True], "intervene_flag": [False, False]},
    ]
    folder = record_with_lerobot(episodes, state="state", action="actions", cameras={"image": (8, 12)})
    with pytest.raises(ValueError, match=r"'done' ends episode 1.*'next.truncated'.*--failure-end timeout or"):
        resolved(folder)
    frames = imported(folder, failure_end="timeout")
    np.testing.assert_array_equal(frames.success, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(frames.terminated, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(frames.truncated, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(frames.source, [P, H, H, P, P])
    np.testing.assert_array_equal(frames.action[3:], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("done", "truncated", "failure_end", "expected"),
    [
        (True, False, "recorded", "terminal"),
        (True, True, "recorded", "time-out"),  # LeRobot's recorders set next.done at a time-out, too
        (False, True, "recorded", "time-out"),
        (False, False, "recorded", "time-out"),  # the recording stopped
        (False, None, "recorded", "time-out"),
        (None, None, "recorded", "time-out"),
        (True, None, "recorded", "refused"),
        (True, None, "terminal", "terminal"),
        (True, None, "timeout", "time-out"),
        (True, True, "terminal", "terminal"),
    ],
)
def test_time_out_is_no_terminal_unless_the_option_says_so(
    record_with_lerobot: Record, done: bool | None, truncated: bool | None, failure_end: str, expected: str
) -> None:
    columns = {"next.success": [False, False]}
    columns |= {} if done is None else {"next.done": [False, done]}
    columns |= {} if truncated is None else {"next.truncated": [False, truncated]}
    folder = record_with_lerobot([columns])
    if expected == "refused":
        with pytest.raises(ValueError, match=r"'next.done' ends episode 0, which did not succeed"):
            resolved(folder, source="policy", failure_end=failure_end)
    else:
        (episode,) = resolved(folder, source="policy", failure_end=failure_end).episodes
        assert (episode.success, episode.timeout) == (False, expected == "time-out")


def test_episodes_that_run_into_each_other_are_refused(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS | {"next.done": [True, False, False]}])
    with pytest.raises(
        ValueError, match=r"'next.done' is set in step 0 of episode 0, .* does the episode hold several"
    ):
        resolved(folder, source="demo")
    assert resolved(folder, source="demo", ignore=("next.done",)).episodes[0].success


def test_success_that_is_nowhere_recorded_is_asked_for(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([{"next.reward": [0.0, 1.0]}, {"next.reward": [0.0, 0.0]}])
    with pytest.raises(
        ValueError, match=r"2 of 2 episodes.*--outcome success, failure or ask, or --outcomes FILE.csv"
    ) as e:
        resolved(folder, source="demo")
    assert "next.reward ends at 0 to 1" in str(e.value)
    assert [e.success for e in resolved(folder, source="demo", outcome="success").episodes] == [True, True]
    assert [e.success for e in resolved(folder, source="demo", outcome="failure").episodes] == [False, False]
    assert [e.success for e in resolved(folder, source="demo", success_reward=1.0).episodes] == [True, False]


def test_outcomes_from_a_file_go_before_the_column(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([SUCCESS, SUCCESS, {"next.success": [False, False, False]}])
    (tmp_path / "said.csv").write_text("episode,outcome,note\n2,success,late\n0,Failure,\n")
    found = resolved(folder, source="demo", outcomes=tmp_path / "said.csv")
    assert [episode.success for episode in found.episodes] == [False, True, True]
    assert found.notes["outcome by"] == f"{tmp_path / 'said.csv'} (2), next.success (1)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("episode,success\n0,yes\n", "needs the columns episode,outcome"),
        ("episode,outcome\n3,success\n", "line 2: there is no episode '3'; they are 0 to 0"),
        ("episode,outcome\n-1,success\n", "there is no episode '-1'"),
        ("episode,outcome\n0,maybe\n", "success or failure, not 'maybe'"),
        ("episode,outcome\n0\n", "success or failure, not ''"),
        ("episode,outcome\n0,success\n0,failure\n", "line 3: episode 0 stands there twice"),
        ("", "needs the columns"),
    ],
)
def test_file_of_outcomes_with_a_mistake_is_refused(
    record_with_lerobot: Record, tmp_path: Path, text: str, said: str
) -> None:
    folder = record_with_lerobot([{"next.reward": [0.0, 1.0]}])
    (tmp_path / "said.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        resolved(folder, source="demo", outcomes=tmp_path / "said.csv")


def test_options_that_say_what_is_recorded_are_refused(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS | {"next.reward": [0.0, 0.0, 1.0]}])
    with pytest.raises(ValueError, match=r"next.success already says how every episode ended"):
        resolved(folder, source="demo", outcome="success")
    with pytest.raises(ValueError, match=r"'next.success' says what succeeded; leave out --success-reward"):
        resolved(folder, source="demo", success_reward=1.0)


def test_only_the_unknown_episodes_are_asked_for(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([{"next.reward": [0.0]}] * 3)
    (tmp_path / "said.csv").write_text("episode,outcome\n1,failure\n")
    asked: list[int] = []

    def ask(episode: int) -> str:
        asked.append(episode)
        return "success"

    config = ImportConfig(source="demo", outcome="ask", outcomes=tmp_path / "said.csv")
    found = resolve(ForeignDataset(folder), config, ask)
    assert asked == [0, 2]
    assert [episode.success for episode in found.episodes] == [True, False, True]


# ---- into the store


@pytest.mark.parametrize("channels_first", [False, True])
def test_pictures_come_over(record_with_lerobot: Record, tmp_path: Path, channels_first: bool) -> None:
    cameras = {"observation.images.top": (8, 12), "observation.images.wrist": (6, 6)}
    folder = record_with_lerobot([SUCCESS, SUCCESS], cameras=cameras, channels_first=channels_first)
    imported(folder, source="demo")
    store = ExperienceStore.open(tmp_path / "store")
    assert store.cameras == {"top": (8, 12), "wrist": (6, 6)}
    # Step t of episode e is of the colour (30 t, 80 e, 50).
    np.testing.assert_array_equal(store.pictures(1)["top"][2], np.full((8, 12, 3), (60, 80, 50)))
    np.testing.assert_array_equal(store.pictures(0)["wrist"][1], np.full((6, 6, 3), (30, 0, 50)))


def test_videos_come_over_as_videos(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([SUCCESS, SUCCESS], cameras={"observation.images.top": (32, 48)}, video=True)
    imported(folder, source="demo")
    assert len(list((tmp_path / "store/videos").rglob("*.mp4"))) == 2
    store = ExperienceStore.open(tmp_path / "store")
    for episode in (0, 1):
        for step, picture in enumerate(store.pictures(episode)["top"]):
            assert np.abs(picture.mean((0, 1)) - (30 * step, 80 * episode, 50)).max() < 8  # encoded twice


def test_imported_store_opens_in_lerobot(record_with_lerobot: Record, tmp_path: Path) -> None:
    episodes = [SUCCESS, {"next.success": [False, False]}]
    imported(record_with_lerobot(episodes, tasks=["a", "a", "a", "b", "b"]), source="demo")
    dataset = LeRobotDataset("lab/store", root=tmp_path / "store")
    assert (len(dataset), dataset.num_episodes) == (5, 2)
    assert [dataset[i]["task"] for i in (0, 4)] == ["a", "b"]
    assert [bool(dataset[i]["next.success"]) for i in range(5)] == [False, False, True, False, False]
    np.testing.assert_array_equal(dataset[4]["action"], [1, 1])


def test_dataset_is_only_read(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS], cameras={"observation.images.top": (8, 8)})
    before = content_of(folder)
    imported(folder, source="demo")
    assert content_of(folder) == before


def test_import_that_was_stopped_goes_on_and_a_whole_one_changes_nothing(
    record_with_lerobot: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = record_with_lerobot([SUCCESS] * 3), tmp_path / "store"
    append, config = ExperienceStore.append, ImportConfig(source="demo")

    def stop_at_two(self: ExperienceStore, episode) -> int:
        if self.num_episodes == 2:
            raise KeyboardInterrupt
        return append(self, episode)

    with monkeypatch.context() as patch:
        patch.setattr(ExperienceStore, "append", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            import_dataset(folder, root, config, say=quiet)
    assert ExperienceStore.open(root).num_episodes == 2
    import_dataset(folder, root, config, say=quiet)
    np.testing.assert_array_equal(ExperienceStore.open(root).columns().action[:, 0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    before = content_of(root)
    import_dataset(folder, root, config, say=quiet)
    assert content_of(root) == before
    with pytest.raises(ValueError, match=r"imported into .* before, with other options"):
        import_dataset(folder, root, ImportConfig(source="policy"), say=quiet)


def test_second_dataset_is_appended(record_with_lerobot: Record, tmp_path: Path) -> None:
    imported(record_with_lerobot([SUCCESS, SUCCESS]), source="demo")
    frames = imported(record_with_lerobot([{"next.success": [False, True]}], name="other"), source="policy")
    np.testing.assert_array_equal(frames.source, [D] * 6 + [P] * 2)
    np.testing.assert_array_equal(frames.episode, [0, 0, 0, 1, 1, 1, 2, 2])
    again = imported(tmp_path / "foreign", source="demo")
    assert len(again) == 8


def test_store_of_another_kind_is_refused_before_anything_is_written(
    record_with_lerobot: Record, tmp_path: Path
) -> None:
    folder = record_with_lerobot([SUCCESS])
    ExperienceStore.create(tmp_path / "store", cameras={}, state_dim=3, action_dim=7, fps=10)
    before = content_of(tmp_path / "store")
    with pytest.raises(
        ValueError, match=r"has cameras, state, action and fps \(\{\}, 3, 7, 10\), .* \(\{\}, 3, 2, 10\)"
    ):
        imported(folder, source="demo")
    assert content_of(tmp_path / "store") == before


def test_store_is_not_imported_but_used(record_with_lerobot: Record, tmp_path: Path) -> None:
    imported(record_with_lerobot([SUCCESS]), source="demo")
    with pytest.raises(ValueError, match="has ALOE's columns already; use it where it is"):
        import_dataset(tmp_path / "store", tmp_path / "another", ImportConfig(), say=quiet)
    with pytest.raises(ValueError, match="lie within each other"):
        import_dataset(tmp_path / "foreign", tmp_path / "foreign/store", ImportConfig(source="demo"), say=quiet)


@pytest.mark.parametrize("option", ["state", "action"])
def test_other_names_of_state_and_action_are_given(record_with_lerobot: Record, option: str) -> None:
    folder = record_with_lerobot([SUCCESS], **{option: f"my.{option}"})
    with pytest.raises(ValueError, match=rf"has no column .*; name the right one with --{option}: .*my.{option}"):
        resolved(folder, source="demo")
    assert getattr(resolved(folder, source="demo", **{option: f"my.{option}"}), option) == f"my.{option}"
