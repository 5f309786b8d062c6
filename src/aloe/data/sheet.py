"""One episode at a glance: pictures along time, who acted, the reward, and the actions beneath."""

import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy import ndarray

from aloe.experience.store import ExperienceStore, Frames
from aloe.types import NO_POLICY, Source

COLOURS: Final = {Source.DEMO: "#4c9f70", Source.POLICY: "#3b75af", Source.HUMAN: "#ef8536"}
_WIDTH: Final = 15.0  # inches
_SIDE: Final = 1.7
"""Inches left and right of the time axis, for names and keys."""
_PICTURES: Final = 10
_PIXELS: Final = 480
"""Of a picture's longer side that are drawn."""
_NAMED_ACTIONS: Final = 10
"""So many actions have a line and a name each; more are drawn as a heat map."""


def draw_sheet(store: ExperienceStore, episode: int, path: Path) -> None:
    """Write a PNG.

    Raises:
        ValueError: there is no such episode.
    """
    if not 0 <= episode < store.num_episodes:
        raise ValueError(f"there is no episode {episode}; {store.root} has {store.num_episodes}, counted from 0")
    frames = store.columns()
    rows = np.flatnonzero(frames.episode == episode)
    images = store.pictures(episode, every=max(1, len(rows) // (4 * _PICTURES)), enough=_PIXELS)
    count = min(_PICTURES, len(rows))
    cell = (_WIDTH - 2 * _SIDE) / count
    strips = [min(cell * h / w, 2.4) for h, w in store.cameras.values()]
    heights = [*strips, 0.32, 1.0, 2.6]
    figure, axes = plt.subplots(
        len(heights),
        figsize=(_WIDTH, sum(heights) + 0.12 * len(heights) + 1.4),
        height_ratios=heights,
        squeeze=False,
        gridspec_kw={"hspace": 0.12 * len(heights) / sum(heights)},
    )
    tall = figure.get_figheight()
    figure.subplots_adjust(left=_SIDE / _WIDTH, right=1 - _SIDE / _WIDTH, top=1 - 0.85 / tall, bottom=0.55 / tall)
    *strip_axes, actor, reward, action = axes[:, 0]
    seconds = np.arange(len(rows) + 1) / store.fps
    for (camera, pictures), strip in zip(images.items(), strip_axes, strict=True):
        _draw_strip(strip, camera, pictures, seconds, count)
    _draw_actor(actor, frames, rows, seconds)
    _draw_reward(reward, frames, rows, seconds)
    _draw_actions(action, frames, rows, seconds)
    for axis in axes[:, 0]:
        axis.set_xlim(0, seconds[-1])
        if axis is not action:
            axis.tick_params(labelbottom=False, bottom=False)
    action.set_xlabel("seconds")
    task = textwrap.shorten(frames.tasks[frames.task_index[rows[0]]], 100, placeholder=" …")
    figure.text(_SIDE / _WIDTH, 1 - 0.2 / tall, task, va="top", size=14)
    figure.text(_SIDE / _WIDTH, 1 - 0.52 / tall, _facts(store, frames, rows, episode), va="top", color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _facts(store: ExperienceStore, frames: Frames, rows: ndarray, episode: int) -> str:
    last = rows[-1]
    end = (
        "success"
        if frames.success[last]
        else "failure"
        if frames.terminated[last]
        else "time ran out, or recording stopped"
        if frames.truncated[last]
        else "no end recorded"
    )
    versions = [str(v) for v in np.unique(frames.policy_version[rows]) if v != NO_POLICY]
    parts = [
        f"episode {episode} of {store.root.name}",
        f"{len(rows)} steps, {len(rows) / store.fps:.1f} s",
        *([f"policy version {', '.join(versions)}"] if versions else []),
        end + (", labelled later" if episode in store.labels else ""),
    ]
    return "   ·   ".join(parts)


def _draw_strip(axes: Axes, name: str, pictures: UInt8[ndarray, "T h w 3"], seconds: ndarray, count: int) -> None:
    """`count` pictures side by side, each of the step in the middle of the time that it covers."""
    h, w = pictures.shape[1:3]
    edges = np.linspace(0, seconds[-1], count + 1)
    width, height = _size(axes)
    for left, right in pairwise(edges.tolist()):
        step = min(int((left + right) / 2 / seconds[-1] * len(pictures)), len(pictures) - 1)
        # As wide as its cell, or as high as the strip; a little air between two.
        wide = 0.97 * min((right - left) / seconds[-1] * width, height * w / h) * seconds[-1] / width
        high = wide / seconds[-1] * width * h / w / height
        middle = (left + right) / 2
        axes.imshow(
            pictures[step],
            extent=(middle - wide / 2, middle + wide / 2, 0.5 - high / 2, 0.5 + high / 2),
            aspect="auto",
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _size(axes: Axes) -> tuple[float, float]:
    """Width and height in inches."""
    figure: Any = axes.figure
    box = axes.get_position()
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def _draw_actor(axes: Axes, frames: Frames, rows: ndarray, seconds: ndarray) -> None:
    source = frames.source[rows]
    _tint(axes, source, seconds, 1.0)
    axes.set_yticks([])
    axes.set_ylabel("actor", rotation=0, ha="right", va="center", labelpad=8)
    key = [Patch(color=COLOURS[Source(s)], label=Source(s).name.lower()) for s in np.unique(source)]
    axes.legend(handles=key, loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)


def _tint(axes: Axes, source: ndarray, seconds: ndarray, alpha: float) -> None:
    """The background in the colour of who acted."""
    starts = np.flatnonzero(np.diff(source, prepend=-1))
    ends = np.append(starts[1:], len(source))
    for start, end in zip(starts, ends, strict=True):
        colour = COLOURS[Source(source[start])]
        axes.axvspan(float(seconds[start]), float(seconds[end]), color=colour, alpha=alpha, lw=0)


def _draw_reward(axes: Axes, frames: Frames, rows: ndarray, seconds: ndarray) -> None:
    reward = frames.reward[rows]
    _tint(axes, frames.source[rows], seconds, 0.1)
    axes.stairs(reward, seconds, color="black", baseline=None)
    low, high = min(reward.min(), -1.0), max(reward.max(), 0.0)
    axes.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    axes.set_ylabel("reward", rotation=0, ha="right", va="center", labelpad=8)
    axes.grid(axis="y", alpha=0.3)
    middle = (seconds[:-1] + seconds[1:]) / 2
    marks = (
        ("success", frames.success[rows], "*", COLOURS[Source.DEMO]),
        ("failure", frames.terminated[rows] & ~frames.success[rows], "X", "#c0392b"),
        ("stopped", frames.truncated[rows], "s", "#7f7f7f"),
    )
    for name, where, marker, colour in marks:
        if where.any():
            axes.plot(middle[where], reward[where], marker, color=colour, label=name, ms=9, clip_on=False, zorder=3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)


def _draw_actions(axes: Axes, frames: Frames, rows: ndarray, seconds: ndarray) -> None:
    """A line for each number that was executed; dashed what the policy had proposed instead."""
    action, proposed = frames.action[rows], frames.proposed_action[rows]
    axes.set_ylabel("action", rotation=0, ha="right", va="center", labelpad=8)
    if action.shape[1] > _NAMED_ACTIONS:
        low, high = action.min(0), action.max(0)
        scaled = (action - low) / np.where(high > low, high - low, 1)
        axes.imshow(scaled.T, aspect="auto", extent=(0, seconds[-1], action.shape[1] - 0.5, -0.5), interpolation="none")
        axes.text(1.01, 0.5, "each row from its\nlowest (dark)\nto its highest", transform=axes.transAxes, va="center")
        return
    _tint(axes, frames.source[rows], seconds, 0.1)
    other = np.isfinite(proposed).all(1) & (proposed != action).any(1)
    for i in range(action.shape[1]):
        (line,) = axes.step(seconds, np.append(action[:, i], action[-1, i]), where="post", lw=1.3, label=str(i))
        if other.any():
            instead = np.where(other, proposed[:, i], np.nan)
            axes.step(seconds, np.append(instead, instead[-1]), where="post", lw=1, ls=":", color=line.get_color())
    if other.any():
        axes.plot([], [], ":", color="black", label="proposed")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize="small")
