"""A foreign LeRobot dataset into a store. Its labels are resolved once (`resolve`), before anything is written."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from tqdm import tqdm

from aloe.experience.foreign import ForeignDataset
from aloe.experience.journal import append_line, read_lines
from aloe.experience.labels import Outcome
from aloe.experience.resolve import INTERVENE_ACTION, ImportConfig, Resolved, resolve
from aloe.experience.schema import IMAGES, check_features
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, NO_SEED, Episode, Source

IMPORTS_PATH: Final = Path("meta/aloe_imports.jsonl")


def import_dataset(
    folder: Path,
    root: Path,
    config: ImportConfig,
    *,
    ask: Callable[[int], Outcome] | None = None,
    say: Callable[[str], None] = print,
) -> ExperienceStore:
    """Append the episodes of a LeRobot v3 dataset to the store in `root`, made if there is none.

    The same call again goes on where it was stopped: `meta/aloe_imports.jsonl` has a line for each import.

    Raises:
        ValueError: the dataset is damaged, its labels are unclear, or the store is of another kind. Nothing is written
            then, unless it is a picture that is damaged: the episodes before it are in the store.
    """
    if root.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} and {root} lie within each other; import into a folder of its own")
    dataset = ForeignDataset(folder)
    _refuse_store(dataset)
    begun = _begun(root, dataset, config)
    resolved = resolve(dataset, config, ask if begun is None else _answered(begun))
    for name, how in resolved.notes.items():
        say(f"{name:>14}  {how}")
    for episode in range(len(dataset)):
        _check(dataset, resolved, episode)
    cameras = {_camera_name(key): camera.size for key, camera in dataset.cameras.items()}
    if len(cameras) < len(dataset.cameras):
        raise ValueError(f"{folder} has two cameras of one name: {', '.join(dataset.cameras)}")
    store = _open(root, dataset, resolved, cameras)
    done = 0
    if begun is None:
        append_line(root, IMPORTS_PATH, _record(dataset, config, resolved, store.num_episodes))
    else:
        done = _already(store, dataset, resolved, begun)
    for episode in tqdm(range(done, len(dataset)), desc="importing", unit="episode", delay=2):
        store.append(_episode(dataset, config, resolved, episode))
    return store


def _check(dataset: ForeignDataset, resolved: Resolved, episode: int) -> None:
    """All of an episode but its pictures, which take long."""
    dataset.check_order(episode)
    dataset.task(episode)
    for key in (resolved.state, resolved.action):
        if not np.isfinite(_vectors(dataset, episode, key)).all():
            raise ValueError(f"{dataset.root}: column {key!r} holds NaN or infinite values in episode {episode}")


def _refuse_store(dataset: ForeignDataset) -> None:
    try:
        check_features(dataset.features)
    except (ValueError, KeyError):
        return
    raise ValueError(f"{dataset.root} has ALOE's columns already; use it where it is")


def _camera_name(key: str) -> str:
    return key.removeprefix(IMAGES).removeprefix("observation.")


def _open(
    root: Path, dataset: ForeignDataset, resolved: Resolved, cameras: dict[str, tuple[int, int]]
) -> ExperienceStore:
    dims = {}
    for name, key in (("state_dim", resolved.state), ("action_dim", resolved.action)):
        if len(shape := dataset.features[key]["shape"]) != 1:
            raise ValueError(f"{dataset.root}: column {key!r} has shape {shape}; a vector a step is needed")
        dims[name] = shape[0]
    if not (root / "meta/info.json").exists():
        video = any(camera.video for camera in dataset.cameras.values())
        return ExperienceStore.create(
            root, cameras=cameras, fps=dataset.fps, video=video, robot_type=dataset.robot_type, **dims
        )
    store = ExperienceStore.open(root)
    mine = (store.cameras, store.state_dim, store.action_dim, store.fps)
    if mine != (theirs := (cameras, dims["state_dim"], dims["action_dim"], dataset.fps)):
        raise ValueError(
            f"{root} has cameras, state, action and fps {mine}, {dataset.root} has {theirs}; import it into another store"
        )
    return store


def _record(dataset: ForeignDataset, config: ImportConfig, resolved: Resolved, first: int) -> dict[str, Any]:
    return {
        "dataset": dataset.root.name,
        "digest": dataset.digest,
        "options": _plain(config),
        "first": first,
        "episodes": len(dataset),
        "success": [episode.success for episode in resolved.episodes],
        "notes": resolved.notes,
    }


def _plain(config: ImportConfig) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def _begun(root: Path, dataset: ForeignDataset, config: ImportConfig) -> dict[str, Any] | None:
    """The line of an earlier import of the same dataset."""
    for line in read_lines(root / IMPORTS_PATH):
        if line.get("digest") != dataset.digest:
            continue
        if line.get("options") != _plain(config):
            raise ValueError(
                f"{dataset.root} was imported into {root} before, with other options: {line.get('options')}. Give the same "
                "ones, correct single episodes with `aloe data label`, or import into another store"
            )
        return line
    return None


def _answered(begun: dict[str, Any]) -> Callable[[int], Outcome]:
    """Nobody is asked a second time."""
    return lambda episode: "success" if begun["success"][episode] else "failure"


def _already(store: ExperienceStore, dataset: ForeignDataset, resolved: Resolved, begun: dict[str, Any]) -> int:
    """How many episodes of the dataset the store has; they are compared, in length all, the last one in its actions."""
    first: int = begun["first"]
    done = min(store.num_episodes - first, len(dataset))
    same = done >= 0 and store.lengths[first : first + done] == dataset.lengths[:done]
    if same and done:
        frames = store.columns()
        mine = frames.action[frames.episode == first + done - 1]
        same = np.array_equal(mine, _vectors(dataset, done - 1, resolved.action))
    if not same:
        raise ValueError(
            f"{store.root} has other episodes from number {first} on than {dataset.root}: something else was recorded "
            "after the import was stopped; import into another store"
        )
    if done < len(dataset) and [episode.success for episode in resolved.episodes] != begun["success"]:
        raise ValueError(f"the outcomes of {dataset.root} are not those that its import into {store.root} began with")
    return done


def _vectors(dataset: ForeignDataset, episode: int, key: str) -> Float32[ndarray, "T D"]:
    values = dataset.column(episode, key)
    return values.reshape(len(values), -1).astype(np.float32)


def _episode(dataset: ForeignDataset, config: ImportConfig, resolved: Resolved, index: int) -> Episode:
    """One episode with ALOE's labels: reward -1 a step, 0 at a success."""
    labels, steps = resolved.episodes[index], dataset.lengths[index]
    last = np.arange(steps) == steps - 1
    recorded = _vectors(dataset, index, resolved.action)
    action, proposed = recorded.copy(), np.full_like(recorded, np.nan)
    human = labels.source == Source.HUMAN
    if human.any() and INTERVENE_ACTION in dataset.features and INTERVENE_ACTION not in config.ignore:
        instead = _vectors(dataset, index, INTERVENE_ACTION)
        if instead.shape != recorded.shape:
            raise ValueError(
                f"{dataset.root}: {INTERVENE_ACTION!r} has {instead.shape[1]} numbers, an action {recorded.shape[1]}"
            )
        replaced = human & (instead != recorded).any(1)
        action[replaced], proposed[replaced] = instead[replaced], recorded[replaced]
    success = last & labels.success
    try:
        return Episode(
            task=dataset.task(index),
            seed=NO_SEED,
            images={_camera_name(key): dataset.pictures(index, key) for key in dataset.cameras},
            state=_vectors(dataset, index, resolved.state),
            action=action,
            proposed_action=proposed,
            source=labels.source,
            policy_version=np.where(labels.source == Source.DEMO, NO_POLICY, config.policy_version),
            reward=np.where(success, 0, -1).astype(np.float32),
            terminated=last & (not labels.timeout),
            truncated=last & labels.timeout,
            success=success,
        )
    except ValueError as error:
        raise ValueError(f"episode {index} of {dataset.root}: {error}") from error
