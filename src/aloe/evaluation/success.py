"""How often a policy succeeds, and how fast, with an honest interval."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aloe.types import Episode


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate; `z` = 1.96 for 95 %.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = successes / n (Wilson 1927). Unlike p ± z·σ it
    stays within [0, 1] and has a width at p = 0 and p = 1, which a robot with 20 trials often reaches.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} episodes: there must be at least one episode")
    p = successes / n
    centre = p + z**2 / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low = 0.0 if successes == 0 else (centre - margin) / scale  # exactly, where rounding would leave 1e-17
    high = 1.0 if successes == n else (centre + margin) / scale
    return low, high


@dataclass(frozen=True, kw_only=True)
class SuccessReport:
    """What a set of episodes says about the policy that played them.

    A success is the policy's own: an episode that a human had to finish is none.
    """

    successes: int
    episodes: int
    success: float
    """Share of the episodes that succeeded."""
    low: float
    """Lower end of the 95 % Wilson interval of `success`."""
    high: float
    """Upper end of the same."""
    steps_to_success: float | None
    """Mean environment steps of the successful episodes; None if none succeeded."""
    mean_steps: float
    """Mean environment steps of all episodes, a human's steps included."""
    env_steps: int
    """Environment steps of all episodes."""
    throughput: float
    """Successes an hour of simulated time (all episodes' steps; resets take none)."""
    by_task: dict[str, tuple[int, int]]
    """Instruction -> successes and episodes; empty where there is one task."""

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], *, fps: int | float) -> "SuccessReport":
        """Measures episodes of a world that runs `fps` environment steps a simulated second."""
        if not episodes:
            raise ValueError("no episodes to measure success on")
        if fps <= 0:
            raise ValueError(f"fps must be positive, not {fps}")
        ours = [episode for episode in episodes if episode.succeeded and episode.human_steps == 0]
        won, env_steps = [episode.steps for episode in ours], sum(episode.steps for episode in episodes)
        of_task, won_of_task = (Counter(episode.task for episode in some) for some in (episodes, ours))
        low, high = wilson_interval(len(won), len(episodes))
        return cls(
            successes=len(won),
            episodes=len(episodes),
            success=len(won) / len(episodes),
            low=low,
            high=high,
            steps_to_success=sum(won) / len(won) if won else None,
            mean_steps=env_steps / len(episodes),
            env_steps=env_steps,
            throughput=len(won) * 3600 * fps / env_steps,
            by_task={task: (won_of_task[task], of_task[task]) for task in sorted(of_task) if len(of_task) > 1},
        )
