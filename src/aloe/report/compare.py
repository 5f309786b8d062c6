"""What two runs did differently, as far as their configs say."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aloe.config import unread_groups
from aloe.report.folder import RunSoFar
from aloe.run import HOW_IT_IS_MADE

NOISE = re.compile(rf"^(seed|workers|cache\..*|rounds|.*\b({'|'.join(HOW_IT_IS_MADE)}))$")
"""Options that decide how fast or for how long a run is made. The seed has a column of its own."""


def differences(runs: Sequence[RunSoFar]) -> list[dict[str, Any]]:
    """Options of which two runs have different values: `option` as the command line calls it, and `values`, one a run.
    Of paths, which differ between machines, the last part.

    An option that a run's method does not read, or that its version did not have, is None there and no difference. One of
    a root of recorded experience that the run does not have is None, too, and a difference.
    """
    flat = [dict(_read_options(run)) for run in runs]
    names = dict.fromkeys(name for options in flat for name in options)
    return [
        {"option": name.replace("_", "-"), "values": [options.get(name) for options in flat]}
        for name in names
        if not NOISE.match(name) and len({repr(value) for value in _compared(flat, name)}) > 1
    ]


def _compared(flat: Sequence[dict[str, Any]], name: str) -> list[Any]:
    if name.startswith(("experience.", "rename.")):  # the user's own names
        return [options.get(name) for options in flat]
    return [options[name] for options in flat if name in options]


def _read_options(run: RunSoFar) -> Iterator[tuple[str, Any]]:
    unread = unread_groups(run.config["method"])
    return _flat({name: value for name, value in run.config.items() if name not in unread})


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, Path(value).name if value and name in ("root", "path") else value
