"""`aloe report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from aloe.report.curve import draw_curve
from aloe.report.folder import RunSoFar
from aloe.report.page import write_page
from aloe.report.rerun_file import write_rerun
from aloe.report.text import tables

EPISODES = 30


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page about a run: success, whether its critics can be trusted, episodes to look at. Or several runs compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; nothing that is in them is changed."""
    output: Path | None = None
    """HTML file; by default report.html in the run, or of several comparison.html in the first."""
    episodes: int = EPISODES
    """Episodes that one can look at: half of them, where there are any, such as the critic has not learnt from."""
    text: bool = False
    """Print the tables, and write no page."""
    rerun: Path | None = None
    """Write the episodes for Rerun into this .rrd file, and no page."""
    png: Path | None = None
    """Draw the learning curve into this PNG file, and write no page."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run folder: aloe report RUN [RUN ...]")
        if self.episodes < 0:
            raise ValueError("--episodes must not be negative")
        for option, path, ending in (
            ("output", self.output, ".html"),
            ("rerun", self.rerun, ".rrd"),
            ("png", self.png, ".png"),
        ):
            if path is not None and path.suffix.lower() != ending:
                raise ValueError(f"--{option} {path} should end in {ending}")
        if self.rerun is not None and len(self.runs) > 1:
            raise ValueError("--rerun is about the episodes of one run; give one run folder")

    def main(self) -> None:
        console = Console()
        runs = [RunSoFar.read(root) for root in self.runs]
        if self.text:
            for run in runs:
                for table in tables(run):
                    console.print(table)
        if self.png is not None:
            draw_curve(runs, self.png)
            console.print(f"learning curve: {self.png}", markup=False)
        if self.rerun is not None:
            write_rerun(runs[0], self.rerun, self.episodes)
            console.print(f"wrote {self.rerun}; look at it with: rerun {self.rerun}", markup=False)
        if self.output is not None or not (self.text or self.png or self.rerun):
            output = self.output or self.runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
            for line in write_page(runs, output, self.episodes).said:
                console.print(line, markup=False)
            console.print(
                f"report: {output} ({output.stat().st_size / 1e6:.1f} MB); open it in a browser", markup=False
            )
