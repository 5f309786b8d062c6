"""The commands below `aloe data`. Another one is a dataclass here and an entry in `cli.COMMANDS`."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from aloe.data.damage import verify_store
from aloe.data.inventory import inventory
from aloe.experience.compact import compact
from aloe.experience.foreign import ForeignDataset
from aloe.experience.importers import import_dataset
from aloe.experience.labels import Label, Outcome, SourceName, undo_label, write_label
from aloe.experience.resolve import ImportConfig
from aloe.experience.store import ExperienceStore

console = Console()

Root = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")]
EpisodeNumber = Annotated[int, tyro.conf.Positional, tyro.conf.arg(metavar="EPISODE")]


@dataclass(frozen=True, kw_only=True)
class Import(ImportConfig):
    """Append the episodes of a LeRobot v3 dataset to a store, their labels resolved once. Goes on where it stopped."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder of the LeRobot v3 dataset; it is only read."""
    root: Path
    """Folder of the store; made if there is none."""

    def main(self) -> None:
        config = ImportConfig(**{name: getattr(self, name) for name in ImportConfig.__dataclass_fields__})
        ask = _asker(self.dataset) if self.outcome == "ask" else None
        store = import_dataset(self.dataset, self.root, config, ask=ask, say=_say)
        _say(f"{store.num_episodes} episodes, {store.num_frames} frames in {self.root}")


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a store holds: sources, episodes, hours, success and takeovers by policy version, cameras, tasks."""

    root: Root
    """Folder of the store."""

    def main(self) -> None:
        console.print(inventory(ExperienceStore.read(self.root)))


@dataclass(frozen=True, kw_only=True)
class LabelEpisode:
    """Say after the fact how an episode ended, or who acted. The data stay as they are; --undo takes it back."""

    root: Root
    """Folder of the store."""
    episode: EpisodeNumber
    """Number of the episode, from 0."""
    outcome: Outcome | None = None
    """Whether its last step succeeded."""
    reward: float | None = None
    """Reward of its last step."""
    source: SourceName | None = None
    """Who acted, in all of its steps."""
    policy_version: int | None = None
    """Version of the policy that acted; needed where a demonstration becomes something else."""
    undo: bool = False
    """Take back the last label of this episode."""

    def main(self) -> None:
        label = Label(outcome=self.outcome, reward=self.reward, source=self.source, policy_version=self.policy_version)
        frames = ExperienceStore.read(self.root).columns()
        if self.undo:
            if label.given:
                raise ValueError("--undo takes back the last label; give no other one with it")
            label = undo_label(self.root, frames, self.episode)
        else:
            write_label(self.root, frames, self.episode, label)
        said = ", ".join(f"{name} {value}" for name, value in label.given.items())
        _say(f"episode {self.episode}: {said}{', taken back' if self.undo else ''}")


@dataclass(frozen=True, kw_only=True)
class Show:
    """A contact sheet of an episode: pictures along time, who acted, reward and actions beneath."""

    root: Root
    """Folder of the store."""
    episode: EpisodeNumber
    """Number of the episode, from 0."""
    output: Path | None = None
    """PNG file; episode-NUMBER.png by default."""

    def main(self) -> None:
        from aloe.data.sheet import draw_sheet  # matplotlib takes a second to import

        path = self.output or Path(f"episode-{self.episode:03d}.png")
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} should end in .png")
        draw_sheet(ExperienceStore.read(self.root), self.episode, path)
        _say(f"wrote {path}")


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Compare every file with its checksum and name what is damaged. Exit code 1 if something is."""

    root: Root
    """Folder of the store; it is only read."""

    def main(self) -> None:
        report = verify_store(self.root)
        for line in report.lines:
            _say(line)
        if report.damaged:
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Merge the many small files of a store into few large ones. What was there before goes to quarantine/."""

    root: Root
    """Folder of the store; nobody else may write to it meanwhile."""

    def main(self) -> None:
        done = compact(self.root)
        if done.aside is None:
            _say(f"{self.root}: {done.before} files, and nothing to merge")
            return
        _say(f"{self.root}: {done.before} files became {done.after}")
        _say(f"the version before is in {done.aside}; when you need it no more: rm -r {shlex.quote(str(done.aside))}")


def _say(line: str) -> None:
    print(line, flush=True)


def _asker(folder: Path) -> Callable[[int], Outcome]:
    """Asks at the terminal how an episode ended."""
    dataset = ForeignDataset(folder)

    def ask(episode: int) -> Outcome:
        task, seconds = dataset.task(episode), dataset.lengths[episode] / dataset.fps
        while True:
            try:
                answer = input(f"episode {episode}, {seconds:.1f} s, {task!r}: success or failure? ").strip().lower()
            except EOFError:
                raise ValueError(f"nobody says how episode {episode} ended; --outcomes FILE.csv needs nobody") from None
            except KeyboardInterrupt:
                raise ValueError(
                    f"stopped at episode {episode}: nothing was imported, and the answers are not kept; a file of them "
                    "would be: --outcomes FILE.csv"
                ) from None
            for outcome in ("success", "failure"):
                if answer and outcome.startswith(answer):
                    return outcome

    return ask
