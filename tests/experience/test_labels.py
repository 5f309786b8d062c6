"""The fixture's episode has 6 steps: four of a policy, two of the human, who succeeds in the last one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aloe.experience.cache import Cache, FrameCache
from aloe.experience.labels import LABELS_PATH, Label, undo_label, write_label
from aloe.experience.schema import Frames, digest_of
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows
from aloe.types import NO_POLICY, Episode, Source

MakeEpisode = Callable[..., Episode]
NOTHING = np.zeros(6, bool)
LAST = np.arange(6) == 5


def label(store: ExperienceStore, episode: int, **said) -> None:
    write_label(store.root, ExperienceStore.open(store.root).columns(), episode, Label(**said))


def undo(store: ExperienceStore, episode: int) -> Label:
    return undo_label(store.root, ExperienceStore.open(store.root).columns(), episode)


def reopened(store: ExperienceStore) -> Frames:
    return ExperienceStore.open(store.root).columns()


def data_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path != root / LABELS_PATH}


def same(a: Frames, b: Frames) -> bool:
    return all(
        np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "proposed_action") for n in vars(a) if n != "tasks"
    )


@pytest.fixture
def store(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path_factory: pytest.TempPathFactory
) -> ExperienceStore:
    """A success; a time-out; a failure; an episode of which no end was recorded. Recorded once, copied for each test."""
    kept = tmp_path_factory.getbasetemp() / "four_endings"
    if kept.exists():
        shutil.copytree(kept, store.root, dirs_exist_ok=True)
        return ExperienceStore.open(store.root)
    for seed, (terminated, truncated, success) in enumerate(
        [(LAST, NOTHING, LAST), (NOTHING, LAST, NOTHING), (LAST, NOTHING, NOTHING), (NOTHING, NOTHING, NOTHING)]
    ):
        reward = np.where(success, 0, -1).astype(np.float32)
        ends = {"terminated": terminated, "truncated": truncated, "success": success, "reward": reward}
        store.append(make_episode(seed, **ends))
    shutil.copytree(store.root, kept)
    return store


def last_step(frames: Frames, episode: int) -> tuple[bool, bool, bool, float]:
    """terminated, truncated, success, reward"""
    row = 6 * episode + 5
    return (
        bool(frames.terminated[row]),
        bool(frames.truncated[row]),
        bool(frames.success[row]),
        float(frames.reward[row]),
    )


@pytest.mark.parametrize(
    ("episode", "outcome", "expected"),
    [
        (0, "success", (True, False, True, 0.0)),
        (1, "success", (True, False, True, 0.0)),  # time ran out just as it succeeded
        (2, "success", (True, False, True, 0.0)),
        (3, "success", (True, False, True, 0.0)),
        (0, "failure", (True, False, False, -1.0)),
        (1, "failure", (False, True, False, -1.0)),  # a time-out stays one
        (2, "failure", (True, False, False, -1.0)),
        (3, "failure", (True, False, False, -1.0)),
    ],
)
def test_outcome_is_applied_to_its_episode_alone_and_no_data_are_rewritten(
    store: ExperienceStore, episode: int, outcome: str, expected: tuple
) -> None:
    before, data = store.columns(), data_of(store.root)
    label(store, episode, outcome=outcome)
    frames = reopened(store)
    assert last_step(frames, episode) == expected
    others = frames.episode != episode
    for name in ("terminated", "truncated", "success", "reward", "source"):
        np.testing.assert_array_equal(getattr(frames, name)[others], getattr(before, name)[others])
    np.testing.assert_array_equal(frames.terminated[6 * episode : 6 * episode + 5], [False] * 5)
    assert data_of(store.root) == data
    assert same(before, store.columns())  # a reader keeps the labels that it was opened with


def test_labels_change_what_is_learnt(store: ExperienceStore) -> None:
    # A step costs 1/10; 4 steps of the policy, cut short, then 2 of the human.
    config = WindowConfig(horizon=2, chunk_discount=1.0)
    assert make_windows(store.columns(), config, 10.0).monte_carlo[4:6] == pytest.approx([-0.1, 0.0])
    label(store, 0, outcome="failure")
    windows = make_windows(reopened(store), config, 10.0)
    assert windows.monte_carlo[4:6] == pytest.approx([-1.1, -1.0])
    assert windows.failed[4:6].all()


def test_a_time_out_that_was_taken_for_a_success_becomes_a_time_out_again(store: ExperienceStore) -> None:
    for episode, end in (
        (1, (False, True, False, -1.0)),
        (3, (True, False, False, -1.0)),
    ):  # a time-out; no end recorded
        for outcome in ("success", "failure"):
            label(store, episode, outcome=outcome)
        assert last_step(reopened(store), episode) == end


def test_later_label_goes_over_the_earlier_and_undo_takes_back_the_last(store: ExperienceStore) -> None:
    recorded = store.columns()
    label(store, 2, outcome="success")
    label(store, 0, outcome="failure")
    label(store, 2, reward=0.5)
    assert last_step(reopened(store), 2) == (True, False, True, 0.5)
    assert undo(store, 2) == Label(reward=0.5)
    assert last_step(reopened(store), 2) == (True, False, True, 0.0)
    assert undo(store, 2) == Label(outcome="success")
    assert last_step(reopened(store), 2) == (True, False, False, -1.0)
    with pytest.raises(ValueError, match="episode 2 has no label to undo"):
        undo(store, 2)
    assert last_step(reopened(store), 0) == (True, False, False, -1.0)
    undo(store, 0)
    assert same(reopened(store), recorded)
    label(store, 2, outcome="success")
    assert last_step(reopened(store), 2) == (True, False, True, 0.0)


def test_log_only_grows(store: ExperienceStore) -> None:
    log, content = store.root / LABELS_PATH, b""
    for step in (
        lambda: label(store, 0, outcome="failure"),
        lambda: label(store, 1, reward=2.0),
        lambda: undo(store, 0),
    ):
        step()
        assert log.read_bytes().startswith(content)
        content = log.read_bytes()
    said = [json.loads(line) for line in content.splitlines()]
    assert [(line["episode"], line.get("outcome"), line.get("reward"), line.get("undo")) for line in said] == [
        (0, "failure", None, None),
        (1, None, 2.0, None),
        (0, None, None, True),
    ]


def test_source_is_given_to_episodes_of_one_actor(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    demo = {"source": np.full(6, int(Source.DEMO)), "policy_version": np.full(6, NO_POLICY)}
    store.append(make_episode(4, **demo))
    with pytest.raises(ValueError, match="episode 1 has steps of policy and human"):
        label(store, 1, source="demo")
    with pytest.raises(ValueError, match="episode 4 has no policy version; source policy needs --policy-version"):
        label(store, 4, source="policy")
    label(store, 4, source="policy", policy_version=3)
    frames = reopened(store)
    assert (frames.source[24:] == Source.POLICY).all()
    assert (frames.policy_version[24:] == 3).all()
    label(store, 4, source="demo")
    frames = reopened(store)
    assert (frames.source[24:] == Source.DEMO).all()
    assert (frames.policy_version[24:] == NO_POLICY).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"outcome": "maybe"}, "an outcome is success or failure, not 'maybe'"),
        ({"reward": float("nan")}, "a reward is a finite number"),
        ({"source": "robot"}, "a source is demo, policy or human"),
        ({"source": "demo", "policy_version": 1}, "policy_version"),
        ({"source": "policy", "policy_version": -1}, "policy_version"),
        ({"policy_version": 1}, "policy_version"),
        ({}, "a label says something"),
    ],
)
def test_label_that_makes_no_sense_is_not_written(store: ExperienceStore, said: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(store, 0, **said)
    assert not (store.root / LABELS_PATH).exists()


@pytest.mark.parametrize("episode", [-1, 4])
def test_episode_that_is_not_there_is_refused(store: ExperienceStore, episode: int) -> None:
    with pytest.raises(ValueError, match=f"there is no episode {episode}; the store has 4"):
        label(store, episode, outcome="success")
    assert not (store.root / LABELS_PATH).exists()


def test_label_stays_with_the_episode_that_it_was_given_to(
    store: ExperienceStore, make_episode: MakeEpisode, tmp_path: Path
) -> None:
    label(store, 1, outcome="success")
    # Somebody makes a store of the same episodes without the first, and takes the log along.
    shorter = ExperienceStore.create(tmp_path / "shorter", cameras=store.cameras, state_dim=5, action_dim=3, fps=20)
    for seed in (1, 2):
        shorter.append(make_episode(seed))
    (shorter.root / LABELS_PATH).write_bytes((store.root / LABELS_PATH).read_bytes())
    with pytest.raises(ValueError, match=r"episode 1 is not the one that .* labels: its actions are others"):
        reopened(shorter)


def test_reader_passes_over_labels_of_episodes_that_it_does_not_see(
    store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    early = ExperienceStore.open(store.root)
    store.append(make_episode(4))
    label(store, 4, outcome="failure")
    early.labels = ExperienceStore.open(store.root).labels
    assert len(early.columns()) == 24
    assert last_step(reopened(store), 4) == (True, False, False, -1.0)


def test_half_written_label_counts_for_nothing_and_is_kept_aside(store: ExperienceStore) -> None:
    log = store.root / LABELS_PATH
    label(store, 0, outcome="failure")
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:40])  # the process died while it wrote the next
    assert last_step(reopened(store), 0) == (True, False, False, -1.0)
    label(store, 2, outcome="success")
    assert log.read_bytes().startswith(whole)
    assert len(log.read_bytes().splitlines()) == 2
    assert last_step(reopened(store), 2) == (True, False, True, 0.0)
    assert (store.root / "quarantine/000" / LABELS_PATH).read_bytes() == whole[:40]


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"episode": 0}'),
        b'{"time": "", "episode": 0, "actions": "", "outcome": "maybe"}',
        b'{"time": "", "episode": 0, "actions": "", "colour": 1}',
    ],
)
def test_damaged_log_is_an_error_that_names_the_line(store: ExperienceStore, line: bytes) -> None:
    label(store, 0, outcome="failure")
    log = store.root / LABELS_PATH
    log.write_bytes(log.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"aloe_labels.jsonl.* line 2"):
        ExperienceStore.open(store.root)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [lines[0].replace(b"failure", b"success"), *lines[1:]],
        lambda lines: [lines[0].replace(b'"episode": 0', b'"episode": 1'), *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines[:0:-1]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
    ],
    ids=["another outcome", "another episode", "first taken out", "two exchanged", "one twice"],
)
def test_log_with_other_lines_than_were_written_is_refused(
    store: ExperienceStore, edit: Callable[[list[bytes]], list[bytes]]
) -> None:
    for outcome in ("failure", "success", "failure"):
        label(store, 0, outcome=outcome)
    log = store.root / LABELS_PATH
    log.write_bytes(b"\n".join([*edit(log.read_bytes().splitlines()), b""]))
    before = log.read_bytes()
    for attempt in (lambda: ExperienceStore.read(store.root), lambda: label(store, 0, outcome="success")):
        with pytest.raises(ValueError, match=r"aloe_labels.jsonl is damaged in line [12]: it is not what was written"):
            attempt()
    assert log.read_bytes() == before


def test_labels_do_not_decode_pictures_anew_but_change_the_digest_of_the_experience(
    store: ExperienceStore, tmp_path: Path
) -> None:
    def digest() -> str:
        return digest_of(ExperienceStore.open(store.root).columns())

    unlabelled = digest()
    assert FrameCache(Cache(root=tmp_path / "cache"), store).update() == 4
    label(store, 0, outcome="failure")
    again = ExperienceStore.open(store.root)
    assert FrameCache(Cache(root=tmp_path / "cache"), again).update() == 0
    failed = digest()
    assert failed != unlabelled
    label(store, 0, outcome="success")
    assert digest() != failed
    undo(store, 0)
    assert digest() == failed
    undo(store, 0)
    assert digest() == unlabelled


def test_appending_goes_on_in_a_labelled_store(store: ExperienceStore, make_episode: MakeEpisode) -> None:
    label(store, 0, outcome="failure")
    again = ExperienceStore.open(store.root)
    again.append(make_episode(4))
    assert last_step(again.columns(), 0) == (True, False, False, -1.0)
    assert last_step(again.columns(), 4) == (True, False, True, 0.0)
