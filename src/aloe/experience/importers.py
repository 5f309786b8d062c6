"""A foreign LeRobot dataset into a store. Its labels are resolved once (`resolve`), before anything is written."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from aloe.experience.foreign import ForeignDataset
from aloe.experience.in_place import ForeignExperience
from aloe.experience.journal import append_line, read_lines
from aloe.experience.labels import Outcome
from aloe.experience.resolve import ImportConfig
from aloe.experience.store import ExperienceStore

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
    begun = _begun(root, dataset, config)
    experience = ForeignExperience(dataset, config, ask if begun is None else _answered(begun))
    for name, how in experience.resolved.notes.items():
        say(f"{name:>14}  {how}")
    store = _open(root, experience)
    done = 0
    if begun is None:
        append_line(root, IMPORTS_PATH, _record(experience, config, store.num_episodes))
    else:
        done = _already(store, experience, begun)
    for episode in tqdm(range(done, len(dataset)), desc="importing", unit="episode", delay=2):
        store.append(experience.episode(episode))
    return store


def _open(root: Path, experience: ForeignExperience) -> ExperienceStore:
    dataset, dims = experience.dataset, {"state_dim": experience.state_dim, "action_dim": experience.action_dim}
    if not (root / "meta/info.json").exists():
        video = any(camera.video for camera in dataset.cameras.values())
        return ExperienceStore.create(
            root, cameras=experience.cameras, fps=dataset.fps, video=video, robot_type=dataset.robot_type, **dims
        )
    store = ExperienceStore.open(root)
    mine, theirs = ((e.cameras, e.state_dim, e.action_dim, e.fps) for e in (store, experience))
    if mine != theirs:
        raise ValueError(
            f"{root} has cameras, state, action and fps {mine}, {dataset.root} has {theirs}; import it into another store"
        )
    return store


def _record(experience: ForeignExperience, config: ImportConfig, first: int) -> dict[str, Any]:
    dataset, resolved = experience.dataset, experience.resolved
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


def _already(store: ExperienceStore, experience: ForeignExperience, begun: dict[str, Any]) -> int:
    """How many episodes of the dataset the store has; they are compared, in length all, the last one in its actions."""
    first: int = begun["first"]
    lengths = experience.lengths
    done = min(store.num_episodes - first, len(lengths))
    same = done >= 0 and store.lengths[first : first + done] == lengths[:done]
    if same and done:
        mine, theirs = store.columns(), experience.columns()
        same = np.array_equal(mine.action[mine.episode == first + done - 1], theirs.action[theirs.episode == done - 1])
    if not same:
        raise ValueError(
            f"{store} has other episodes from number {first} on than {experience}: something else was recorded "
            "after the import was stopped; import into another store"
        )
    if done < len(lengths) and [episode.success for episode in experience.resolved.episodes] != begun["success"]:
        raise ValueError(f"the outcomes of {experience} are not those that its import into {store} began with")
    return done
