"""Labels given after the fact: how an episode ended, its last reward, who acted. They never change the data.

`meta/aloe_labels.jsonl` has one line a label or undo, in the order of giving:

    {"time": ..., "episode": 3, "actions": "<SHA-256>", "outcome": "failure", "sha256": ...}
    {"time": ..., "episode": 3, "actions": "<SHA-256>", "undo": true, "sha256": ...}

`ExperienceStore.columns()` applies what stood there when the store was opened, the later label over the earlier one. An
undo takes back the last label of its episode that was not taken back yet. `actions` is the hash of the episode's actions:
where an episode has another number since (somebody deleted one before it), the label is refused, not given to another.

Labels change no picture, so they are no part of `ExperienceStore.episode_digest()`: what is cached of pictures stays.
What is made of outcomes or sources asks for `schema.digest_of()`, which changes with them.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from aloe.experience.journal import append_line, read_lines
from aloe.experience.schema import Frames
from aloe.types import NO_POLICY, Source

LABELS_PATH: Final = Path("meta/aloe_labels.jsonl")
Outcome = Literal["success", "failure"]
SourceName = Literal["demo", "policy", "human"]
_FIELDS: Final = ("outcome", "reward", "source", "policy_version")


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is said of an episode after the fact. None: as recorded."""

    outcome: Outcome | None = None
    """Whether its last step succeeded."""
    reward: float | None = None
    """Reward of its last step."""
    source: SourceName | None = None
    """Who acted, in all of its steps."""
    policy_version: int | None = None
    """Version of the policy that acted; needed where a demonstration becomes something else."""

    def __post_init__(self) -> None:
        if self.outcome not in (None, "success", "failure"):
            raise ValueError(f"an outcome is success or failure, not {self.outcome!r}")
        if self.source is not None and self.source.upper() not in Source.__members__:
            raise ValueError(f"a source is demo, policy or human, not {self.source!r}")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a reward is a finite number, not {self.reward}")
        version = self.policy_version
        if version is not None and (
            not isinstance(version, int) or version < 0 or self.source not in ("policy", "human")
        ):
            raise ValueError("policy_version is a whole number from 0 on, and goes with the source policy or human")

    @property
    def given(self) -> dict[str, Any]:
        """What it says, without what it leaves as recorded."""
        return {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labels of one episode that hold."""

    actions: str
    """Hash of the actions that the labels were given to."""
    labels: tuple[Label, ...]
    """Oldest first."""


def read_labels(root: Path) -> dict[int, Labelled]:
    """Episode -> its labels that are not taken back.

    Raises:
        ValueError: the log is damaged, or was written by a version that knew other labels.
    """
    held: dict[int, Labelled] = {}
    for number, line in enumerate(read_lines(root / LABELS_PATH), start=1):
        match line:
            case {"episode": int(episode), "actions": str(actions), "time": str(), **said}:
                before = held.get(episode)
            case _:
                raise ValueError(f"{root / LABELS_PATH} is damaged in line {number}: {line}")
        if before is not None and before.actions != actions:
            raise ValueError(
                f"{root / LABELS_PATH}: line {number} and an earlier one give episode {episode} other actions"
            )
        labels = before.labels if before is not None else ()
        try:
            labels = labels[:-1] if said == {"undo": True} else (*labels, Label(**said))
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{root / LABELS_PATH}: line {number} is no label: {error}") from error
        held[episode] = Labelled(actions=actions, labels=labels)
    return {episode: labelled for episode, labelled in held.items() if labelled.labels}


def apply_labels(frames: Frames, labels: Mapping[int, Labelled]) -> Frames:
    """The frames as labelled. Labels of episodes that are not among them are passed over.

    Raises:
        ValueError: a labelled episode has other actions than the one that was labelled.
    """
    if not labels:
        return frames
    changed = {
        name: getattr(frames, name).copy()
        for name in ("reward", "terminated", "truncated", "success", "source", "policy_version")
    }
    labelled_frames = replace(frames, **changed)
    for episode, labelled in labels.items():
        rows = _rows(frames, episode)
        if not len(rows):
            continue
        if labelled.actions != _actions_digest(frames.action[rows]):
            raise ValueError(
                f"episode {episode} is not the one that {LABELS_PATH} labels: its actions are others; was an episode "
                "before it deleted? Move the log aside and label anew"
            )
        for label in labelled.labels:
            _apply(labelled_frames, frames, rows, label)
    return labelled_frames


def _apply(frames: Frames, recorded: Frames, rows: ndarray, label: Label) -> None:
    """Write a label into the arrays of an episode. A time-out stays one: a failure takes its end as recorded, whatever an
    earlier label said."""
    last = rows[-1]
    if label.outcome == "success":
        frames.success[last], frames.terminated[last], frames.truncated[last] = True, True, False
        frames.reward[last] = 0.0
    elif label.outcome == "failure":
        was_success = frames.success[rows]
        frames.reward[rows[was_success]] = -1.0
        frames.success[rows] = False
        frames.truncated[last] = recorded.truncated[last]
        frames.terminated[last] = not recorded.truncated[last]
    if label.reward is not None:
        frames.reward[last] = label.reward
    if label.source is not None:
        frames.source[rows] = Source[label.source.upper()]
        if label.source == "demo":
            frames.policy_version[rows] = NO_POLICY
        elif label.policy_version is not None:
            frames.policy_version[rows] = label.policy_version


def write_label(root: Path, frames: Frames, episode: int, label: Label) -> None:
    """Append a label to the log. frames: the store's columns, as labelled until now.

    Raises:
        ValueError: there is no such episode, the label says nothing, or it would mix up who acted.
    """
    rows = _rows_of(frames, episode)
    if not label.given:
        raise ValueError("a label says something: give an outcome, a reward or a source")
    if label.source is not None:
        if len(found := np.unique(frames.source[rows])) > 1:
            names = " and ".join(Source(source).name.lower() for source in found)
            raise ValueError(
                f"episode {episode} has steps of {names}; one source for all of them would lose who acted when"
            )
        if label.source != "demo" and label.policy_version is None and frames.policy_version[rows[0]] == NO_POLICY:
            raise ValueError(f"episode {episode} has no policy version; source {label.source} needs --policy-version")
    _append(root, frames, episode, label.given)


def undo_label(root: Path, frames: Frames, episode: int) -> Label:
    """Take back the last label of an episode that still holds, and return it.

    Raises:
        ValueError: there is none.
    """
    _rows_of(frames, episode)
    if (labelled := read_labels(root).get(episode)) is None:
        raise ValueError(f"episode {episode} has no label to undo")
    _append(root, frames, episode, {"undo": True})
    return labelled.labels[-1]


def _rows(frames: Frames, episode: int) -> ndarray:
    """The rows of an episode; a store holds episode after episode."""
    return np.arange(*np.searchsorted(frames.episode, [episode, episode + 1]))


def _rows_of(frames: Frames, episode: int) -> ndarray:
    if not len(rows := _rows(frames, episode)):
        episodes = len(np.unique(frames.episode))
        raise ValueError(f"there is no episode {episode}; the store has {episodes}, counted from 0")
    return rows


def _append(root: Path, frames: Frames, episode: int, said: dict[str, Any]) -> None:
    actions = _actions_digest(frames.action[_rows(frames, episode)])
    time = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(root, LABELS_PATH, {"time": time, "episode": episode, "actions": actions, **said})


def _actions_digest(actions: Float32[ndarray, "T A"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(actions).tobytes()).hexdigest()
