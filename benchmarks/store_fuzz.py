"""Damaged inputs by the thousand: stores and foreign datasets, one file changed at a time, and what comes of reading them.

    python benchmarks/store_fuzz.py                          # 10,000
    python benchmarks/store_fuzz.py --mutations 300 --seed 7

Bytes flipped, cut off, put in, zeroed, exchanged for another file's; and where the damage would otherwise end at the parser
or the checksum: other values in JSON (with a checksum to match), other columns in parquet. Allowed is a read of what was
recorded, or a ValueError or OSError that names the folder. Anything else is a finding, and ends in exit code 1: another
exception, a process that died, a hang, wrong numbers or pictures where checksums should have told, a store that reading
changed.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from _common import print_header, print_row
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from store_kill import episode

from aloe.experience.checksums import write_seals
from aloe.experience.compact import compact
from aloe.experience.foreign import ForeignDataset
from aloe.experience.labels import Label, write_label
from aloe.experience.resolve import ImportConfig, resolve
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

STEPS = 3
PATIENCE_S = 60
MEMORY = 6 * 2**30
_ONE_AT_A_TIME = threading.Lock()
ODD = [None, -1, 0, 1, 2, 7, 2**31, 10**30, 0.5, -1e300, "", "x", "../..", "{", "{0}", "a/b", [], {}, [1], True, "v2.1"]
Content = list[np.ndarray]
Result = tuple[str, ...]
"""What was damaged: of which subject, which kind of file, in which way; and what came of it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    mutations: int = 10_000
    """How many damaged inputs are read."""
    seed: int = 0
    """Of the damage."""


# ---- what is damaged


def recorded(index: int) -> Episode:
    both = episode(index, STEPS)
    return replace(both, images={"top": both.images["top"]})


def record_store(root: Path, *, video: bool, sealed: bool = True, compacted: bool = False) -> None:
    with ExperienceStore.create(
        root, cameras={"top": (64, 64)}, state_dim=4, action_dim=4, fps=20, video=video
    ) as store:
        for index in range(3):
            store.append(recorded(index))
        write_label(root, store.columns(), 1, Label(reward=-3.0))
    if compacted:
        compact(root)
        shutil.rmtree(root / "quarantine")
    if not sealed:
        shutil.rmtree(root / "meta/checksums")


def record_foreign(root: Path, *, video: bool) -> None:
    vector = {"dtype": "float32", "shape": (2,), "names": None}
    columns = {"observation.state": vector, "action": vector}
    columns["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    pictures = {"dtype": "video" if video else "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    columns["observation.images.top"] = pictures
    dataset = LeRobotDataset.create("lab/foreign", 10, columns, root=root, use_videos=video)
    for index in range(2):
        for step in range(STEPS):
            numbers = np.array([index, step], np.float32)
            frame = {"observation.state": numbers, "action": numbers, "next.success": np.array([step == STEPS - 1])}
            dataset.add_frame(
                frame | {"observation.images.top": np.full((64, 64, 3), 40 * step, np.uint8), "task": "stack"}
            )
        dataset.save_episode()
    dataset.finalize()


def read_store(root: Path) -> Content:
    store = ExperienceStore.read(root)
    frames = store.columns()
    content = [value for value in vars(frames).values() if isinstance(value, np.ndarray)]
    content += [store.pictures(index)[camera] for index in range(store.num_episodes) for camera in store.cameras]
    return [*content, np.array(frames.tasks), np.array([store.fps])]


def read_foreign(root: Path) -> Content:
    dataset = ForeignDataset(root)
    resolve(dataset, ImportConfig(source="demo"))
    content: Content = []
    for index in range(len(dataset)):
        dataset.check_order(index)
        content += [np.array(dataset.task(index)), dataset.column(index, "action")]
        content += [dataset.pictures(index, camera) for camera in dataset.cameras]
    return content


@dataclass(frozen=True, kw_only=True)
class Subject:
    make: Callable[[Path], None]
    read: Callable[[Path], Content]
    sealed: bool
    """Whether checksums tell of damage to data and videos."""


SUBJECTS = {
    "store, PNG": Subject(make=lambda root: record_store(root, video=False), read=read_store, sealed=True),
    "store, video": Subject(make=lambda root: record_store(root, video=True), read=read_store, sealed=True),
    "store, compacted": Subject(
        make=lambda root: record_store(root, video=True, compacted=True), read=read_store, sealed=True
    ),
    "store, PNG, no checksums": Subject(
        make=lambda root: record_store(root, video=False, sealed=False), read=read_store, sealed=False
    ),
    "store, video, no checksums": Subject(
        make=lambda root: record_store(root, video=True, sealed=False), read=read_store, sealed=False
    ),
    "foreign, PNG": Subject(make=lambda root: record_foreign(root, video=False), read=read_foreign, sealed=False),
    "foreign, video": Subject(make=lambda root: record_foreign(root, video=True), read=read_foreign, sealed=False),
}


# ---- how


def damage(path: Path, other: Path, chance: random.Random) -> str:
    """Change a file in one way; which."""
    ways = ["bits", "cut", "put in", "taken out", "zeros", "of another file", "gone"]
    ways += ["another value"] * 4 * (path.suffix in (".json", ".jsonl")) + ["another column"] * 4 * (
        path.suffix == ".parquet"
    )
    content = bytearray(path.read_bytes())
    place, stretch = chance.randrange(len(content) or 1), chance.randint(1, 64)
    match way := chance.choice(ways):
        case "bits":
            for _ in range(chance.randint(1, 8) if content else 0):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case "cut":
            del content[place:]
        case "put in":
            content[place:place] = chance.randbytes(stretch)
        case "taken out":
            del content[place : place + stretch]
        case "zeros":
            content[place : place + stretch] = bytes(len(content[place : place + stretch]))
        case "of another file":
            content = bytearray(other.read_bytes())
        case "gone":
            path.unlink()
            return way
        case "another value":
            _another_value(path, chance)
            return way
        case "another column":
            _another_column(path, chance)
            return way
    path.write_bytes(content)
    return way


def _another_value(path: Path, chance: random.Random) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    if not lines:
        return
    number = chance.randrange(len(lines))
    whole = json.loads(lines[number])
    part = whole["episodes"] if "checksums" in path.parts else whole
    while part:
        key = chance.choice(list(part) if isinstance(part, dict) else range(len(part)))
        if isinstance(part[key], dict | list) and part[key] and chance.random() < 0.8:
            part = part[key]
            continue
        if isinstance(part, dict) and chance.random() < 0.2:
            del part[key]
        else:
            part[key] = chance.choice(ODD)
        break
    if "checksums" in path.parts:
        path.unlink()
        write_seals(path, whole["episodes"])
        return
    lines[number] = json.dumps(whole)
    path.write_text("\n".join(lines) + "\n" * (path.suffix == ".jsonl"))


def _another_column(path: Path, chance: random.Random) -> None:
    table = pq.read_table(path)
    column = chance.randrange(table.num_columns)
    name, rows = table.column_names[column], list(range(len(table)))
    match chance.choice(["dropped", "empty", "words", "numbers", "renamed", "rows", "order", "twice"]):
        case "dropped":
            table = table.remove_column(column)
        case "empty":
            table = table.set_column(column, name, pa.nulls(len(table), table.schema.field(column).type))
        case "words":
            table = table.set_column(column, name, pa.array(["x"] * len(table)))
        case "numbers":
            number = chance.choice([-1, 0, 1, 2, 5, 2**31, 2**62])
            table = table.set_column(column, name, pa.array([number] * len(table), pa.int64()))
        case "renamed":
            table = table.rename_columns([*table.column_names[:column], "x", *table.column_names[column + 1 :]])
        case "rows":
            table = table.take(pa.array(chance.sample(rows, chance.randrange(len(rows) + 1)), pa.int64()))
        case "order":
            table = table.take(pa.array(chance.sample(rows, len(rows)), pa.int64()))
        case "twice":
            table = pa.concat_tables([table, table])
    pq.write_table(table, path)


# ---- what comes of it


def state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


def outcome(subject: Subject, root: Path, kind: str, expected: Content, write: bool) -> str:
    """One word or two; what is not allowed begins with FINDING."""
    before = state(root)
    try:
        content = subject.read(root)
        same = len(content) == len(expected) and all(map(equal, content, expected))
        found = "as recorded"
        if not same:
            told = subject.sealed and any(True for _ in ExperienceStore.read(root).verify())
            found = "otherwise, and verify tells" if told else "otherwise"
            if subject.sealed and kind in ("data", "videos"):
                found = "FINDING: read as something else"
    except (ValueError, OSError) as error:
        found = "refused" if str(root) in str(error) else f"FINDING: does not say where: {error!r}"
    if state(root) != before:
        return "FINDING: reading changed it"
    if subject.read is read_store and not found.startswith("FINDING"):
        try:
            with contextlib.suppress(ValueError, OSError):
                list(ExperienceStore.read(root).verify())
            if write:
                with ExperienceStore.open(root) as store:
                    store.append(recorded(store.num_episodes))
        except (ValueError, OSError) as error:
            if str(root) not in str(error):
                return f"FINDING: writing does not say where: {error!r}"
    return found


def run_one(number: int, config: Config, folder: Path, expected: dict[str, Content]) -> Result:
    chance = random.Random(f"{config.seed} {number}")
    name = list(SUBJECTS)[number % len(SUBJECTS)]
    pristine, root = folder / "pristine" / name, folder / f"damaged-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)
    by_kind: dict[str, list[Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".writer.json"):
        parts = path.relative_to(root).parts
        by_kind.setdefault("/".join(parts[:2]) if parts[0] == "meta" else parts[0], []).append(path)
    kind = chance.choice(list(by_kind))
    others = [path for paths in by_kind.values() for path in paths]
    way = damage(chance.choice(by_kind[kind]), chance.choice(others), chance)

    def too_long(*_: object) -> None:
        raise TimeoutError(f"{root}: took more than {PATIENCE_S} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE_S)
    try:
        found = outcome(SUBJECTS[name], root, kind, expected[name], write=number % 50 == 0)
    except Exception as error:  # to find these is what this is for
        found = f"FINDING: {error!r}"
    finally:
        signal.alarm(0)
    return name, kind, way, found


def run_some(numbers: Sequence[int], config: Config, folder: Path, writer: int) -> None:
    """In a process of its own, which damaged input may end, or fill."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / f"stderr-{os.getpid()}", os.O_WRONLY | os.O_CREAT), 2)
    expected = {name: subject.read(folder / "pristine" / name) for name, subject in SUBJECTS.items()}
    for number in numbers:
        os.write(writer, json.dumps(run_one(number, config, folder, expected)).encode() + b"\n")


def results(numbers: Sequence[int], config: Config, folder: Path) -> dict[int, Result]:
    """What came of these mutations; a process that dies is replaced by another, which goes on after it."""
    found: dict[int, Result] = {}
    while rest := [number for number in numbers if number not in found][:500]:
        with _ONE_AT_A_TIME:  # else a child would hold the other's pipe open
            reader, writer = os.pipe()
            if (pid := os.fork()) == 0:
                os.close(reader)
                try:
                    run_some(rest, config, folder, writer)
                except Exception:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            os.close(writer)
        with open(reader, "rb") as lines:
            for number, line in zip(rest, lines, strict=False):
                found[number] = tuple(json.loads(line))
                if found[number][3].startswith("FINDING"):
                    print(f"mutation {number}: {', '.join(found[number])}", file=sys.stderr, flush=True)
        os.waitpid(pid, 0)
        if dead := [number for number in rest if number not in found]:
            said = (folder / f"stderr-{pid}").read_text(errors="replace")[-400:]
            found[dead[0]] = (list(SUBJECTS)[dead[0] % len(SUBJECTS)], "?", "?", f"FINDING: the process died: {said}")
        print(f"{len(found)} of {len(numbers)}", file=sys.stderr, flush=True)
    return found


def main(config: Config) -> int:
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (pid := os.fork()) == 0:  # so that no thread of a codec is missing in the children to come
            code = 1
            try:
                os.dup2(2, 1)
                for subject, how in SUBJECTS.items():
                    how.make(folder / "pristine" / subject)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, "the stores could not even be recorded"
        jobs = os.cpu_count() or 1
        shares = [range(first, config.mutations, jobs) for first in range(jobs)]
        with ThreadPoolExecutor(jobs) as pool:
            parts = list(pool.map(lambda share: results(share, config, folder), shares))
        found = [one for _, one in sorted((number, one) for part in parts for number, one in part.items())]
    kinds = ["refused", "as recorded", "otherwise, and verify tells", "otherwise"]
    counted = Counter((name, kind if kind in kinds else "finding") for name, _, _, kind in found)
    print_header(f"{config.mutations} damaged inputs, seed {config.seed}: how many were", ["of a", *kinds, "findings"])
    for name in SUBJECTS:
        print_row([name, *(counted[name, kind] for kind in [*kinds, "finding"])])
    print_row(["all", *(sum(counted[name, kind] for name in SUBJECTS) for kind in [*kinds, "finding"])])
    findings = [(number, *one) for number, one in enumerate(found) if one[3] not in kinds]
    for number, *one in findings[:50]:
        print(f"\nmutation {number}: " + ", ".join(one))
    by_place = Counter((kind, way) for name, kind, way, what in found if what == "otherwise" and SUBJECTS[name].sealed)
    print(
        "\nread otherwise although there are checksums: "
        + (", ".join(f"{n} x {k[0]} {k[1]}" for k, n in by_place.items()) or "none")
    )
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
