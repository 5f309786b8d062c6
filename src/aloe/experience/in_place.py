"""A LeRobot dataset of others, used where it lies: read-only, with its labels resolved (`resolve`) and nothing copied."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from aloe.experience.foreign import ForeignDataset
from aloe.experience.labels import Outcome, SourceName
from aloe.experience.resolve import INTERVENE_ACTION, ImportConfig, resolve
from aloe.experience.schema import IMAGES, Frames, has_columns
from aloe.types import NO_POLICY, NO_SEED, Episode, Source


class ForeignExperience:
    """A foreign dataset as `Experience`. Rewards are ALOE's own: -1 a step, 0 at a success."""

    def __init__(
        self,
        dataset: ForeignDataset,
        config: ImportConfig,
        ask: Callable[[int], Outcome] | None = None,
        usual_source: SourceName | None = None,
    ) -> None:
        """ask, usual_source: see `resolve`.

        Raises:
            ValueError: the dataset is a store of ALOE's, its labels are unclear, or its numbers are damaged.
        """
        if has_columns(dataset.features):
            raise ValueError(f"{dataset.root} has ALOE's columns already; use it where it is")
        self.dataset, self._config = dataset, config
        self.resolved = resolve(dataset, config, ask, usual_source)
        self._key_of = {_camera_name(key): key for key in dataset.cameras}
        if len(self._key_of) < len(dataset.cameras):
            raise ValueError(f"{dataset.root} has two cameras of one name: {', '.join(dataset.cameras)}")
        self.state_dim, self.action_dim = self._dim(self.resolved.state), self._dim(self.resolved.action)
        self._tasks = [dataset.task(episode) for episode in range(len(dataset))]
        for episode in range(len(dataset)):
            self._check(episode)
        self._frames: Frames | None = None

    def __str__(self) -> str:
        return str(self.dataset.root)

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        return {camera: self.dataset.cameras[key].size for camera, key in self._key_of.items()}

    @property
    def fps(self) -> int:
        return self.dataset.fps

    @property
    def lengths(self) -> list[int]:
        return self.dataset.lengths

    @property
    def shares(self) -> None:
        """Every window counts alike."""

    def columns(self) -> Frames:
        if self._frames is None:
            tasks = list(dict.fromkeys(self._tasks))
            parts = [self._columns(index) for index in range(len(self.dataset))]
            lengths = self.lengths
            self._frames = Frames(
                **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                seed=np.full(sum(lengths), NO_SEED),
                episode=np.repeat(np.arange(len(lengths)), lengths),
                step=np.concatenate([np.arange(length) for length in lengths]),
                task_index=np.repeat([tasks.index(task) for task in self._tasks], lengths),
                tasks=tasks,
            )
        return self._frames

    def pictures(self, index: int, every: int = 1, enough: int | None = None) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        return {camera: self.dataset.pictures(index, key, every, enough) for camera, key in self._key_of.items()}

    def episode_digest(self, index: int) -> str:
        """From names, sizes and times of the files that it lies in: to read all of them at every start would take long."""
        what = f"{index} {self.lengths[index]} {sorted(self._key_of.items())} {self.dataset.stamp(index)}"
        return hashlib.sha256(what.encode()).hexdigest()

    def episode(self, index: int) -> Episode:
        """One episode, pictures and all."""
        try:
            columns = self._columns(index)
            return Episode(task=self._tasks[index], seed=NO_SEED, images=self.pictures(index), **columns)
        except ValueError as error:
            raise ValueError(f"episode {index} of {self}: {error}") from error

    def _columns(self, index: int) -> dict[str, Any]:
        """What is known of each step, by field of `Episode`."""
        labels, steps = self.resolved.episodes[index], self.lengths[index]
        last = np.arange(steps) == steps - 1
        recorded = self._vectors(index, self.resolved.action)
        action, proposed = recorded.copy(), np.full_like(recorded, np.nan)
        human = labels.source == Source.HUMAN
        if human.any() and INTERVENE_ACTION in self.dataset.features and INTERVENE_ACTION not in self._config.ignore:
            instead = self._vectors(index, INTERVENE_ACTION)
            if instead.shape != recorded.shape:
                raise ValueError(
                    f"{self}: {INTERVENE_ACTION!r} has {instead.shape[1]} numbers, an action {recorded.shape[1]}"
                )
            replaced = human & (instead != recorded).any(1)
            action[replaced], proposed[replaced] = instead[replaced], recorded[replaced]
        success = last & labels.success
        return {
            "state": self._vectors(index, self.resolved.state),
            "action": action,
            "proposed_action": proposed,
            "source": labels.source,
            "policy_version": np.where(labels.source == Source.DEMO, NO_POLICY, self._config.policy_version),
            "reward": np.where(success, 0, -1).astype(np.float32),
            "terminated": last & (not labels.timeout),
            "truncated": last & labels.timeout,
            "success": success,
        }

    def _dim(self, key: str) -> int:
        if len(shape := self.dataset.features[key]["shape"]) != 1:
            raise ValueError(f"{self}: column {key!r} has shape {shape}; a vector a step is needed")
        return shape[0]

    def _vectors(self, episode: int, key: str) -> Float32[ndarray, "T D"]:
        values = self.dataset.column(episode, key)
        return values.reshape(len(values), -1).astype(np.float32)

    def _check(self, episode: int) -> None:
        """All of an episode but its pictures, which take long."""
        self.dataset.check_order(episode)
        for key in (self.resolved.state, self.resolved.action):
            if not np.isfinite(self._vectors(episode, key)).all():
                raise ValueError(f"{self}: column {key!r} holds NaN or infinite values in episode {episode}")
        if not np.isfinite(self._columns(episode)["action"]).all():
            raise ValueError(
                f"{self}: column {INTERVENE_ACTION!r} holds NaN or infinite values where a human acted in episode "
                f"{episode}; if {self.resolved.action!r} holds what was executed, give --ignore {INTERVENE_ACTION}"
            )


def _camera_name(key: str) -> str:
    return key.removeprefix(IMAGES).removeprefix("observation.")
