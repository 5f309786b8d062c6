"""A run folder as a report reads it: also while the run goes on, and also of a run that an older version has made."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from aloe.experience.mixture import RootConfig, with_roots
from aloe.experience.schema import Experience, digest_of
from aloe.experience.store import ExperienceStore
from aloe.run import RunFolder, from_plain
from aloe.stages import EvaluatedEpisode
from aloe.summary import STAGES


@dataclass(frozen=True)
class RunSoFar:
    """What a run has left so far. Nothing is written."""

    folder: RunFolder
    config: dict[str, Any]
    """As in `config.json`: a report needs no option that only this version knows."""
    rounds: list[dict[str, Any]]
    """The rounds of `summary.json`, and those that have begun since, with what is known of them."""
    complete: int
    """Rounds that are done."""

    @classmethod
    def read(cls, root: Path) -> "RunSoFar":
        """Raises ValueError unless this is the folder of an `aloe run`."""
        config = _read(root / "config.json")
        if config is None or not {"rounds", "method", "seed"} <= config.keys():
            raise ValueError(f"{root} is no run: it has no config.json of one; give the folder of an `aloe run`")
        folder = RunFolder(root)
        rounds = (_read(root / "summary.json") or {"rounds": []})["rounds"]
        begun = [_begun(folder, index) for index in range(len(rounds), config["rounds"] + 1)]
        return cls(folder, config, [*rounds, *(row for row in begun if row)], len(rounds))

    @property
    def root(self) -> Path:
        return self.folder.root

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def task(self) -> str:
        world = self.config["world"]
        return ", ".join(self.config["experience"] if self.config["offline"] else [world["task"], *world["also"]])

    @property
    def title(self) -> str:
        return f"{self.config['method']} on {self.task}, seed {self.config['seed']}"

    @property
    def unfinished(self) -> str | None:
        """What a reader of an unfinished run has to know."""
        wanted = self.config["rounds"] + 1
        if self.complete >= wanted:
            return None
        said = f"This run is not finished: {self.complete} of {wanted} rounds are complete, the first policy included."
        for row in self.rounds[self.complete :]:
            said += f" Round {row['round']} is under way; done so far: {', '.join(row['seconds'])}."
        return said

    def trust(self, index: int) -> dict[str, Any] | None:
        """`trust.json` of a round."""
        return _read(self.folder.round(index) / "trust.json")

    def values(self, index: int) -> pd.DataFrame | None:
        """What the critic of a round said of all experience: `advantages.parquet`."""
        return _table(self.folder.round(index) / "advantages.parquet")

    def fresh_values(self, index: int) -> pd.DataFrame | None:
        """What the critic of a round said of states that it had not seen."""
        return _table(self.folder.round(index) / "fresh_values.parquet")

    def fresh(self, version: int) -> tuple[ExperienceStore, list[EvaluatedEpisode]]:
        """The recorded evaluation episodes of a version, and what is known of all."""
        folder = self.folder.round(version)
        return ExperienceStore.read(folder / "fresh"), EvaluatedEpisode.read(folder / "fresh.json")

    @property
    def ranking(self) -> dict[str, Any] | None:
        """What `aloe rank` wrote."""
        return _read(self.root / "ranking.json")

    @cached_property
    def judged(self) -> list[int]:
        """Rounds whose values are there."""
        return [r["round"] for r in self.rounds if (self.folder.round(r["round"]) / "advantages.parquet").exists()]

    @cached_property
    def experience(self) -> Experience:
        """What the run has learnt from.

        Raises:
            ValueError: it is no longer where it was, or no longer what it was. What else a run knows is in its own folder.
        """
        roots = {name: from_plain(RootConfig, root) for name, root in self.config["experience"].items()}
        if not self.config["offline"]:
            return with_roots(ExperienceStore.read(self.folder.experience), roots)
        experience = with_roots(None, roots, self.config["rename"])
        last = self.folder.done(self.rounds[-1]["round"], "experience") if self.rounds else None
        if last is not None and last["digest"] != digest_of(experience.columns()):
            raise ValueError(f"{experience} has changed since the last round")
        return experience

    def recorded_by(self) -> list[tuple[int, int]]:
        """(round, episodes in the store once it was recorded), in order; round 0 are the demonstrations."""
        counted = [(i, self.folder.done(i, "collect") or self.folder.done(i, "demos")) for i in range(len(self.rounds))]
        return [(index, done["episodes"]) for index, done in counted if done]


def _begun(folder: RunFolder, index: int) -> dict[str, Any] | None:
    """What is known of a round that has not ended; None where it has not begun."""
    done = {name: result for name in STAGES if (result := folder.done(index, name))}
    if not done:
        return None
    measured = done.get("eval", {})
    counted = done.get("collect") or done.get("experience") or done.get("demos") or {}
    return {
        "round": index,
        "episodes": counted.get("episodes"),
        **dict.fromkeys(("env_steps", "human_steps", "takeovers")),
        **(counted.get("counts") or {}),
        **{key: measured.get(key) for key in ("success", "success_low", "success_high", "steps_to_success", "by_task")},
        "seconds": {name: result["seconds"] for name, result in done.items()},
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _table(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.is_file() else None
