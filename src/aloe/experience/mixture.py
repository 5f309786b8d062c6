"""Several roots as one experience, each with its share of a batch.

    --experience.demos.root data/demos --experience.demos.ratio 0.5 --experience.other.root data/other

Every root is used where it lies and is only read. What has no ratio shares what the others leave, by its number of windows;
where nothing has one, every window counts the same. Instead of roots, those who acted may have ratios (`SourceRatios`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from aloe.experience.foreign import ForeignDataset, read_info
from aloe.experience.in_place import ForeignExperience
from aloe.experience.labels import SourceName
from aloe.experience.resolve import ImportConfig
from aloe.experience.schema import Experience, Frames, has_columns
from aloe.experience.store import ExperienceStore
from aloe.experience.view import View, renamed
from aloe.training import Shares
from aloe.types import Source

SOURCES: Final[dict[str, SourceName]] = {"demos": "demo", "rollouts": "policy", "corrections": "human"}
"""Name of a root -> who acted there, where neither a column nor `source` says it."""


@dataclass(frozen=True, kw_only=True)
class RootConfig(ImportConfig):
    """Recorded experience that is used where it lies: a store, or any LeRobot v3 dataset.

    The options of `aloe data import` say what a dataset of others does not say itself; a store needs none of them.
    """

    root: Path
    """Folder; only read."""
    ratio: float | None = None
    """Share of each batch, from 0 to 1. None: what the other roots leave, by its number of windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratio(self.ratio)
        if self.outcome == "ask":
            raise ValueError(
                "nobody is asked during training; give --experience.NAME.outcomes FILE.csv, or use aloe data import"
            )


@dataclass(frozen=True, kw_only=True)
class SourceRatios:
    """How much of every batch, of critics and policy alike, is of whom. None: what the others leave, by its number of
    windows. For one store that holds all of them; roots have ratios of their own."""

    demos: float | None = None
    """Share of the demonstrations."""
    rollouts: float | None = None
    """Share of what policies did, of all versions."""
    corrections: float | None = None
    """Share of what humans did who took over."""

    def __post_init__(self) -> None:
        for ratio in self.of_sources:
            _check_ratio(ratio)
        _check_whole(("--sources.demos", "--sources.rollouts", "--sources.corrections"), self.of_sources)

    @property
    def of_sources(self) -> tuple[float | None, ...]:
        """By the number of `Source`."""
        ratio = {Source.DEMO: self.demos, Source.POLICY: self.rollouts, Source.HUMAN: self.corrections}
        return tuple(ratio[source] for source in Source)


def open_root(name: str, config: RootConfig) -> Experience:
    """The experience in a root.

    Raises:
        ValueError: it is neither a store nor a LeRobot dataset, or what its episodes mean is unclear.
    """
    options = {f.name: getattr(config, f.name) for f in fields(ImportConfig)}
    if has_columns(read_info(config.root)["features"]):
        if given := [name for name, value in options.items() if value != getattr(ImportConfig(), name)]:
            raise ValueError(
                f"{config.root} is a store, which says itself what --experience.{name}.{given[0].replace('_', '-')} would; "
                "leave it out, or correct single episodes with `aloe data label`"
            )
        return ExperienceStore.read(config.root)
    try:
        return ForeignExperience(ForeignDataset(config.root), ImportConfig(**options), usual_source=SOURCES.get(name))
    except ValueError as error:  # which speaks of the options of `aloe data import`
        said = str(error).replace("success, failure or ask, or", "success or failure, or")  # nobody is asked
        raise ValueError(re.sub(r"(?<![\w-])--(?=[a-z])", f"--experience.{name}.", said)) from error


def with_roots(
    recorded: ExperienceStore | None,
    roots: Mapping[str, RootConfig],
    rename: Mapping[str, str] | None = None,
    sources: SourceRatios | None = None,
) -> Experience:
    """What a command learns from: the roots, and the store that it was given or records into itself.

    rename: recorded key of a camera -> another, in every root that has it (`view.renamed`).
    sources: shares of a batch by who acted; None: none has one.

    Raises:
        ValueError: there is neither, or they do not go together (see `Mixture`), or no root has a camera to rename, or
            both roots and sources have ratios.
    """
    experience = _joined(recorded, roots, rename)
    if sources is None or all(ratio is None for ratio in sources.of_sources):
        return experience
    if given := [name for name, config in roots.items() if config.ratio is not None]:
        raise ValueError(
            f"batches are divided by root or by who acted; leave out --experience.{given[0]}.ratio or --sources"
        )
    return _BySource(experience, sources)


def _joined(
    recorded: ExperienceStore | None, roots: Mapping[str, RootConfig], rename: Mapping[str, str] | None
) -> Experience:
    if recorded is not None and "recorded" in roots:
        raise ValueError("the run's own store is called recorded; give --experience.recorded another name")
    opened = {name: open_root(name, config) for name, config in roots.items()}
    parts: dict[str, tuple[Experience, float | None]] = {
        name: (part, roots[name].ratio) for name, part in renamed(opened, rename or {}).items()
    }
    if recorded is not None:
        if not parts:
            return recorded
        parts["recorded"] = (recorded, None)
    if not parts:
        raise ValueError("there is nothing to learn from; give --dataset.root, or --experience.NAME.root")
    return Mixture(parts)


class Mixture:
    """Several roots as one `Experience`, in the order given."""

    def __init__(self, parts: Mapping[str, tuple[Experience, float | None]]) -> None:
        """parts: name -> experience, and its share of a batch.

        Raises:
            ValueError: they are of different robots, or the shares are not those of one whole.
        """
        self._parts = [part for part, _ in parts.values()]
        self._ratio = tuple(ratio for _, ratio in parts.values())
        (first, *others) = parts
        mine = _kind(parts[first][0])
        for name in others:
            for what, value in _kind(parts[name][0]).items():
                if value != mine[what]:
                    raise ValueError(
                        f"{parts[name][0]} ({name}) has {what} {value}, {parts[first][0]} ({first}) has {mine[what]}; "
                        "one policy learns from roots of one kind only; leave one out, or record it anew"
                    )
        _check_whole(tuple(parts), self._ratio)

    def __str__(self) -> str:
        return " and ".join(map(str, self._parts))

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        return self._parts[0].cameras

    @property
    def state_dim(self) -> int:
        return self._parts[0].state_dim

    @property
    def action_dim(self) -> int:
        return self._parts[0].action_dim

    @property
    def fps(self) -> int:
        return self._parts[0].fps

    @property
    def lengths(self) -> list[int]:
        return [length for part in self._parts for length in part.lengths]

    @property
    def shares(self) -> Shares:
        frames = [sum(part.lengths) for part in self._parts]
        return Shares(part=np.repeat(np.arange(len(frames)), frames), ratio=self._ratio)

    def columns(self) -> Frames:
        parts = [part.columns() for part in self._parts]
        tasks = list(dict.fromkeys(task for part in parts for task in part.tasks))
        names = [f.name for f in fields(Frames) if f.name not in ("tasks", "task_index", "episode")]
        before = np.cumsum([0, *(len(part.lengths) for part in self._parts)])
        number = [np.array([tasks.index(task) for task in part.tasks], np.int64) for part in parts]
        return Frames(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
            episode=np.concatenate([part.episode + n for part, n in zip(parts, before, strict=False)]),
            task_index=np.concatenate([n[part.task_index] for part, n in zip(parts, number, strict=True)]),
            tasks=tasks,
        )

    def pictures(self, index: int, every: int = 1, enough: int | None = None) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        part, mine = self._locate(index)
        return part.pictures(mine, every, enough)

    def episode_digest(self, index: int) -> str:
        part, mine = self._locate(index)
        return part.episode_digest(mine)

    def _locate(self, index: int) -> tuple[Experience, int]:
        """The root of an episode, and its number there."""
        for part in self._parts:
            if index < len(part.lengths):
                return part, index
            index -= len(part.lengths)
        raise IndexError(f"there is no episode {index} beyond the last")


def _kind(experience: Experience) -> dict[str, object]:
    """What has to be the same for all roots. The order of cameras does not matter."""
    cameras = {camera: f"{w} x {h}" for camera, (h, w) in sorted(experience.cameras.items())}
    return {
        "cameras": cameras,
        "state dimension": experience.state_dim,
        "action dimension": experience.action_dim,
        "fps": experience.fps,
    }


class _BySource(View):
    """An experience whose batches are divided by who acted."""

    def __init__(self, experience: Experience, sources: SourceRatios) -> None:
        super().__init__(experience)
        self._sources = sources

    @property
    def shares(self) -> Shares:
        return Shares(part=self.columns().source, ratio=self._sources.of_sources)


def _check_ratio(ratio: float | None) -> None:
    if ratio is not None and not 0 <= ratio <= 1:
        raise ValueError(f"a ratio lies between 0 and 1, not at {ratio}")


def _check_whole(names: Sequence[str], ratios: Sequence[float | None]) -> None:
    total = sum(ratio or 0 for ratio in ratios)
    if total > 1 + 1e-9 or (None not in ratios and total < 1 - 1e-9):
        raise ValueError(
            f"the ratios of {', '.join(names)} add up to {total:g}; make it 1, or leave out one, which then gets the rest"
        )
