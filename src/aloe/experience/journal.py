"""Append-only files of one JSON object a line, beside the data of a store: its labels, and what was imported into it.

A line counts once its newline is written. What follows the last newline was left by a process that died while it wrote:
readers pass over it, and the next writer moves it to `quarantine/`. Each line ends with a SHA-256 of itself and all lines
before it: what was changed, taken out or put in since is found. That the last lines are gone is not.
"""

import fcntl
import hashlib
import json
import os
from itertools import count
from pathlib import Path
from typing import Any, Final

from aloe.experience.commit import QUARANTINE, sync

_CHAIN: Final = "sha256"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, oldest first; none where there is no such file.

    Raises:
        ValueError: a line is no JSON object, or not the one that was written after the one before.
    """
    return _read(path, path.read_bytes())[0] if path.exists() else []


def _read(path: Path, content: bytes) -> tuple[list[dict[str, Any]], str]:
    """The objects, and the last line's checksum."""
    lines, chain = [], ""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}; restore it from a backup") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path} is damaged in line {number}: no JSON object; restore it from a backup")
        said = entry.pop(_CHAIN, None)
        chain = _checksum(chain, entry)
        if said != chain:
            raise ValueError(
                f"{path} is damaged in line {number}: it is not what was written there; restore it from a backup"
            )
        lines.append(entry)
    return lines, chain


def _checksum(before: str, entry: dict[str, Any]) -> str:
    return hashlib.sha256((before + json.dumps(entry, sort_keys=True)).encode()).hexdigest()


def append_line(root: Path, path: Path, entry: dict[str, Any]) -> None:
    """Write one line at the end of `root / path`. On return it is on the disk. Raises ValueError if the file is damaged."""
    file = root / path
    with file.open("ab+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # lifted with the file, also by a process that dies
        _set_half_line_aside(root, path, handle.fileno())
        chain = _checksum(_read(file, file.read_bytes())[1], entry)
        line = json.dumps({**entry, _CHAIN: chain}, allow_nan=False).encode() + b"\n"
        while line:  # a full disk takes a part, and then raises
            line = line[os.write(handle.fileno(), line) :]
        os.fsync(handle.fileno())
    sync(file.parent)


def _set_half_line_aside(root: Path, path: Path, handle: int) -> None:
    content = (root / path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    aside = next(folder for n in count() if not (folder := root / QUARANTINE / f"{n:03d}").exists()) / path
    aside.parent.mkdir(parents=True)
    aside.write_bytes(content[whole:])
    os.ftruncate(handle, whole)
    print(f"{root / path}: a write was cut short; moved {len(content) - whole} bytes to {aside}")
