"""A part of an experience: some of its cameras, under other names, or some of its episodes. Nothing is copied."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from aloe.experience.schema import IMAGES, Experience, Frames
from aloe.training import Shares


class View:
    """A part of an experience as `Experience`."""

    def __init__(
        self, experience: Experience, cameras: Mapping[str, str] | None = None, episodes: Sequence[int] | None = None
    ) -> None:
        """cameras: name here -> name there, of those that are to be seen; None: all, as they are called.
        episodes: those that are to be seen, ascending, numbered anew from 0; None: all, also those that come
            later.
        """
        self._whole = experience
        self._name = dict(cameras) if cameras is not None else {name: name for name in experience.cameras}
        self._some = None if episodes is None else list(episodes)

    def __str__(self) -> str:
        return str(self._whole)

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        return {here: self._whole.cameras[there] for here, there in self._name.items()}

    @property
    def state_dim(self) -> int:
        return self._whole.state_dim

    @property
    def action_dim(self) -> int:
        return self._whole.action_dim

    @property
    def fps(self) -> int:
        return self._whole.fps

    @property
    def lengths(self) -> list[int]:
        lengths = self._whole.lengths
        return lengths if self._some is None else [lengths[episode] for episode in self._some]

    @property
    def shares(self) -> Shares | None:
        shares = self._whole.shares
        if shares is None or self._some is None:
            return shares
        return replace(shares, part=shares.part[self._rows(self._some)])

    def columns(self) -> Frames:
        if self._some is None:
            return self._whole.columns()
        frames, rows = self._whole.columns(), self._rows(self._some)
        mine = {f.name: getattr(frames, f.name)[rows] for f in fields(Frames) if f.name != "tasks"}
        mine["episode"] = np.searchsorted(self._some, mine["episode"])
        return Frames(**mine, tasks=frames.tasks)

    def pictures(self, index: int, every: int = 1, enough: int | None = None) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        pictures = self._whole.pictures(self._there(index), every, enough)
        return {here: pictures[there] for here, there in self._name.items()}

    def episode_digest(self, index: int) -> str:
        digest = self._whole.episode_digest(self._there(index))
        if all(here == there for here, there in self._name.items()):
            return digest
        # Two cameras may have changed names: what is cached under the old ones is not theirs.
        return hashlib.sha256(f"{digest} {sorted(self._name.items())}".encode()).hexdigest()

    def _there(self, index: int) -> int:
        """The number of an episode in the whole."""
        return index if self._some is None else self._some[index]

    def _rows(self, episodes: Sequence[int]) -> ndarray:
        """Frames of these episodes of the whole."""
        lengths = self._whole.lengths
        return np.flatnonzero(np.isin(np.repeat(np.arange(len(lengths)), lengths), episodes))


def renamed(roots: Mapping[str, Experience], rename: Mapping[str, str]) -> dict[str, Experience]:
    """The roots, by name, with their cameras called otherwise. rename: recorded key -> the policy's, such as
    observation.images.top -> observation.images.front; it holds for every root that has the camera.

    Raises:
        ValueError: no root has such a camera, or two cameras of one would have one name.
    """
    new = {_camera(old): _camera(name) for old, name in rename.items()}
    known = dict.fromkeys(camera for root in roots.values() for camera in root.cameras)
    if unknown := [camera for camera in new if camera not in known]:
        raise ValueError(f"there is no camera {unknown[0]!r} to rename; there are {', '.join(known)}")
    views: dict[str, Experience] = {}
    for root_name, root in roots.items():
        names = [new.get(camera, camera) for camera in root.cameras]
        if len(set(names)) < len(names):
            raise ValueError(f"so renamed, two cameras of {root} have one name: {', '.join(names)}")
        pairs = dict(zip(names, root.cameras, strict=True))
        views[root_name] = root if names == list(root.cameras) else View(root, cameras=pairs)
    return views


def only_cameras(experience: Experience, wanted: Sequence[str]) -> Experience:
    """The experience without the cameras that are not among `wanted`."""
    seen = [camera for camera in experience.cameras if camera in wanted]
    return experience if len(seen) == len(experience.cameras) else View(experience, cameras={c: c for c in seen})


def _camera(key: str) -> str:
    if not key.startswith(IMAGES) or key == IMAGES:
        raise ValueError(f"only pictures can be renamed, as in --rename.{IMAGES}top={IMAGES}front, not {key!r}")
    return key.removeprefix(IMAGES)
