"""What a store holds, counted: by who played, by who acted, and of what it was made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from aloe.experience.schema import Frames
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Source


@dataclass(frozen=True, kw_only=True)
class Played:
    """The episodes of one policy version, or the demonstrations."""

    version: int
    """`NO_POLICY` for episodes without any policy."""
    episodes: int
    frames: int
    successes: int
    """Episodes that ended in success, by whoever's hand."""
    unaided: int
    """Those of them in which no human acted."""
    taken_over: int
    """Episodes in which a human acted at least once."""
    takeovers: int
    human_frames: int


def played(frames: Frames) -> list[Played]:
    """One entry for each policy version, in order. An episode belongs to the version of its first step."""
    starts = np.flatnonzero(frames.step == 0)
    if not len(starts):
        return []
    last = np.append(starts[1:], len(frames)) - 1
    human = frames.source == Source.HUMAN
    human_frames = np.add.reduceat(human.astype(np.int64), starts)
    takeovers = np.add.reduceat(frames.takeovers.astype(np.int64), starts)
    version, success = frames.policy_version[starts], frames.success[last]
    rows = []
    for number in np.unique(version):
        mine: ndarray = version == number
        rows.append(
            Played(
                version=int(number),
                episodes=int(mine.sum()),
                frames=int((last - starts + 1)[mine].sum()),
                successes=int(success[mine].sum()),
                unaided=int((success & (human_frames == 0))[mine].sum()),
                taken_over=int((human_frames[mine] > 0).sum()),
                takeovers=int(takeovers[mine].sum()),
                human_frames=int(human_frames[mine].sum()),
            )
        )
    return rows


def inventory(store: ExperienceStore) -> Group:
    """The tables of `aloe data info`."""
    frames = store.columns()
    return Group(_about(store, frames), _by_player(played(frames)), _by_source(frames, store.fps))


def _about(store: ExperienceStore, frames: Frames) -> Table:
    table = Table(title=escape(str(store.root)), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    cameras = ", ".join(f"{camera} {w} x {h}" for camera, (h, w) in store.cameras.items())
    used = np.bincount(frames.task_index[frames.step == 0], minlength=len(frames.tasks))
    facts: dict[str, Any] = {
        "episodes": store.num_episodes,
        "frames": store.num_frames,
        "hours": _hours(store.num_frames, store.fps),
        "fps": store.fps,
        "cameras": cameras or "none",
        "state, action": f"{store.state_dim}, {store.action_dim} numbers",
        "tasks": "\n".join(f"{task} ({count} episodes)" for task, count in zip(frames.tasks, used, strict=True))
        or "none",
        "labelled later": f"{len(store.labels)} episodes",
    }
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    return table


def _by_player(rows: list[Played]) -> Table:
    table = Table(title="who played")
    # In 80 columns no word is cut.
    for name in (
        "policy\nversion",
        "episodes",
        "frames",
        "success",
        "unaided",
        "taken\nover",
        "takeovers",
        "by\nhuman",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            "demos" if row.version == NO_POLICY else str(row.version),
            str(row.episodes),
            str(row.frames),
            f"{row.successes / row.episodes:.0%}",
            f"{row.unaided / row.episodes:.0%}",
            f"{row.taken_over / row.episodes:.0%}",
            str(row.takeovers),
            f"{row.human_frames / row.frames:.0%}",
        )
    return table


def _by_source(frames: Frames, fps: int) -> Table:
    table = Table(title="who acted")
    for name in ("source", "episodes", "frames", "hours", "share"):
        table.add_column(name, justify="right")
    for source in Source:
        mine = frames.source == source
        if count := int(mine.sum()):
            episodes = len(np.unique(frames.episode[mine]))
            cells = (source.name.lower(), episodes, count, _hours(count, fps), f"{count / len(frames):.0%}")
            table.add_row(*map(str, cells))
    return table


def _hours(frames: int, fps: int) -> str:
    return f"{frames / fps / 3600:.2f}"
