"""Who takes over from the policy, and when.

A `Human` watches every step that the policy plays. When it wants control, the policy's fragment is cut there
and labelled a failure, and the human drives from that very state to the end of the episode: to success, or
until a time of its own, as long as the policy's, has run out.
"""

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

FAILING_NOISE: Final = 0.5
"""Standard deviation of the noise on the actions of a correction that goes wrong. With it, Meta-World's experts fail in
most episodes where precision matters (`benchmarks/experts.py`), and yet what they do is no nonsense."""


@runtime_checkable
class Teachable(Protocol):
    """What a scripted human needs of a world."""

    def progress(self) -> float: ...

    def expert_action(self) -> Float32[ndarray, "A"]: ...


@runtime_checkable
class Human(Protocol):
    """Decides when to take over, and then acts."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begins an episode; all of the human's chance is drawn from `rng`."""
        ...

    def wants_control(self, step: int, world: Teachable) -> bool:
        """Whether to take over now. Asked after each step that the policy played; `step` counts those."""
        ...

    def act(self, world: Teachable) -> Float32[ndarray, "A"]:
        """The human's action in the world's present state."""
        ...


@dataclass(frozen=True, kw_only=True)
class HumanConfig:
    """The scripted human: what makes it step in, and how well it does so.

    Patience and delay count environment steps; halve them when an environment step becomes twice as long.
    """

    patience_steps: int | None = 20
    """Steps in here without progress are an occasion to take over; None: a standstill never is. Meta-World's
    own experts stand still for up to 1.4 s, 27 steps of 50 ms (peg-insert-side: 15), because not every phase
    is rewarded."""
    min_progress: float = 0.1
    """Rise of `world.progress()` (0 to 10) over the best so far that counts as progress."""
    time_fraction: float | None = 0.75
    """Share of the policy's time after which there is an occasion to take over, once; None: never for being
    late. At 1 the human comes when the time is out, whatever its delay, and the policy's last step is a failure
    instead of a time-out."""
    reaction_delay_steps: int = 2
    """Steps that the policy still plays between the occasion and the take-over."""
    miss_probability: float = 0.0
    """Chance not to notice, drawn at each occasion. A missed standstill is one again after as long a wait."""
    action_noise: float = 0.0
    """Standard deviation of the noise on the human's actions, in the world's units (-1 to 1)."""
    failure_probability: float = 0.0
    """Chance that a correction goes wrong, drawn at each take-over: the hand's noise is then `FAILING_NOISE`, so
    that it usually achieves nothing until its time is out."""
    takeovers: int | None = None
    """Attention: take-overs that a round of collection may take; None: no limit. They are split over the workers,
    and nobody watches a worker whose share is used up."""

    def __post_init__(self) -> None:
        if self.patience_steps is not None and self.patience_steps < 1:
            raise ValueError("patience_steps must be at least 1, or None for a human who never minds a standstill")
        if self.time_fraction is not None and not 0.0 < self.time_fraction <= 1.0:
            raise ValueError("time_fraction must lie in (0, 1], or be None for a human who never minds the time")
        if not 0.0 <= self.miss_probability <= 1.0:
            raise ValueError(f"miss_probability must lie in [0, 1], not {self.miss_probability}")
        if self.min_progress <= 0.0:
            raise ValueError("min_progress must be positive: otherwise standing still would count as progress")
        if self.reaction_delay_steps < 0 or self.action_noise < 0.0:
            raise ValueError("reaction_delay_steps and action_noise must not be negative")
        if not 0.0 <= self.failure_probability <= 1.0:
            raise ValueError(f"failure_probability must lie in [0, 1], not {self.failure_probability}")
        if self.takeovers is not None and self.takeovers < 0:
            raise ValueError("takeovers must not be negative; None: no limit")


GRADES: Final[dict[str, HumanConfig]] = {
    "expert": HumanConfig(reaction_delay_steps=0),
    "ordinary": HumanConfig(
        reaction_delay_steps=4, miss_probability=0.15, action_noise=0.1, failure_probability=0.1, takeovers=10
    ),
    "novice": HumanConfig(
        reaction_delay_steps=8, miss_probability=0.3, action_noise=0.2, failure_probability=0.3, takeovers=10
    ),
}
"""How good the human is. The expert is flawless and watches without end. The others have the same attention, one
take-over for every six episodes of a round of 60, and differ in skill: they react after 0.2 s and 0.4 s (at 50 ms
a step), overlook some failures, and their hand is unsteady; at a noise of 0.3 Meta-World's expert fails in 9 of 10
episodes of assembly."""


def takeover_shares(budget: int, workers: int) -> list[int]:
    """A round's take-overs, split over the workers: `budget // workers` each, the remainder to the first.

    A worker always plays the same episodes, so that with a share of its own which episodes are watched does not
    depend on which worker is the faster.
    """
    return [budget // workers + (worker < budget % workers) for worker in range(workers)]


class ScriptedHuman:
    """A `Human` made of the world's scripted expert and of its measure of progress."""

    def __init__(self, config: HumanConfig, *, max_steps: int) -> None:
        self.config = config
        self.max_steps = max_steps

    def reset(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._best_progress = 0.0
        self._waiting_since = 0
        self._was_late = False
        self._comes_at: int | None = None
        self._fails = False

    def wants_control(self, step: int, world: Teachable) -> bool:
        if self._comes_at is None and (arrival := self._occasion(step, world.progress())) is not None:
            noticed = self._rng.random() >= self.config.miss_probability
            if noticed:
                self._comes_at = arrival
        if self._comes_at is None or step < self._comes_at:
            return False
        chance = self.config.failure_probability
        self._fails = chance > 0.0 and self._rng.random() < chance
        return True

    def act(self, world: Teachable) -> Float32[ndarray, "A"]:
        std = FAILING_NOISE if self._fails else self.config.action_noise
        return noisy(world.expert_action(), std, self._rng)

    def _occasion(self, step: int, progress: float) -> int | None:
        """The step at which the human comes if it notices that there is an occasion now; None: there is none."""
        config = self.config
        if progress >= self._best_progress + config.min_progress:
            self._best_progress, self._waiting_since = progress, step
        stuck = config.patience_steps is not None and step - self._waiting_since >= config.patience_steps
        if stuck:
            self._waiting_since = step
        late = config.time_fraction is not None and not self._was_late and step >= config.time_fraction * self.max_steps
        self._was_late = self._was_late or late
        arrival = step + config.reaction_delay_steps
        if late:  # who waits for the end is not too late for it
            return min(arrival, self.max_steps)
        return arrival if stuck else None


def noisy(action: Float32[ndarray, "A"], std: float, rng: np.random.Generator) -> Float32[ndarray, "A"]:
    """The action with Gaussian noise, still within [-1, 1]."""
    if std == 0.0:
        return action
    return np.clip(action + std * rng.standard_normal(action.shape), -1.0, 1.0).astype(np.float32)
