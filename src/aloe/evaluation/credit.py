"""Does the value drop where things went wrong? Arrays in, numbers out; NaN where a number is undefined.

Two witnesses know better than the critic: the simulator, which knows when a failed episode could no longer be won by what
the policy did, and the human, who took over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

PLATEAU = 0.05
"""Progress within this share of its range below the best counts as the best: a hand that trembles has not failed."""


def failure_step(progress: Shaped[ndarray, "T"], disturbed_at: int | None) -> int | None:
    """The step at which a *failed* episode went wrong.

    Where the world was disturbed, that step. Otherwise the first step from which on the progress never was the best of the
    episode again (within `PLATEAU` of its range): the action of that step lost what had been reached. An episode that was
    still at its best when time ran out went wrong at its last step. None where the progress is not known.

    progress: after each step.
    """
    if disturbed_at is not None:
        return disturbed_at
    if not len(progress):
        return None
    enough = progress.max() - PLATEAU * (progress.max() - progress.min())
    return min(int(np.flatnonzero(progress >= enough)[-1]) + 1, len(progress) - 1)


def steepest_drop(value: Shaped[ndarray, "T"]) -> int:
    """The step t whose action cost most: argmin of V(s_{t+1}) - V(s_t). The first one where several cost the same.

    Raises:
        ValueError: fewer than two states, between which nothing can drop.
    """
    if len(value) < 2:
        raise ValueError("a drop of the value needs at least two states")
    return int(np.argmin(np.diff(value)))


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Where the value dropped against where the episode failed."""

    episodes: int
    """Failed episodes of two steps and more whose step of failure is known."""
    distance: float
    """Median number of steps between the steepest drop and the failure."""
    distance_of_chance: float
    """Median number of steps if the drop were at a step drawn evenly from each episode."""


def credit(values: Sequence[Shaped[ndarray, "T"]], failures: Sequence[int]) -> Credit:
    """Compares the steepest drop of each failed episode's values with its step of failure."""
    pairs = [(value, failure) for value, failure in zip(values, failures, strict=True) if len(value) > 1]
    if not pairs:
        return Credit(episodes=0, distance=float("nan"), distance_of_chance=float("nan"))
    distances = [abs(steepest_drop(value) - failure) for value, failure in pairs]
    guesses = [np.abs(np.arange(len(value) - 1) - failure) for value, failure in pairs]
    share = np.concatenate([np.full(len(guess), 1 / len(guess) / len(guesses)) for guess in guesses])
    return Credit(
        episodes=len(pairs),
        distance=float(np.median(distances)),
        distance_of_chance=weighted_median(np.concatenate(guesses), share),
    )


def weighted_median(values: Shaped[ndarray, "N"], weight: Float[ndarray, "N"]) -> float:
    """The smallest value at or below which at least half of the weight lies."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) >= 0.5 * weight.sum() * (1 - 1e-9)
    return float(values[order][reached][0])


@dataclass(frozen=True, kw_only=True)
class Takeovers:
    """Values before the human acted against values at the same step of episodes in which no human had to."""

    count: int
    """Takeovers with an episode without takeover to compare with."""
    difference: float
    """Mean of the value before a takeover minus the usual one: negative means that the critic saw trouble, too."""
    auc: float
    """Chance that the value before a takeover is below the usual one at that step (ties count half): 1 is a critic that
    always sees trouble coming, 0.5 one that knows nothing."""


def takeovers(
    value: Shaped[ndarray, "N"],
    moment: Shaped[ndarray, "N"],
    before: Sequence[Shaped[ndarray, "B"]],
    usual: Shaped[ndarray, "N"],
) -> Takeovers:
    """Compares each takeover with the episodes that needed none.

    value, moment: of every state: its value, and a number that two states share if they are to be compared (their step
    within the episode, with the task where there are several).
    before: rows of the last few states before each takeover.
    usual: bool, whether a state belongs to an episode without takeover.
    """
    differences, chances = [], []
    for rows in before:
        compared = [(value[row], value[usual & (moment == moment[row])]) for row in rows]
        compared = [(mine, others) for mine, others in compared if len(others)]
        if compared:
            differences.append(np.mean([mine - others.mean() for mine, others in compared]))
            chances.append(
                np.mean([(mine < others).mean() + 0.5 * (mine == others).mean() for mine, others in compared])
            )
    if not differences:
        return Takeovers(count=0, difference=float("nan"), auc=float("nan"))
    return Takeovers(count=len(differences), difference=float(np.mean(differences)), auc=float(np.mean(chances)))
