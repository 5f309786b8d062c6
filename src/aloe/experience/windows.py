"""Chunk windows: what a critic and an actor learn from.

A *fragment* is a run of consecutive steps by one actor (a demonstrator, one policy version, the human), ended by the end
of its episode, by `terminated` or `truncated`, or by another actor taking over. A window of H executed actions starts at
*every* step, so window i starts at frame i of the store; it never reaches into another fragment, but for one: where a human
hands back, critics learn from what the policy did from there as well. A human's fragment and the policy's after it are
then one *stretch*; every other fragment is a stretch by itself. A window that runs past the end of its stretch is kept:
the rewards after the end are 0 and `is_pad` marks the missing actions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from aloe.experience.store import Frames
from aloe.returns import monte_carlo_return
from aloe.types import Source


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How recorded steps become windows with rewards. The one owner of horizon and discount."""

    horizon: int = 8
    """H: executed actions in a window, after which a target bootstraps; policies may predict more. (Paper: 50)"""
    chunk_discount: float = 0.99
    """Discount over one window; the discount per environment step is its H-th root. (Paper: 0.99 per step.)"""
    failure_penalty: float = 1.0
    """Reward of a failing step, in units of the mean successful demonstration, negative. (Paper: 1.)"""
    failure_steps: int | None = None
    """Steps that a failure costs besides the penalty, whenever it comes, so that a human who cuts a hopeless episode
    short does not make it cheaper; None: the steps until it came (paper)."""
    timeout: Literal["failure", "bootstrap"] = "failure"
    """Whether running out of time counts as a failure (paper) or as no end. bootstrap: critics learn nothing from the last
    windows before it, and the windows before those bootstrap into states whose value nothing has taught."""
    cut: Literal["failure", "bootstrap"] = "failure"
    """Whether a policy's fragment that the human cut short ended in failure there (paper) or merely stopped, as for
    `timeout`."""

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, not {self.horizon}")
        if not 0 < self.chunk_discount <= 1:
            raise ValueError(f"chunk_discount must lie in (0, 1], not {self.chunk_discount}")
        if self.failure_penalty < 0 or (self.failure_steps or 0) < 0:
            raise ValueError("failure_penalty and failure_steps are given as positive numbers")

    @property
    def discount(self) -> float:
        """Discount per environment step."""
        return self.chunk_discount ** (1 / self.horizon)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One window for every frame of the store; row i starts at frame i."""

    frames: Int64[ndarray, "N H"]
    """Frame of each action; past the end, the last frame. A human who hands back is no end: what the policy then did from
    there was executed as well."""
    is_pad: Bool[ndarray, "N H"]
    """True past the end: there is no such action."""
    reward: Float32[ndarray, "N H"]
    """Scaled reward of each step (a mean successful demonstration sums to about -1); 0 past the end."""
    terminated: Bool[ndarray, "N"]
    """The task ended within the window, by success, failure or the human's cut: no bootstrap."""
    next_frame: Int64[ndarray, "N"]
    """Frame of s_{t+H}, where the next chunk would start. Without meaning unless `bootstraps`."""
    fragment: Int64[ndarray, "N"]
    """Number of the fragment, counted through the store."""
    fragment_success: Bool[ndarray, "N"]
    """Whether the fragment ended in success; or, of a human, by handing back to the policy: the correction was made."""
    ended: Bool[ndarray, "N"]
    """Whether what was played from here, by a human and after the handing back by the policy, ended in success or failure,
    and did not merely stop."""
    failed: Bool[ndarray, "N"]
    """Whether the fragment ended in failure or was cut short by the human, however the critics are told of that."""
    monte_carlo: Float32[ndarray, "N"]
    """Discounted return from here to that end; the whole return only where `ended`."""
    has_target: Bool[ndarray, "N"]
    """False for the last windows of a stretch whose recording just stopped: neither an end nor a next state is known,
    so a critic cannot learn from them (an actor can)."""
    return_range: tuple[float, float]
    """Lowest and highest return that is possible: in episodes as long as the longest stretch, or for ever (`timeout`)."""

    @property
    def bootstraps(self) -> Bool[ndarray, "N"]:
        return self.has_target & ~self.terminated

    def __len__(self) -> int:
        return len(self.fragment)


def _goes_on(frames: Frames) -> Bool[ndarray, "_"]:
    """Whether the frame after each (there is none after the last) is of the same episode, which has not ended between."""
    return (frames.episode[1:] == frames.episode[:-1]) & ~frames.terminated[:-1] & ~frames.truncated[:-1]


def fragment_starts(frames: Frames) -> Bool[ndarray, "N"]:
    """True at the first frame of every fragment."""
    starts = np.ones(len(frames), dtype=bool)
    same_actor = (frames.source[1:] == frames.source[:-1]) & (frames.policy_version[1:] == frames.policy_version[:-1])
    starts[1:] = ~(_goes_on(frames) & same_actor)
    return starts


def handed_back(frames: Frames) -> Bool[ndarray, "N"]:
    """True at the first frame that the policy plays after a human who gave control back to it."""
    back = np.zeros(len(frames), dtype=bool)
    back[1:] = _goes_on(frames) & (frames.source[1:] == Source.POLICY) & (frames.source[:-1] == Source.HUMAN)
    return back


def action_frames(
    frames: Frames, length: int, starts: Bool[ndarray, "N"] | None = None
) -> tuple[Int64[ndarray, "N L"], Bool[ndarray, "N L"]]:
    """The frames of the `length` actions from every frame on, and which of them are padding: past the end of the fragment
    its last frame is repeated.

    starts: first frame of every stretch, if not of every fragment.
    """
    starts = fragment_starts(frames) if starts is None else starts
    last = np.append(np.flatnonzero(starts)[1:], len(frames)) - 1
    end = last[np.cumsum(starts) - 1][:, None]
    wanted = np.arange(len(frames))[:, None] + np.arange(length)
    return np.minimum(wanted, end), wanted > end


def return_scale(frames: Frames) -> float:
    """C, the mean number of steps of a successful demonstration, the unit in which rewards are counted; of any successful
    episode where nobody has demonstrated.

    Raises:
        ValueError: no episode succeeded.
    """
    demo = frames.source == Source.DEMO
    ended_well = np.unique(frames.episode[frames.success & (demo if demo.any() else True)])
    lengths = np.bincount(frames.episode)[ended_well] if len(ended_well) else ended_well
    if not len(lengths):
        raise ValueError(
            f"no successful {'demonstration' if demo.any() else 'episode'}: there is no scale for the rewards; record some "
            "with `aloe demos`, with less --noise or a longer --world.max-steps, or say which recorded ones succeeded "
            "(`aloe data label`, or --experience.NAME.outcomes)"
        )
    return float(np.mean(lengths))


def make_windows(frames: Frames, config: WindowConfig, scale: float, *, any_length: bool = False) -> Windows:
    """Cuts a store into windows.

    any_length: take a store whose fragments are all shorter than a window. There is nothing to bootstrap in it, so nobody
    should learn from it alone, but a few quick episodes can be judged.

    Rewards: -1 a step, 0 at a success, -`failure_penalty` * scale at a failure (the last step of a stretch that ended
    without success, the human's cut included), all divided by `scale` = C.

    Raises:
        ValueError: the store is empty, or every stretch is shorter than the horizon (unless `any_length`).
    """
    count, horizon = len(frames), config.horizon
    if count == 0:
        raise ValueError("the store holds no frames; record episodes first (`aloe demos`, `aloe collect`)")
    starts, back = fragment_starts(frames), handed_back(frames)
    stretches = starts & ~back
    first = np.flatnonzero(stretches)
    last = np.append(first[1:], count) - 1  # last frame of each stretch
    length = last - first + 1
    if length.max() < horizon and not any_length:
        raise ValueError(
            f"the horizon of {horizon} steps is longer than every fragment in the store "
            f"(longest: {length.max()}); choose a smaller --window.horizon"
        )

    success, failure, taken_over = _ends(frames, first, last, config)
    step_reward = np.full(count, -1 / scale, dtype=np.float32)
    step_reward[last[success]] = 0.0
    step_reward[last[failure]] = -config.failure_penalty
    if config.failure_steps is not None:
        step_reward[last[failure]] -= np.maximum(config.failure_steps - length[failure], 0) / scale

    monte_carlo = np.concatenate(
        [
            monte_carlo_return(torch.from_numpy(step_reward[a : b + 1]).double(), config.discount).float().numpy()
            for a, b in zip(first, last, strict=True)
        ]
    )
    stretch = np.cumsum(stretches) - 1
    end = last[stretch]
    taken, is_pad = action_frames(frames, horizon, stretches)
    ends_inside = np.arange(count) + horizon > end
    terminated = ends_inside & (success | failure)[stretch]
    fragment = np.cumsum(starts) - 1
    gave_back = np.append(back[starts][1:], False)[fragment]  # whether the next fragment is what it was given back to
    return Windows(
        frames=taken,
        is_pad=is_pad,
        reward=np.where(is_pad, 0, step_reward[taken]).astype(np.float32),
        terminated=terminated,
        next_frame=np.minimum(np.arange(count) + horizon, end),
        fragment=fragment,
        fragment_success=gave_back | success[stretch],
        ended=(success | failure)[stretch],
        failed=~gave_back & (failure | (taken_over & ~success))[stretch],
        monte_carlo=monte_carlo,
        has_target=terminated | ~ends_inside,
        return_range=(_lowest_return(int(length.max()), config, scale), 0.0),
    )


def _ends(
    frames: Frames, first: Int64[ndarray, "F"], last: Int64[ndarray, "F"], config: WindowConfig
) -> tuple[Bool[ndarray, "F"], Bool[ndarray, "F"], Bool[ndarray, "F"]]:
    """How each stretch ended: in success, in failure, and whether by the human's taking over."""
    taken_over = np.zeros(len(first), dtype=bool)  # by the human, in the same episode: a cut even where unlabelled
    taken_over[:-1] = (
        (frames.episode[last[:-1]] == frames.episode[first[1:]])
        & (frames.source[last[:-1]] == Source.POLICY)
        & (frames.source[first[1:]] == Source.HUMAN)
    )
    success = frames.success[last]
    ends = frames.terminated[last] | (frames.truncated[last] & (config.timeout == "failure"))
    failure = ~success & np.where(taken_over, config.cut == "failure", ends)
    return success, failure, taken_over


def _lowest_return(longest: int, config: WindowConfig, scale: float) -> float:
    """longest: steps of the longest stretch. Where a time-out is no end, a return may go on for ever."""
    steps = longest if config.timeout == "failure" else math.inf
    total = steps if config.discount == 1 else (1 - config.discount**steps) / (1 - config.discount)
    # The steps that are added at a failure are not discounted.
    return float(-max(total, config.failure_steps or 0) / scale - config.failure_penalty)
