"""The episodes of a run for Rerun (https://rerun.io): the same videos and time lines as on the page, in one .rrd file."""

from pathlib import Path
from typing import Any

import numpy as np

from aloe.report.episodes import Trace, choose, traces
from aloe.report.folder import RunSoFar
from aloe.report.health import critic_health
from aloe.report.video import LONGEST, film
from aloe.types import Source

MOST_BYTES = 2_000_000
"""Of an episode's video."""


def write_rerun(run: RunSoFar, path: Path, episodes: int) -> None:
    """A tab for the run and one for each episode, whose time lines begin at step 0 each.

    Raises:
        ValueError: rerun-sdk is not installed, or what is there cannot be read.
    """
    try:
        import rerun as rr
        import rerun.blueprint as rrb
    except ImportError as error:
        raise ValueError("--rerun needs rerun-sdk; install it with: pip install 'aloe-vla[rerun]'") from error
    chosen = choose(traces(run)[0], episodes)
    names = [f"{index:02d}" for index in range(len(chosen))]
    tabs = [
        rrb.Vertical(rrb.TextDocumentView(origin="run/about"), rrb.TimeSeriesView(origin="run/success"), name="run"),
        *(_tab(rrb, name, trace) for name, trace in zip(names, chosen, strict=True)),
    ]
    with rr.RecordingStream("aloe", recording_id=run.name) as stream:
        stream.save(path, default_blueprint=rrb.Blueprint(rrb.Tabs(*tabs)))
        stream.log("run/about", rr.TextDocument(_about(run), media_type="text/markdown"), static=True)
        rows = [row for row in run.rounds if row["success"] is not None]
        if rows:
            learnt = rr.TimeColumn("episodes_learnt_from", sequence=[row["episodes"] for row in rows])
            for column in ("success", "success_low", "success_high"):
                scalars = rr.Scalars.columns(scalars=[row[column] for row in rows])
                stream.send_columns(f"run/success/{column}", [learnt], scalars)
        for name, trace in zip(names, chosen, strict=True):
            _log(rr, stream, f"episodes/{name}", trace)


def _tab(rrb: Any, name: str, trace: Trace) -> Any:
    origin = f"episodes/{name}"
    views = [rrb.TimeSeriesView(origin=f"{origin}/{line}", name=line) for line in _panels(trace)]
    if trace.pictures is not None:
        views.insert(0, rrb.Spatial2DView(origin=f"{origin}/video", name="cameras"))
    shares = [3, *[1] * (len(views) - 1)] if trace.pictures is not None else None
    return rrb.Vertical(*views, name=f"{name}: {trace.title}, {trace.outcome}", row_shares=shares)


def _panels(trace: Trace) -> list[str]:
    return ["executed_by", *(name for name in trace.lines if name != "return")]


def _log(rr: Any, stream: Any, origin: str, trace: Trace) -> None:
    steps = np.arange(len(trace))
    times = [
        rr.TimeColumn("step", sequence=steps),
        rr.TimeColumn("time", duration=steps / trace.fps),
    ]
    for name, line in trace.lines.items():
        panel = "value" if name == "return" else name  # beside what was predicted of it
        stream.send_columns(f"{origin}/{panel}/{name}", times, rr.Scalars.columns(scalars=line))
    for source in Source:
        if (trace.source == source).any():
            acts = (trace.source == source).astype(float)
            path = f"{origin}/executed_by/{source.name.lower()}"
            stream.send_columns(path, times, rr.Scalars.columns(scalars=acts))
    if trace.pictures is None:
        return
    shown = film(trace.pictures, len(trace), trace.fps, MOST_BYTES, LONGEST)
    stream.log(f"{origin}/video", rr.AssetVideo(contents=shown.mp4, media_type="video/mp4"), static=True)
    seconds = (steps // shown.every + 0.5) * shown.every / trace.fps
    frames = rr.VideoFrameReference.columns_secs(seconds)
    stream.send_columns(f"{origin}/video", times, frames)


def _about(run: RunSoFar) -> str:
    lines = [f"# {run.title}", run.unfinished or ""]
    for health in critic_health(run):
        lines.append(f"**Critic of round {health['round']}: {health['verdict']}.** {health['said']}")
        lines += [
            f"- {check['title']} {check['value']}: {check['warning']}" for check in health["checks"] if check["warning"]
        ]
    return "\n\n".join(line for line in lines if line)
