"""Who acted in a foreign dataset, and how its episodes ended. `docs/data.md` has the rules as a table.

Labels come in many spellings. Here they are understood or refused by name, never guessed: where two columns contradict
each other, or a column cannot mean what it says, the error names it and the option that decides. `--ignore COLUMN` takes a
column for what it is not.

Where the conventions were read: LeRobot 0.6.1 (`rollout/strategies/dagger.py` writes `intervention`; `rl/buffer.py`
`complementary_info.is_intervention` and, in `next.done`, the terminals; `rl/gym_manipulator.py` and
`scripts/lerobot_eval.py` set `next.done` at a time-out, too), RLinf (`intervene_flag`; `is_success` is the episode's
outcome, the same at every step; `done` is set at every last step, a time-out's included), HIL-SERL (`intervene_action`
replaces the policy's action).
"""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from aloe.experience.foreign import ForeignDataset
from aloe.experience.labels import Outcome, SourceName
from aloe.experience.schema import ACTION, STATE
from aloe.types import Source

INTERVENTIONS: Final = ("intervention", "complementary_info.is_intervention", "is_intervention", "intervene_flag")
"""Columns that say whether a human acted, one flag a step."""
INTERVENE_ACTION: Final = "intervene_action"
SUCCESSES: Final = ("next.success", "is_success")
DONES: Final = ("next.done", "done")
TRUNCATED: Final = "next.truncated"
REWARD: Final = "next.reward"
_STATES: Final = (STATE, "state")
_ACTIONS: Final = (ACTION, "actions")
_ADDED_BY_LEROBOT: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What a dataset does not say itself."""

    source: SourceName | None = None
    """Who acted, where no column says it."""
    policy_version: int = 0
    """Version of the policy that acted or was corrected, written beside each of its steps."""
    outcome: Literal["success", "failure", "ask"] | None = None
    """How the episodes ended of which no column says it; ask: answer for each of them at the terminal."""
    outcomes: Path | None = None
    """CSV with the columns episode and outcome (success or failure). What stands there goes before every column."""
    success_reward: float | None = None
    """An episode succeeded if its last next.reward is at least this, where no other column says it."""
    failure_end: Literal["recorded", "timeout", "terminal"] = "recorded"
    """How the episodes ended that did not succeed: as recorded; all by time running out; all for good, time-outs, too."""
    state: str | None = None
    """Column of the state; by default observation.state or state."""
    action: str | None = None
    """Column of the action; by default action or actions."""
    ignore: tuple[str, ...] = ()
    """Columns that are not what they are called."""

    def __post_init__(self) -> None:
        if self.policy_version < 0:
            raise ValueError(f"policy_version is 0 or more, not {self.policy_version}")


@dataclass(frozen=True, kw_only=True)
class EpisodeLabels:
    """What was found out about one episode."""

    source: Int64[ndarray, "T"]
    success: bool
    timeout: bool
    """Time ran out, or the recording stopped; else it ended for good."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What was found out about a dataset."""

    state: str
    action: str
    episodes: list[EpisodeLabels]
    notes: dict[str, str]
    """What -> how it was found out, in words."""


def resolve(
    dataset: ForeignDataset,
    config: ImportConfig,
    ask: Callable[[int], Outcome] | None = None,
    usual_source: SourceName | None = None,
) -> Resolved:
    """Find out who acted and how each episode ended. Nothing is written yet.

    ask: called with an episode that nothing says the outcome of, where `config.outcome` is "ask".
    usual_source: who acted, where neither a column nor `config.source` says it.

    Raises:
        ValueError: a label is missing, contradicts another one, or may mean two things. The message names the column.
    """
    for column in config.ignore:
        if column not in dataset.features:
            raise ValueError(f"{dataset.root} has no column {column!r} to ignore; it has {', '.join(dataset.features)}")
    labels = _Labels(dataset, config, config.source or usual_source)
    state, action = labels.only(_STATES, config.state, "--state"), labels.only(_ACTIONS, config.action, "--action")
    sources = [labels.source(i) for i in range(len(dataset))]
    success, how = labels.outcomes(ask)  # last of what may be missing: somebody may have to answer for hundreds
    episodes = [
        EpisodeLabels(source=sources[i], success=success[i], timeout=labels.timed_out(i, success[i]))
        for i in range(len(dataset))
    ]
    labels.used |= set(labels.present((*INTERVENTIONS, INTERVENE_ACTION, *SUCCESSES, *DONES, TRUNCATED)))
    used = {state, action, *dataset.cameras, *_ADDED_BY_LEROBOT, *labels.used} - set(config.ignore)
    ends = Counter("success" if e.success else "time-out or stop" if e.timeout else "failure" for e in episodes)
    by = [key for key in (*INTERVENTIONS, INTERVENE_ACTION) if key in labels.used]
    notes = {
        "state, action": f"{state}, {action}",
        "who acted": ", ".join(by) if by else f"{labels.said_source}, as told",
        "outcome by": ", ".join(f"{name} ({count})" for name, count in Counter(how).items()),
        "ends": ", ".join(f"{count} by {name}" for name, count in ends.items()),
    }
    if left := [key for key in dataset.features if key not in used]:
        notes["not imported"] = ", ".join(left)
    return Resolved(state=state, action=action, episodes=episodes, notes=notes)


class _Labels:
    """The label columns of a dataset, each asked for one question."""

    def __init__(self, dataset: ForeignDataset, config: ImportConfig, said_source: SourceName | None) -> None:
        self.dataset, self.config, self.said_source = dataset, config, said_source
        self.used: set[str] = set()
        self._is_nan_used: bool | None = None

    def present(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key in self.dataset.features and key not in self.config.ignore]

    def only(self, keys: Sequence[str], chosen: str | None, option: str) -> str:
        """The one column of these names, or the chosen one."""
        found = self.present(keys) if chosen is None else self.present([chosen])
        if len(found) == 1:
            return found[0]
        wanted = chosen or " or ".join(keys)
        problem = f"has both columns {' and '.join(found)}" if found else f"has no column {wanted}"
        raise ValueError(f"{self.dataset.root} {problem}; name the right one with {option}: {self._columns()}")

    def _columns(self) -> str:
        return ", ".join(key for key in self.dataset.features if key not in _ADDED_BY_LEROBOT)

    def flags(self, key: str, episode: int) -> Bool[ndarray, "T"]:
        """A column of yes and no, also where it was written as numbers."""
        values = self.dataset.column(episode, key)
        if values.ndim > 1 or not np.isin(values, (0, 1)).all():
            wrong = values[~np.isin(values, (0, 1))].flat[0] if values.ndim == 1 else values.shape
            raise ValueError(
                f"{self.dataset.root}: column {key!r} holds {wrong} in episode {episode}; 0 or 1 a step was expected. "
                f"If it is no label, --ignore {key}"
            )
        self.used.add(key)
        return values.astype(bool)

    def agreed(self, keys: Sequence[str], episode: int, read: Callable[[str, int], Any]) -> Any:
        """What all of these columns say; None where there is none of them."""
        said = {key: read(key, episode) for key in self.present(keys)}
        for key, value in said.items():
            if not np.array_equal(value, first := next(iter(said.values()))):
                other = next(iter(said))
                raise ValueError(
                    f"{self.dataset.root}: in episode {episode} column {other!r} says {_short(first)}, "
                    f"column {key!r} {_short(value)}; --ignore the wrong one"
                )
        return next(iter(said.values()), None)

    def at_the_end(self, key: str, episode: int) -> bool:
        """What a flag says of the whole episode: that of its last step, if it does not take back an earlier one."""
        flags = self.flags(key, episode)
        if flags.any() and not flags[-1]:
            raise ValueError(
                f"{self.dataset.root}: column {key!r} is set in step {int(flags.argmax())} of episode {episode}, and not "
                f"at its end in step {len(flags) - 1}; does the episode hold several? --ignore {key}, and say it yourself"
            )
        return bool(flags[-1])

    # ---- who acted

    def source(self, episode: int) -> Int64[ndarray, "T"]:
        """Who executed each step."""
        human = self.agreed(INTERVENTIONS, episode, self.flags)
        if human is None and self.present([INTERVENE_ACTION]):
            human = self._intervened(episode)
        if human is not None:
            if self.config.source is not None:
                column = self.present((*INTERVENTIONS, INTERVENE_ACTION))[0]
                raise ValueError(f"column {column!r} says who acted; leave out --source, or --ignore {column}")
            return np.where(human, Source.HUMAN, Source.POLICY).astype(np.int64)
        if self.said_source is None:
            raise ValueError(
                f"no column of {self.dataset.root} says who acted (looked for "
                f"{', '.join((*INTERVENTIONS, INTERVENE_ACTION))}); give --source demo, policy or human"
            )
        return np.full(self.dataset.lengths[episode], Source[self.said_source.upper()], np.int64)

    def _intervened(self, episode: int) -> Bool[ndarray, "T"]:
        """A human acted where `intervene_action` holds an action, and did not where it holds NaN."""
        given = self._given(episode)
        if (given.any(1) != given.all(1)).any():
            raise ValueError(f"{self.dataset.root}: {INTERVENE_ACTION!r} holds parts of actions in episode {episode}")
        if self._is_nan_used is None:
            self._is_nan_used = any(not self._given(i).all() for i in range(len(self.dataset)))
        if not self._is_nan_used:
            raise ValueError(
                f"{self.dataset.root}: column {INTERVENE_ACTION!r} is filled at every step, so it does not tell a human's "
                "action from none (NaN, by which it would, is nowhere). Add a column intervene_flag, or --ignore "
                f"{INTERVENE_ACTION} and give --source"
            )
        return np.asarray(given.all(1))

    def _given(self, episode: int) -> Bool[ndarray, "T A"]:
        values = self.dataset.column(episode, INTERVENE_ACTION)
        return ~np.isnan(values.reshape(len(values), -1))

    # ---- how it ended

    def outcomes(self, ask: Callable[[int], Outcome] | None) -> tuple[list[bool], list[str]]:
        """Success of every episode, and by what it is known: CSV, column, reward, --outcome, in this order."""
        config, count = self.config, len(self.dataset)
        listed = read_outcomes(config.outcomes, count) if config.outcomes is not None else {}
        known: dict[int, tuple[bool, str]] = {i: (success, str(config.outcomes)) for i, success in listed.items()}
        for i in (i for i in range(count) if i not in known):
            success = self.agreed(SUCCESSES, i, self.at_the_end)
            if success is not None and config.success_reward is not None:
                column = self.present(SUCCESSES)[0]
                raise ValueError(
                    f"column {column!r} says what succeeded; leave out --success-reward, or --ignore {column}"
                )
            if success is not None:
                known[i] = (success, " and ".join(self.present(SUCCESSES)))
            elif config.success_reward is not None:
                if not self.present([REWARD]):
                    raise ValueError(f"{self.dataset.root} has no column {REWARD!r}, so --success-reward says nothing")
                known[i] = (self._last_reward(i) >= config.success_reward, f"{REWARD} >= {config.success_reward:g}")
        unknown = [i for i in range(count) if i not in known]
        if unknown and config.outcome is None:
            raise ValueError(self._no_outcome(unknown))
        if config.outcome is not None and not unknown:
            raise ValueError(
                f"{', '.join(dict.fromkeys(how for _, how in known.values()))} already says how every episode ended; leave "
                "out --outcome, or --ignore the column"
            )
        for i in unknown:
            answer = config.outcome
            if answer == "ask":
                if ask is None:
                    raise ValueError("--outcome ask needs somebody to ask")
                answer = ask(i)
            known[i] = (answer == "success", f"--outcome {config.outcome}")
        return [known[i][0] for i in range(count)], [known[i][1] for i in range(count)]

    def _last_reward(self, episode: int) -> float:
        value = float(self.dataset.column(episode, REWARD)[-1])
        if not np.isfinite(value):
            raise ValueError(f"{self.dataset.root}: column {REWARD!r} ends episode {episode} with {value}")
        self.used.add(REWARD)
        return value

    def _no_outcome(self, unknown: list[int]) -> str:
        hint = ""
        if self.present([REWARD]):
            last = sorted({self._last_reward(i) for i in unknown})
            hint = f"; {REWARD} ends at {last[0]:g} to {last[-1]:g}: if a high one is a success, --success-reward R"
        return (
            f"nothing says whether {len(unknown)} of {len(self.dataset)} episodes of {self.dataset.root} succeeded, the "
            f"first number {unknown[0]} (looked for {', '.join(SUCCESSES)}); give --outcome success, failure or ask, or "
            f"--outcomes FILE.csv with the columns episode,outcome{hint}"
        )

    def timed_out(self, episode: int, success: bool) -> bool:
        """Whether an episode was merely stopped. A success was not; a time-out is no terminal unless told so."""
        truncated = self.agreed([TRUNCATED], episode, self.at_the_end)
        done = self.agreed(DONES, episode, self.at_the_end)
        if success or self.config.failure_end != "recorded":
            return not success and self.config.failure_end == "timeout"
        if truncated is None and done:
            column = self.present(DONES)[0]
            raise ValueError(
                f"{self.dataset.root}: column {column!r} ends episode {episode}, which did not succeed, and no column "
                f"{TRUNCATED!r} tells a failure from a time-out (many recorders set {column!r} at both); give "
                "--failure-end timeout or --failure-end terminal"
            )
        return bool(truncated) or not done


def read_outcomes(path: Path, episodes: int) -> dict[int, bool]:
    """Episode -> success, from a CSV with the columns episode and outcome.

    Raises:
        ValueError: it is no such file; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"episode", "outcome"} <= set(reader.fieldnames):
                raise ValueError(f"{path} needs the columns episode,outcome in its first line")
            lines = [(reader.line_num, row["episode"] or "", row["outcome"] or "") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from error
    outcomes: dict[int, bool] = {}
    for number, episode, outcome in lines:
        if not episode.strip().isdecimal() or (index := int(episode)) >= episodes:
            raise ValueError(f"{path}, line {number}: there is no episode {episode!r}; they are 0 to {episodes - 1}")
        if (said := outcome.strip().lower()) not in ("success", "failure"):
            raise ValueError(f"{path}, line {number}: an outcome is success or failure, not {outcome!r}")
        if index in outcomes:
            raise ValueError(f"{path}, line {number}: episode {index} stands there twice")
        outcomes[index] = said == "success"
    return outcomes


def _short(value: Any) -> str:
    return str(value) if np.ndim(value) == 0 else f"{int(np.sum(value))} of {len(value)} steps"
