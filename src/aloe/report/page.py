"""The page: one HTML file that opens without a server and without a network."""

import base64
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from aloe import __version__
from aloe.evaluation.health import EQUAL_WEIGHTS, FEW_EFFECTIVE
from aloe.report.compare import differences
from aloe.report.episodes import Trace, choose, traces
from aloe.report.folder import RunSoFar
from aloe.report.health import critic_health, plain
from aloe.report.video import LONGEST, Film, film
from aloe.run import write_text
from aloe.types import Source

TEMPLATE: Final = Path(__file__).parent / "template"
SCRIPTS: Final = ("dom.js", "charts.js", "health.js", "player.js", "timeline.js", "browser.js", "page.js")
"""ES modules, each before those that import it."""
VIDEO_BYTES: Final = 14_000_000
"""Of all videos together; base64 makes a third more of them."""
PICTURES: Final = 3000
"""Of all videos together, about: most of the time that a page takes goes into them."""
FEWEST: Final = 100
"""Pictures of one video at most, where the episodes are many. (Even steps are shown, so it may be half of that.)"""


AT_ONCE: Final = 2
"""Episodes whose pictures are in memory at a time."""


@dataclass(frozen=True)
class Page:
    """An HTML file and what is worth saying of it."""

    html: str
    said: list[str]
    """Why something is not on it."""


def make_page(runs: Sequence[RunSoFar], episodes: int) -> Page:
    """One run with its episodes, at most so many; or several runs compared, without.

    Raises:
        ValueError: pictures or values that are there cannot be read.
    """
    films, shown, note, said = [], None, None, []
    if len(runs) == 1:
        all_traces, missing = traces(runs[0])
        chosen = choose(all_traces, episodes)
        if missing is not None:
            note = f"The episodes are shown without pictures and outcomes, because the experience cannot be read: {missing}"
            said.append(f"without pictures: {missing}")
        each = max(len(chosen), 1)
        limits = VIDEO_BYTES // each, min(max(PICTURES // each, FEWEST), LONGEST)
        with ThreadPoolExecutor(AT_ONCE) as pool:  # the codecs let go of Python's lock
            films = list(pool.map(lambda trace: _film(trace, *limits), chosen))
        shown = [_episode(trace, one) for trace, one in zip(chosen, films, strict=True)]
        if not any(films) and missing is None and chosen:
            note = "This run has no pictures: it is about states alone. The cursor moves in real time instead."
    data = {
        "version": __version__,
        "made": datetime.now().astimezone().isoformat(timespec="minutes"),
        "runs": [_run(run) for run in runs],
        "differences": differences(runs),
        "episodes": shown,
        "note": note,
        "limits": {"effective_share": [FEW_EFFECTIVE, EQUAL_WEIGHTS]},
        "of": None if shown is None else len(all_traces),
    }
    return Page(_html(data, films), said)


def write_page(runs: Sequence[RunSoFar], path: Path, episodes: int) -> Page:
    """Writes it, atomically."""
    page = make_page(runs, episodes)
    write_text(path, page.html)
    return page


def _html(data: dict[str, Any], films: Sequence[Film | None]) -> str:
    """The template with everything put in. What is put in is never looked through for places again."""
    parts = {
        "title": escape(" and ".join(run["title"] for run in data["runs"])),
        "style": (TEMPLATE / "style.css").read_text(),
        "data": _json(data),
        "videos": "\n".join(
            f'<script type="application/octet-stream" id="video-{index}">{base64.b64encode(one.mp4).decode()}</script>'
            for index, one in enumerate(films)
            if one is not None
        ),
        "script": "".join(_unwrapped((TEMPLATE / name).read_text()) for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (TEMPLATE / "page.html").read_text())


def _json(data: Any) -> str:
    """JSON that may stand within an HTML element, whatever a run, task or folder is called."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _unwrapped(module: str) -> str:
    """An ES module as a part of one script: nothing has to be fetched, so nothing is imported."""
    return re.sub(r"^export (?=\w)", "", re.sub(r"^import .*\n", "", module, flags=re.MULTILINE), flags=re.MULTILINE)


def _run(run: RunSoFar) -> dict[str, Any]:
    config = run.config
    rounds, elapsed = [], 0.0
    for row in run.rounds:
        elapsed += sum(row["seconds"].values())
        names = ("round", "episodes", "env_steps", "human_steps", "takeovers")
        measured = ("success", "success_low", "success_high", "steps_to_success", "by_task")
        rounds.append(
            {name: row.get(name) for name in (*names, *measured)}
            | {"complete": row["round"] < run.complete, "seconds": sum(row["seconds"].values()), "elapsed": elapsed}
        )
    return {
        "title": run.title,
        "name": run.name,
        "task": run.task,
        "method": config["method"],
        "seed": config["seed"],
        "offline": config["offline"],
        "facts": _facts(run),
        "unfinished": run.unfinished,
        "rounds": rounds,
        "health": critic_health(run),
        "ranking": run.ranking,
    }


def _facts(run: RunSoFar) -> list[tuple[str, str]]:
    """What a reader has to know of the run, as pairs of words."""
    config = run.config
    world = config["world"]
    if config["offline"]:
        seen = (
            "experience",
            ", ".join(f"{name} ({Path(root['root']).name})" for name, root in config["experience"].items()),
        )
    elif world["observations"] == "state":
        seen = ("observations", "state alone, no pictures")
    else:
        seen = (
            "observations",
            f"{len(world['cameras'])} cameras of {world['image_size']} px, proprioception, instruction",
        )
    measured = [] if config["offline"] else [("measured over", f"{config['eval']['episodes']} episodes a version")]
    return [
        ("method", config["method"]),
        *([] if config["offline"] else [("task", run.task)]),
        ("seed", str(config["seed"])),
        seen,
        *measured,
        *([("starts from", Path(config["policy"]["path"]).name)] if config["policy"]["path"] else []),
        ("folder", run.name),
    ]


def _film(trace: Trace, most_bytes: int, most_pictures: int) -> Film | None:
    if trace.pictures is None:
        return None
    return film(trace.pictures, len(trace), trace.fps, most_bytes, most_pictures)


def _episode(trace: Trace, shown: Film | None) -> dict[str, Any]:
    starts = np.flatnonzero(np.diff(trace.source, prepend=-1)).tolist()
    lines = {name: plain(np.asarray(line, np.float64)) for name, line in trace.lines.items()}
    drop, apart = trace.drop, trace.disagreement
    return {
        "title": trace.title,
        "task": trace.task,
        "kind": trace.kind,
        "critic": trace.critic,
        "round": trace.round,
        "version": trace.version,
        "outcome": trace.outcome,
        "failureStep": trace.failure_step,
        "steps": len(trace),
        "fps": trace.fps,
        "actors": [
            {"source": Source(trace.source[start]).name.lower(), "start": start, "end": end}
            for start, end in zip(starts, [*starts[1:], len(trace)], strict=True)
        ],
        "takeovers": trace.takeovers,
        "drop": None if drop is None else {"step": drop[0], "by": round(drop[1], 4)},
        "disagreement": None if apart is None or math.isnan(apart) else round(apart, 4),
        "lines": {name: line for name, line in lines.items() if any(value is not None for value in line)},
        "video": None
        if shown is None
        else {"height": shown.size[0], "width": shown.size[1], "every": shown.every, "places": shown.places},
    }
