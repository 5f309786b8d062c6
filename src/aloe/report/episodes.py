"""Episodes along time: what was executed and by whom, and what the critics said of it; and which of them a page shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64, Shaped, UInt8
from numpy import ndarray

from aloe.config import judges_critics
from aloe.evaluation.credit import steepest_drop
from aloe.experience.schema import Experience, Frames
from aloe.experience.store import ExperienceStore
from aloe.report.folder import RunSoFar
from aloe.stages import held_out
from aloe.types import NO_POLICY, Source

Outcome = Literal["success", "failure", "time out", "unknown"]
Pictures = Mapping[str, UInt8[ndarray, "N h w 3"]]
LINES = ("value", "return", "advantage", "spread", "weight")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One episode along time."""

    title: str
    task: str
    kind: Literal["learnt from", "perhaps learnt from", "fresh", "held out", "not judged"]
    """Whether the critic whose values these are has been trained on it."""
    critic: int | None
    """Round of that critic."""
    round: int | None
    """In which it was recorded, where this run did that; 0 are the demonstrations."""
    version: int | None
    """Policy version that played or was corrected."""
    outcome: Outcome
    failure_step: int | None = None
    """At which it went wrong, where the simulator knows."""
    source: Int64[ndarray, "T"]
    lines: Mapping[str, Shaped[ndarray, "T"]]
    """What there is of `LINES`. The spread is the standard deviation over the critics' values of the executed chunk."""
    fps: int
    pictures: Callable[[int, int], Pictures] | None
    """Decodes those of every n-th step, no larger than needed (see `Experience.pictures`); None where there are none."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def takeovers(self) -> list[int]:
        """Steps at which the human took over."""
        human = self.source == Source.HUMAN
        return np.flatnonzero(human & ~np.concatenate([[False], human[:-1]])).tolist()

    @property
    def drop(self) -> tuple[int, float] | None:
        """The step that cost most of the value, and how much."""
        value = self.lines.get("value")
        if value is None or len(value) < 2:
            return None
        step = steepest_drop(value)
        return step, float(value[step] - value[step + 1])

    @property
    def disagreement(self) -> float | None:
        """Mean of value minus the return that followed: positive where the critic hoped for more than came."""
        if "value" not in self.lines or not np.isfinite(self.lines["return"]).any():
            return None
        return float(np.nanmean(self.lines["value"] - self.lines["return"]))


def traces(run: RunSoFar) -> tuple[list[Trace], str | None]:
    """All episodes of a run, and why those that it has learnt from have no pictures, where they could have."""
    last = run.judged[-1] if run.judged else None
    table = None if last is None else run.values(last)
    try:
        experience, missing = run.experience, None
        if table is not None:
            _check_judged(experience, table, last)
    except (ValueError, OSError) as error:
        experience, missing = None, str(error)
    if experience is not None:
        found = list(_recorded(run, experience, table, last))
    else:
        found = [] if table is None else list(_from_values(run, table, last))
    return [*found, *(trace for index in run.judged for trace in _fresh(run, index))], missing


def _check_judged(experience: Experience, table: pd.DataFrame, critic: int | None) -> None:
    """Raises ValueError unless the experience begins with the steps that the table is about: a root that has grown or lost
    episodes since moves those of all that come after it."""
    frames = experience.columns()
    columns = (("episode", frames.episode), ("step", frames.step), ("source", frames.source))
    if any(not np.array_equal(column[: len(table)], table[name]) for name, column in columns):
        raise ValueError(f"{experience} has changed since the critic of round {critic} judged it")


def _recorded(run: RunSoFar, experience: Experience, table: pd.DataFrame | None, critic: int | None) -> Iterator[Trace]:
    """The run's experience, with what the critic of a round says of it."""
    frames = experience.columns()
    aside = set(held_out(frames, run.config["trust"]["held_out"])) if _holds_out(run) else set()
    recorded = run.recorded_by()
    given = len(experience.lengths) - (0 if run.config["offline"] else len(_own(run)))
    judged, lines = (0, {}) if table is None else (len(table), _lines(table))
    for episode, rows in enumerate(_rows(experience)):
        is_judged = bool(rows.stop <= judged)
        yield Trace(
            title=f"episode {episode}",
            task=frames.tasks[frames.task_index[rows.start]],
            kind="not judged" if not is_judged else "held out" if episode in aside else "learnt from",
            critic=critic if is_judged else None,
            round=next((index for index, count in recorded if given <= episode < given + count), None),
            version=_version(frames.policy_version[rows]),
            outcome=_outcome(frames, rows.stop - 1),
            source=frames.source[rows],
            lines={name: line[rows] for name, line in lines.items()} if is_judged else {},
            fps=experience.fps,
            pictures=_pictures(experience, episode),
        )


def _fresh(run: RunSoFar, critic: int) -> Iterator[Trace]:
    """The evaluation episodes that a round's critic was judged on; offline these are held-out ones, and there already."""
    table = None if run.config["offline"] else run.fresh_values(critic)
    if table is None:
        return
    version = critic - 1
    store, facts = run.fresh(version)
    frames, lines = store.columns(), _lines(table)
    for episode, rows in enumerate(_rows(store)):
        yield Trace(
            title=f"fresh {episode} of version {version}",
            task=frames.tasks[frames.task_index[rows.start]],
            kind="fresh",
            critic=critic,
            round=version,
            version=version,
            outcome=_outcome(frames, rows.stop - 1),
            failure_step=facts[episode].failure_step,
            source=frames.source[rows],
            lines={name: line[rows] for name, line in lines.items()},
            fps=store.fps,
            pictures=_pictures(store, episode),
        )


def _from_values(run: RunSoFar, table: pd.DataFrame, critic: int | None) -> Iterator[Trace]:
    """Episodes whose experience is not there any more: what the critic's table still knows of them. It does not say which
    were held out."""
    may_be_held_out = _holds_out(run) and run.config["trust"]["held_out"] > 0
    for episode, rows in table.groupby("episode", sort=True):
        yield Trace(
            title=f"episode {episode}",
            task="",
            kind="perhaps learnt from" if may_be_held_out else "learnt from",
            critic=critic,
            round=None,
            version=_version(rows["policy_version"].to_numpy()),
            outcome="unknown",
            source=rows["source"].to_numpy(),
            lines=_lines(rows),
            fps=1,
            pictures=None,
        )


def _holds_out(run: RunSoFar) -> bool:
    """Whether there are episodes that the run's critics were not trained on."""
    return run.config["offline"] and judges_critics(run.config["method"], run.config["trust"]["episodes"])


def _own(run: RunSoFar) -> list[int]:
    """Lengths of the episodes that the run has recorded itself."""
    return ExperienceStore.read(run.folder.experience).lengths


def _rows(experience: Experience) -> Iterator[slice]:
    ends = np.cumsum([0, *experience.lengths]).tolist()
    return (slice(start, stop) for start, stop in pairwise(ends))


def _pictures(experience: Experience, episode: int) -> Callable[[int, int], Pictures] | None:
    return partial(experience.pictures, episode) if experience.cameras else None


def _version(versions: Int64[ndarray, "T"]) -> int | None:
    return None if (version := int(versions.max())) == NO_POLICY else version


def _outcome(frames: Frames, last: int) -> Outcome:
    if frames.success[last]:
        return "success"
    return "failure" if frames.terminated[last] else "time out" if frames.truncated[last] else "unknown"


def _lines(table: pd.DataFrame) -> dict[str, ndarray]:
    critics = [name for name in table if str(name).startswith("q_")]
    lines = {name: table[name].to_numpy() for name in LINES if name in table}
    if len(critics) > 1:
        lines["spread"] = table[critics].to_numpy().std(axis=1)
    return lines


def choose(candidates: Sequence[Trace], count: int) -> list[Trace]:
    """`count` episodes to look at, in their order: half of them such as the critic has not learnt from.

    In either half, places go in turn to the largest drop of V, the largest disagreement, the most takeovers, the smallest
    disagreement (a critic must be seen where it is right, too) and the newest episode.
    """
    if len(candidates) <= count:
        return list(candidates)
    unseen = [i for i, trace in enumerate(candidates) if trace.kind in ("fresh", "held out")]
    others = [i for i in range(len(candidates)) if i not in set(unseen)]
    half = min(len(unseen), max(count // 2, count - len(others)))
    picked = {*_in_turn(candidates, unseen, half), *_in_turn(candidates, others, count - half)}
    return [candidates[i] for i in sorted(picked)]


def _in_turn(candidates: Sequence[Trace], among: Sequence[int], count: int) -> list[int]:
    def apart(i: int) -> float | None:
        return None if (signed := candidates[i].disagreement) is None else abs(signed)

    orders: list[Callable[[int], float | None]] = [
        lambda i: None if (drop := candidates[i].drop) is None else drop[1],
        apart,
        lambda i: float(len(candidates[i].takeovers)) or None,
        lambda i: None if (error := apart(i)) is None else -error,
        float,
    ]
    wishes = []
    for order in orders:
        known = [(wish, i) for i in among if (wish := order(i)) is not None]
        wishes.append([i for _, i in sorted(known, key=lambda pair: (-pair[0], pair[1]))])
    picked: dict[int, None] = {}
    for turn in range(count * len(wishes)):
        if len(picked) == count:
            break
        left = [i for i in wishes[turn % len(wishes)] if i not in picked]
        if left:
            picked[left[0]] = None
    return list(picked)
