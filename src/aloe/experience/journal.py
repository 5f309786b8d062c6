"""Append-only files of one JSON object a line, beside the data of a store: its labels, and what was imported into it.

A line counts once its newline is written. What follows the last newline was left by a process that died while it wrote:
readers pass over it, and the next writer moves it to `quarantine/`.
"""

import fcntl
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from aloe.experience.commit import QUARANTINE, sync


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, oldest first; none where there is no such file.

    Raises:
        ValueError: a line is no JSON object.
    """
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}; restore it from a backup") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path} is damaged in line {number}: no JSON object; restore it from a backup")
        lines.append(entry)
    return lines


def append_line(root: Path, path: Path, entry: dict[str, Any]) -> None:
    """Write one line at the end of `root / path`. On return it is on the disk."""
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    file = root / path
    with file.open("ab+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # lifted with the file, also by a process that dies
        _set_half_line_aside(root, path, handle.fileno())
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
