"""The axis letters of this code base, and the records that cross from one room into another.

Axes, in shape comments and jaxtyping annotations alike:
    B batch · T steps of one episode · N frames of a store · H steps of an action chunk · E of them that are executed
    A action dimensions · S proprioceptive dimensions · K critics · M sampled chunks · C cameras · D features
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray


class Source(IntEnum):
    """Who chose an action that was executed."""

    DEMO = 0
    POLICY = 1
    HUMAN = 2


NO_POLICY = -1
"""`policy_version` of a step that no policy proposed anything for."""
NO_SEED = -1
"""`seed` of an episode whose world has none, or did not record it."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode as it happened, from the reset of the world to its end.

    Step t holds what was seen *before* action t and what came of that action. An episode in which the human took over
    is one episode with two or more *fragments*: the policy's, ended by `terminated` without `success` (the human's cut
    is a failure), and the human's, which starts from the very state where the policy was stopped.
    """

    task: str
    """The instruction in words."""
    seed: int
    """Seed that the world was reset with."""
    images: dict[str, UInt8[ndarray, "T h w 3"]]
    """Camera name -> pictures. Empty where nothing was recorded (evaluation)."""
    state: Float32[ndarray, "T S"]
    action: Float32[ndarray, "T A"]
    """The action that was executed."""
    proposed_action: Float32[ndarray, "T A"]
    """What the policy had proposed for this step; NaN where it had proposed nothing."""
    source: Int64[ndarray, "T"]
    """`Source` of the executed action."""
    policy_version: Int64[ndarray, "T"]
    """Version of the policy that was playing or being corrected; `NO_POLICY` for demonstrations."""
    reward: Float32[ndarray, "T"]
    """-1 a step, 0 at a success. The penalty of a failure and the scale are training choices, applied on reading."""
    terminated: Bool[ndarray, "T"]
    """The task ended here, by success or failure: nothing may bootstrap across."""
    truncated: Bool[ndarray, "T"]
    """Time ran out or recording stopped here: the world would have gone on."""
    success: Bool[ndarray, "T"]
    progress: Float32[ndarray, "T"] = field(default_factory=lambda: np.zeros(0, np.float32))
    """How far the task had come after each step, as the simulator knows it. For evaluation, and not stored; empty where
    it is not known."""
    disturbed_at: int | None = None
    """Step in which a disturbance began, where evaluation disturbed the episode; not stored."""

    def __post_init__(self) -> None:
        steps = len(self.action)
        if steps == 0:
            raise ValueError("an episode needs at least one step")
        for name in (
            "state",
            "proposed_action",
            "source",
            "policy_version",
            "reward",
            "terminated",
            "truncated",
        ):
            if len(getattr(self, name)) != steps:
                raise ValueError(f"{name} has {len(getattr(self, name))} steps, action has {steps}")
        if len(self.success) != steps or any(len(pictures) != steps for pictures in self.images.values()):
            raise ValueError(f"success and every camera need {steps} steps, one for each action")
        if len(self.progress) not in (0, steps):
            raise ValueError(f"progress has {len(self.progress)} steps, action has {steps}; leave it empty if unknown")
        for name in ("state", "action"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} holds NaN or infinite values; nothing was recorded")

    @property
    def steps(self) -> int:
        return len(self.action)

    @property
    def succeeded(self) -> bool:
        """Whether the episode ended in success, by whoever's hand."""
        return bool(self.success[-1])

    @property
    def human_steps(self) -> int:
        return int((self.source == Source.HUMAN).sum())

    @property
    def takeovers(self) -> int:
        """How often the human took over: policy steps that are followed by a human's."""
        human = self.source == Source.HUMAN
        return int((human[1:] & ~human[:-1]).sum() + human[0])
