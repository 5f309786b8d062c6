"""What two runs did differently, as far as their configs say."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from aloe.config import unread_groups
from aloe.report.folder import RunSoFar

NOISE = re.compile(r"^(seed|workers|cache\..*|rounds|.*\b(path|root|save_every|sample_batch|checkpointing))$")
"""Options that decide where, how fast or for how long a run is made. The seed has a column of its own."""


def differences(runs: Sequence[RunSoFar]) -> list[dict[str, Any]]:
    """Options of which two runs have different values: `option` as the command line calls it, and `values`, one a run.

    An option that a run's method does not read, or that its version did not have, is None there and no difference.
    """
    flat = [dict(_read_options(run)) for run in runs]
    names = dict.fromkeys(name for options in flat for name in options)
    return [
        {"option": name.replace("_", "-"), "values": [options.get(name) for options in flat]}
        for name in names
        if not NOISE.match(name) and len({repr(options[name]) for options in flat if name in options}) > 1
    ]


def _read_options(run: RunSoFar) -> Iterator[tuple[str, Any]]:
    unread = unread_groups(run.config["method"])
    return _flat({name: value for name, value in run.config.items() if name not in unread})


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
