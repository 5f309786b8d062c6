"""The columns of the store: on disk the features of a LeRobot v3 dataset, in memory `Frames`.

    observation.images.<camera>  image or video (h, w, 3)   what was seen before the action; any number of cameras
    observation.state            float32 (S,)
    action                       float32 (A,)   the action that was executed
    proposed_action              float32 (A,)   what the policy had proposed; else the same as `action`
    has_proposal                 bool           whether `proposed_action` is a proposal
    next.reward                  float32        -1 a step, 0 at a success
    next.done                    bool           terminated: nothing may bootstrap across
    next.truncated               bool           time ran out, or recording stopped
    next.success                 bool
    intervention                 bool           a human executed this step (LeRobot's own label)
    source                       int64          `aloe.types.Source`
    policy_version               int64          `aloe.types.NO_POLICY` for demonstrations
    episode_seed                 int64          seed that the world was reset with, the same at every step

LeRobot adds `timestamp`, `frame_index`, `episode_index`, `index` and `task_index`.

Why `has_proposal` and not a NaN: LeRobot writes statistics of every column to `stats.json` and merges them
episode by episode. A single NaN would spoil the column's statistics for good, and NaN is no JSON. On reading,
the NaN is put back.

Why the names: LeRobot takes every column that begins with `action` or `observation` for an input or output of
the policy (`dataset_to_policy_features`), and every image for a picture that it sees. Nothing else may be
called so.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray

from aloe.training import Shares
from aloe.types import Episode, Source

IMAGES: Final = "observation.images."
STATE: Final = "observation.state"
ACTION: Final = "action"
PROPOSED_ACTION: Final = "proposed_action"

SCALARS: Final = {
    "has_proposal": "bool",
    "next.reward": "float32",
    "next.done": "bool",
    "next.truncated": "bool",
    "next.success": "bool",
    "intervention": "bool",
    "source": "int64",
    "policy_version": "int64",
    "episode_seed": "int64",
}
"""Column -> dtype of what is one number a step."""


COLUMNS: Final = {
    "source": "source",
    "policy_version": "policy_version",
    "reward": "next.reward",
    "terminated": "next.done",
    "truncated": "next.truncated",
    "success": "next.success",
    "seed": "episode_seed",
    "episode": "episode_index",
    "step": "frame_index",
    "task_index": "task_index",
}
"""Field of `Frames` -> column, where that is one number a step."""
VECTORS: Final = {STATE: "state", ACTION: "action", PROPOSED_ACTION: "proposed_action"}
"""Column -> field of `Frames`, where that is a vector a step."""
NUMBERS: Final = [*VECTORS, *COLUMNS.values(), "has_proposal"]
"""The columns that `Frames` is made of."""
_NARROWEST_VIDEO: Final = 32
"""Pixels. With 24, SVT-AV1 divides by zero and takes the process with it, whatever the height."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All steps of a store but their pictures, episode after episode."""

    state: Float32[ndarray, "N S"]
    action: Float32[ndarray, "N A"]
    proposed_action: Float32[ndarray, "N A"]
    """NaN where the policy had proposed nothing."""
    source: Int64[ndarray, "N"]
    policy_version: Int64[ndarray, "N"]
    reward: Float32[ndarray, "N"]
    terminated: Bool[ndarray, "N"]
    truncated: Bool[ndarray, "N"]
    success: Bool[ndarray, "N"]
    seed: Int64[ndarray, "N"]
    """Seed that the step's episode began with."""
    episode: Int64[ndarray, "N"]
    step: Int64[ndarray, "N"]
    """Place in the episode, from 0."""
    task_index: Int64[ndarray, "N"]
    """Row of `tasks`."""
    tasks: list[str]

    def __len__(self) -> int:
        return len(self.action)

    @property
    def takeovers(self) -> Bool[ndarray, "N"]:
        """The first step of each stretch that a human played within an episode."""
        human = self.source == Source.HUMAN
        began = human.copy()
        began[1:] &= ~(human[:-1] & (self.episode[1:] == self.episode[:-1]))
        return began


def digest_of(frames: Frames) -> str:
    """Changes with the experience, and with the labels on it; pictures are not looked at."""
    digest = hashlib.sha256(json.dumps(frames.tasks).encode())
    ends, who = (frames.success, frames.terminated, frames.truncated), (frames.source, frames.policy_version)
    for array in (frames.state, frames.action, frames.task_index, *ends, *who):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


class Experience(Protocol):
    """What can be learnt from: a store, a dataset of others where it lies, or a mixture of such.

    As a string, where it is.
    """

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (h, w)."""
        ...

    @property
    def state_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    @property
    def fps(self) -> int: ...

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode."""
        ...

    @property
    def shares(self) -> Shares | None:
        """How much of a batch is of each root, or of each who acted; None: every window counts alike."""
        ...

    def columns(self) -> Frames:
        """Every step, episode after episode."""
        ...

    def pictures(self, index: int, every: int = 1, enough: int | None = None) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        """The pictures of one episode, decoded anew at each call (see `cache.FrameCache`).

        every: of every n-th step. enough: pixels of the longer side; of larger pictures every n-th row and column comes.
        """
        ...

    def episode_digest(self, index: int) -> str:
        """Changes when the pictures of the episode do."""
        ...


def coarseness(size: tuple[int, int], enough: int | None) -> int:
    """Every how many-th row and column of a picture is enough, where so many pixels of the longer side are."""
    return 1 if enough is None else max(1, max(size) // enough)


def features(
    cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int, video: bool
) -> dict[str, dict[str, Any]]:
    """The columns as LeRobot's `features`, without those that LeRobot adds itself.

    cameras: name -> (h, w) in pixels; may be empty.  video: pictures as mp4 (smaller, lossy) instead of PNG (lossless).
    Raises ValueError for a camera that LeRobot could not name, that has no pixels, or that is too narrow for a video.
    """
    if state_dim < 1 or action_dim < 1:
        raise ValueError(f"needs a state and an action; got {state_dim=}, {action_dim=}")
    for camera, (h, w) in cameras.items():
        if not camera or "/" in camera or h < 1 or w < 1:
            raise ValueError(f"camera {camera!r} of {h} x {w} pixels: a name without '/' and a size are needed")
        if video and w < _NARROWEST_VIDEO:
            raise ValueError(
                f"camera {camera!r} of {h} x {w} pixels is too narrow for a video, {_NARROWEST_VIDEO} are needed: its "
                "encoder would end the process; give larger pictures, or keep them as PNG (video=False)"
            )
    pictures = {
        IMAGES + camera: {
            "dtype": "video" if video else "image",
            "shape": (h, w, 3),
            "names": ["height", "width", "channels"],
        }
        for camera, (h, w) in cameras.items()
    }
    vectors = {STATE: state_dim, ACTION: action_dim, PROPOSED_ACTION: action_dim}
    return (
        pictures
        | {key: {"dtype": "float32", "shape": (dim,), "names": None} for key, dim in vectors.items()}
        | {key: {"dtype": dtype, "shape": (1,), "names": None} for key, dtype in SCALARS.items()}
    )


def cameras_of(dataset_features: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Camera name -> (h, w), in the order of the columns."""
    return {
        key.removeprefix(IMAGES): (feature["shape"][0], feature["shape"][1])
        for key, feature in dataset_features.items()
        if key.startswith(IMAGES) and feature["dtype"] in ("image", "video")
    }


def has_columns(dataset_features: dict[str, dict[str, Any]]) -> bool:
    """Whether a dataset's features are those of a store."""
    try:
        check_features(dataset_features)
    except (ValueError, KeyError):
        return False
    return True


def check_features(dataset_features: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError unless a dataset's features are those of a store; names the column and the remedy."""
    remedy = (
        "bring its episodes into a store with `aloe data import DATASET --root STORE`, or with ExperienceStore.create() "
        "and append()"
    )
    cameras = cameras_of(dataset_features)
    for key in (STATE, ACTION, PROPOSED_ACTION, *SCALARS):
        if key not in dataset_features:
            raise ValueError(f"the dataset has no column {key!r}, which ALOE needs; {remedy}")
    video = any(dataset_features[IMAGES + camera]["dtype"] == "video" for camera in cameras)
    (state_dim, *_), (action_dim, *_) = dataset_features[STATE]["shape"], dataset_features[ACTION]["shape"]
    for key, wanted in features(cameras, state_dim, action_dim, video).items():
        found = dataset_features[key]
        if (found["dtype"], tuple(found["shape"])) != (wanted["dtype"], wanted["shape"]):
            raise ValueError(
                f"the dataset's column {key!r} is {found['dtype']} {tuple(found['shape'])}, "
                f"ALOE needs {wanted['dtype']} {wanted['shape']}; {remedy}"
            )


def check_episode(
    episode: Episode,
    cameras: dict[str, tuple[int, int]],
    state_dim: int,
    action_dim: int,
    steps_seen: int | None = None,
) -> None:
    """Raise ValueError unless an episode has these cameras and dimensions.

    cameras: name -> (h, w). steps_seen: of how many steps the pictures were given already, apart from the episode.
    """
    if steps_seen is not None and (episode.images or steps_seen != episode.steps):
        raise ValueError(
            f"pictures of {steps_seen} steps were given for an episode of {episode.steps}, whose own must be empty"
        )
    if steps_seen is None and set(episode.images) != set(cameras):
        raise ValueError(f"the episode has cameras {sorted(episode.images)}, the store {sorted(cameras)}")
    for camera, (h, w) in cameras.items() if steps_seen is None else ():
        pictures = episode.images[camera]
        if pictures.shape != (episode.steps, h, w, 3) or pictures.dtype != np.uint8:
            raise ValueError(
                f"camera {camera!r} gave {pictures.dtype} {pictures.shape}, "
                f"the store needs uint8 {(episode.steps, h, w, 3)}"
            )
    for name, dim in (("state", state_dim), ("action", action_dim), ("proposed_action", action_dim)):
        if (shape := getattr(episode, name).shape) != (episode.steps, dim):
            raise ValueError(f"{name} has shape {shape}, the store needs {(episode.steps, dim)}")
    missing = np.isnan(episode.proposed_action)
    if (missing.any(1) != missing.all(1)).any() or np.isinf(episode.proposed_action).any():
        raise ValueError("a step's proposed_action must be finite, or NaN throughout where nothing was proposed")
    if not np.isfinite(episode.reward).all():
        raise ValueError("reward holds NaN or infinite values")


def check_pictures(pictures: Mapping[str, ndarray], cameras: Mapping[str, tuple[int, int]]) -> None:
    """Raise ValueError unless one step's pictures are of these cameras. cameras: name -> (h, w)."""
    if pictures.keys() != cameras.keys():
        raise ValueError(f"there are pictures of {sorted(pictures)}, the store needs {sorted(cameras)}")
    for camera, picture in pictures.items():
        if picture.shape != (*cameras[camera], 3) or picture.dtype != np.uint8:
            given = f"{picture.dtype} {tuple(picture.shape)}"
            raise ValueError(f"camera {camera!r} gave {given}, the store needs uint8 {(*cameras[camera], 3)}")


def parse(table: pa.Table, dataset_features: dict[str, dict[str, Any]]) -> dict[str, ndarray]:
    """Columns on disk -> those of `Frames`. Raises ValueError where they are not of the features' types and sizes."""
    columns = {key: table[key].to_numpy() for key in NUMBERS if key not in VECTORS}
    for key in VECTORS:
        cells = table[key].combine_chunks()
        columns[key] = (cells if dataset_features[key]["shape"] == (1,) else cells.flatten()).to_numpy()
    parts = numbers(columns)
    for name, empty in no_steps(dataset_features).items():
        found, wanted = parts[name], (empty.dtype, (len(table), *empty.shape[1:]))
        if (found.dtype, found.shape) != wanted:
            raise ValueError(f"its {name} is {found.dtype} {found.shape}, not {wanted[0]} {wanted[1]}")
    return parts


def numbers(columns: Mapping[str, ndarray]) -> dict[str, ndarray]:
    """Field of `Frames` -> values, from those by column. A checksum is made of it, so it can only change with a new kind of
    checksum."""
    proposed = columns["has_proposal"]
    parts = {name: columns[key] for name, key in COLUMNS.items()}
    parts |= {name: columns[key].reshape(len(proposed), -1) for key, name in VECTORS.items()}
    return parts | {"proposed_action": np.where(proposed[:, None], parts["proposed_action"], np.float32(np.nan))}


def no_steps(dataset_features: dict[str, dict[str, Any]]) -> dict[str, ndarray]:
    """What `parse` would make of a store without episodes."""
    types = {key: dataset_features[key]["dtype"] for key in [*COLUMNS.values(), *VECTORS]}
    parts = {name: np.zeros(0, types[key]) for name, key in COLUMNS.items()}
    return parts | {name: np.zeros((0, dataset_features[key]["shape"][0]), types[key]) for key, name in VECTORS.items()}
