"""The run folder: configuration, stages that are done, metrics, summary. Everything in it is written atomically.

config.json      what the run is; the same command again goes on where it stopped
metrics.jsonl    one line a measurement, the truth; `tensorboard/` is made from it
summary.json     one entry a round
experience/      the store, a LeRobot v3 dataset; with --dataset.root a link to it
cache/           decoded pictures, features, sampled chunks; may be deleted
report.html      what `aloe report` makes of all this
rounds/000/      pretrained_model/, critic.safetensors, advantages.parquet, ..., and <stage>.done.json;
                 fresh/ and fresh.json: the evaluation's first episodes, a store that nobody learns from, and facts of all
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from aloe.experience.commit import sync
from aloe.training import Log

ALWAYS_FREE = ("output_dir", "rounds", "cache", "device")
"""Options that decide nothing about what has been done: a run may be moved, to a GPU, too, and go on for more rounds."""
HOW_IT_IS_MADE = ("accumulate", "checkpointing", "sample_batch", "save_every")
"""Options of whatever group that decide only how much memory training takes, and how often it is saved: what ran out of
memory goes on with less."""
FREE_OFFLINE = ("experience", "rename")
"""Offline, the next round may learn from more; what each has learnt from is kept by its stage `experience`."""


def write_text(path: Path, content: str) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, as atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file.

    remedy: what to do where it is damaged.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended well; it replaces what stood there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def to_plain(config: Any) -> Any:
    """A config as JSON would give it back: dictionaries, lists, strings and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def digest(plain: Any) -> str:
    """64 hexadecimal digits that name what JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def from_plain[C](kind: type[C], plain: dict[str, Any]) -> C:
    """The config of which `to_plain` made this.

    Raises:
        ValueError: it has options that this version does not know, or lacks some that it does.
    """
    types = get_type_hints(kind)
    if unknown := [name for name in plain if name not in types]:
        raise ValueError(f"the config has options that this version does not know: {', '.join(unknown)}")
    if missing := [name for name in types if name not in plain]:
        raise ValueError(f"the config was written by a version that had no {', '.join(missing)}; make the run anew")
    values = {}
    for name, value in plain.items():
        if dataclasses.is_dataclass(types[name]) and isinstance(value, dict):
            value = from_plain(types[name], value)
        elif get_origin(types[name]) is dict and dataclasses.is_dataclass(get_args(types[name])[1]):
            inner: Any = get_args(types[name])[1]
            value = {key: from_plain(inner, content) for key, content in value.items()}
        elif value is not None and Path in (types[name], *get_args(types[name])):
            value = Path(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


class RunFolder:
    """One run on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out while the block runs; the lock goes with the process that holds it.

        Raises:
            ValueError: another process works in this folder.
        """
        folder = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another aloe works in {self.root}; wait, or give another --output-dir") from error
            yield
        finally:
            os.close(folder)

    @classmethod
    def open(cls, root: Path, config: Any, resume: bool = True) -> "RunFolder":
        """Makes the folder, or goes on with it if it was made by the same config.

        Raises:
            ValueError: see `check`; or it exists although `resume` is off.
        """
        config_file = root / "config.json"
        if not resume and config_file.exists():
            raise ValueError(f"{root} exists; leave out --no-resume to go on with it, or choose another --output-dir")
        cls.check(root, config)
        plain = to_plain(config)
        if not config_file.exists() or cls(root).options() != plain:
            write_json(config_file, plain)
        return cls(root)

    def options(self) -> dict[str, Any]:
        """What `config.json` holds.

        Raises:
            ValueError: it is damaged.
        """
        remedy = "the same command with another --output-dir writes the same file at its start: copy it from there"
        return read_json(self.root / "config.json", remedy)

    @staticmethod
    def check(root: Path, config: Any) -> None:
        """Whether a run of this config may begin or go on in the folder; writes nothing.

        Raises:
            ValueError: it holds something else, was made with another config, or has played more rounds.
        """
        config_file, plain = root / "config.json", to_plain(config)
        if not config_file.exists():
            if root.exists() and any(not path.name.endswith(".partial") for path in root.iterdir()):
                raise ValueError(f"{root} is not empty and holds no run; choose another --output-dir")
            return
        has_own_store = (root / "experience").exists() and not (root / "experience").is_symlink()
        if not has_own_store and not (root / "rounds").exists():
            return  # of a call that came to nothing
        stored = RunFolder(root).options()
        free = (*ALWAYS_FREE, *(FREE_OFFLINE if plain.get("offline") else ()))
        if changed := [
            f"{name}: {old}, now {new}" for name, old, new in _differences(stored, plain) if not _is_free(name, free)
        ]:
            raise ValueError(
                f"{root} was made with another config ({'; '.join(changed[:4])}); "
                "give the same options to go on with it, or choose another --output-dir"
            )
        played = max([0, *(int(path.name) for path in (root / "rounds").glob("[0-9][0-9][0-9]"))])
        if plain.get("rounds", played) < played:
            raise ValueError(
                f"{root} has begun round {played} already; give --rounds {played} or more to go on with it"
            )

    @property
    def experience(self) -> Path:
        path = self.root / "experience"
        return path.resolve() if path.is_symlink() else path  # what replaces a store must not replace a link to it

    def record_into(self, store: Path) -> None:
        """Lets the run record into a store elsewhere, with what is there already: `experience` becomes a link to it.

        Raises:
            ValueError: the run records elsewhere.
        """
        link, target = self.root / "experience", store.resolve()
        if link.is_symlink() and not (self.root / "rounds").exists():
            link.unlink()  # of a call that came to nothing, but for demonstrations that stay where they were recorded
        if target == self.root.resolve() / "experience":
            return  # a link to itself would lead nowhere
        if not link.exists(follow_symlinks=False):
            link.symlink_to(target)
        elif self.experience.resolve() != target:
            raise ValueError(
                f"{self.root} records into {self.experience.resolve()}, not into {store}; leave out --dataset.root to go "
                "on with it, or choose another --output-dir"
            )

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def round(self, index: int) -> Path:
        return self.root / "rounds" / f"{index:03d}"

    def policy(self, version: int) -> Path:
        return self.round(version) / "pretrained_model"

    # -- stages -------------------------------------------------------------------------------------------------------

    def done(self, index: int, stage: str) -> dict[str, Any] | None:
        """What a finished stage left for the later ones, or None."""
        path = self.round(index) / f"{stage}.done.json"
        return read_json(path, "delete it, and that stage is made anew") if path.exists() else None

    @contextmanager
    def stage(self, index: int, stage: str) -> Iterator[dict[str, Any]]:
        """Runs a stage; what the block puts into the dictionary is kept with the seconds of this
        attempt, and marks the stage as done."""
        result: dict[str, Any] = {}
        start = time.monotonic()
        yield result
        # Or a power cut might leave a stage that is done without its results (of a run: single commands write elsewhere).
        for made in self.round(index).rglob("*"):
            sync(made)
        write_json(self.round(index) / f"{stage}.done.json", result | {"seconds": round(time.monotonic() - start, 2)})

    # -- metrics ------------------------------------------------------------------------------------------------------

    @property
    def metrics_file(self) -> Path:
        return self.root / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """All measurements so far; a last line that a kill left half is not one."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline was cut short

    def logger(self, index: int, stage: str, first_step: int = 0) -> Log:
        """Appends measurements of one stage. What an interrupted attempt wrote from `first_step` on is dropped first."""
        kept = [
            line
            for line in self.metrics()
            if not (line["round"] == index and line["stage"] == stage and line["step"] >= first_step)
        ]
        partial = self.metrics_file.with_name("metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.metrics_file)

        def log(step: int, values: dict[str, float]) -> None:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps({"round": index, "stage": stage, "step": step} | values) + "\n")

        return log

    def write_tensorboard(self) -> None:
        """Makes the TensorBoard events anew from `metrics.jsonl`; steps count on from round to round."""
        from torch.utils.tensorboard import SummaryWriter

        with new_folder(self.root / "tensorboard") as folder, SummaryWriter(str(folder)) as writer:
            offsets: dict[tuple[str, int], int] = {}
            reached: dict[str, int] = {}
            for line in self.metrics():
                stage, index = line["stage"], line["round"]
                offset = offsets.setdefault((stage, index), reached.get(stage, 0))
                step = offset + line["step"]
                reached[stage] = max(reached.get(stage, 0), step + 1)
                for name, value in line.items():
                    if name not in ("round", "stage", "step") and isinstance(value, int | float):
                        writer.add_scalar(f"{stage}/{name}", value, step)


def _is_free(name: str, groups: tuple[str, ...]) -> bool:
    """Whether an option, by its name with its groups, may change in a run that has begun."""
    group, _, rest = name.partition(".")
    if group in groups:
        return True
    # The names of roots and cameras are the user's.
    return group not in ("experience", "rename") and (rest or group).rpartition(".")[2] in HOW_IT_IS_MADE


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Options by which two plain configs differ: name with its groups, old and new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [(path, old, new)]
