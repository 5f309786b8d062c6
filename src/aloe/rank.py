"""`aloe rank`: would the critic have picked the best policy version of a run?

For every version, critics are trained from scratch *under that version* on the run's whole store, and say what the
version is worth in the start states of the evaluation's first `--trust.episodes` episodes, which training has not seen.
That is compared with what the whole evaluation measured. Beside the chunk critics stand two estimators with the same
network on the same data:

    aloe         the run's own fit: chunked temporal differences under the policy
    monte-carlo  the same critics regressed on the returns of the buffer: how good its old mixture of policies was
    fqe          fitted Q evaluation (Le et al. 2019, arXiv 1903.08738): the same with chunks of one action, that is
                 Q(s, a) towards r + discount * E_{a' ~ pi} Q(s', a')

Measures: Spearman's correlation and regret@k (`aloe.evaluation.ranking`), against discounted return and against success.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, assert_never, get_args

import numpy as np
import torch
import tyro
from jaxtyping import Bool
from numpy import ndarray
from rich.console import Console
from rich.table import Table

from aloe import stages
from aloe.config import RunConfig
from aloe.evaluation.ranking import regret, spearman
from aloe.experience.schema import Experience, digest_of
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig
from aloe.returns import monte_carlo_return
from aloe.run import RunFolder, digest, from_plain, read_json, write_json
from aloe.stages import EvaluatedEpisode, EvaluationInputs
from aloe.training import Device
from aloe.value.critic import ObservationShape
from aloe.value.evaluate import evaluate_windows
from aloe.value.fit import CriticData, FitConfig, fit_critic
from aloe.versions import Versions

Estimator = Literal["aloe", "monte-carlo", "fqe"]
ESTIMATORS: Final[tuple[Estimator, ...]] = get_args(Estimator)
UNRANKED: Final = ("recap",)
"""Methods whose policies act under a condition that plain samples do not have."""
BEST = (1, 3)
"""The k of regret@k."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Would the critic have picked the best policy version of a finished run? Writes RUN/ranking.json."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    steps: int = 1000
    """Gradient steps of each estimator for each version, from scratch."""
    estimators: tuple[Estimator, ...] = ESTIMATORS
    """What is compared."""
    device: Device = "auto"
    """Where policies and critics compute: a GPU where there is one; tiny_vla on the CPU."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.estimators:
            raise ValueError("--steps must be at least 1, and --estimators must name at least one")

    def main(self) -> None:
        console = Console()
        content = rank_run(
            self.run, self.steps, self.estimators, lambda line: console.print(f"[bold]{line}"), self.device
        )
        console.print(versions_table(content))
        console.print(estimators_table(content))
        console.print(f"wrote {self.run / 'ranking.json'}, and the measures into {self.run / 'summary.json'}")


def rank_run(
    root: Path, steps: int, estimators: Sequence[Estimator], say: Any = print, device: Device = "cpu"
) -> dict[str, Any]:
    """Predicts and compares; returns the content of `ranking.json`. What was predicted before is not predicted again.

    Raises:
        ValueError: no run with two measured versions, one whose versions cannot be judged so, or no GPU.
    """
    run, config, versions = open_run(root)
    scale = (run.done(0, "demos") or {})["return_scale"]
    rows: list[dict[str, Any]] = []
    with run.locked():
        store = config.learns_from(ExperienceStore.read(run.experience))
        for version in versions:
            facts = EvaluatedEpisode.read(run.round(version) / "fresh.json")
            row: dict[str, Any] = {
                "version": version,
                "success": float(np.mean([fact.success for fact in facts])),
                "return": float(np.mean([discounted_return(fact, config.window, scale) for fact in facts])),
            }
            for estimator in estimators:
                say(f"version {version}: {estimator}")
                row[estimator] = predict(run, config, store, version, estimator, steps, device)
            rows.append(row)
    content = {
        "task": config.world.task,
        "method": config.method,
        "seed": config.seed,
        "episodes": len(store.lengths),
        "steps": steps,
        "versions": rows,
        "estimators": {name: measures(rows, name) for name in estimators},
    }
    write_json(root / "ranking.json", content)
    summary = read_json(root / "summary.json", "delete it and let `aloe run` go on, which writes it anew")
    write_json(root / "summary.json", summary | {"ranking": content["estimators"]})
    return content


def open_run(root: Path) -> tuple[RunFolder, RunConfig, list[int]]:
    """A run, its config, and the policy versions that it has measured.

    Raises:
        ValueError: see `rank_run`.
    """
    if not (root / "config.json").is_file():
        raise ValueError(f"{root} is no run: it has no config.json; give the folder of an `aloe run`")
    run = RunFolder(root)
    config = from_plain(RunConfig, run.options())
    versions = [index for index in range(config.rounds + 1) if run.done(index, "eval")]
    if len(versions) < 2:
        raise ValueError(f"{root} has measured {len(versions)} policy versions; there is something to rank from two on")
    if not (root / "summary.json").is_file():
        raise ValueError(f"{root} has no summary.json; let `aloe run` bring the run to its end first")
    if not (run.round(0) / "fresh").is_dir():
        raise ValueError(f"{root} kept no start states: it was made with --trust.episodes 0, or by an older version")
    if config.method in UNRANKED:
        raise ValueError(
            f"{root} acts under a condition that its samples would not have; {config.method} cannot be ranked, leave it out"
        )
    return run, config, versions


def discounted_return(episode: EvaluatedEpisode, window: WindowConfig, scale: float) -> float:
    """Return of a whole evaluation episode as `make_windows` would count it; a time-out counts as a failure."""
    reward = torch.full((episode.steps,), -1 / scale, dtype=torch.float64)
    reward[-1] = 0.0
    if not episode.success:
        reward[-1] = -window.failure_penalty - max((window.failure_steps or 0) - episode.steps, 0) / scale
    return float(monte_carlo_return(reward, window.discount)[0])


def settings(config: RunConfig, estimator: Estimator, steps: int) -> tuple[WindowConfig, FitConfig]:
    """What an estimator learns from, and how."""
    fit = replace(config.critic_fit, steps=steps)
    match estimator:
        case "aloe":
            return config.window, fit
        case "monte-carlo":
            return config.window, replace(fit, bootstrap="monte-carlo")
        case "fqe":
            one_step = replace(config.window, horizon=1, chunk_discount=config.window.discount)
            return one_step, replace(fit, bootstrap="policy", target_aggregation="mean", advantage_aggregation="mean")
        case _:
            assert_never(estimator)


def predict(
    run: RunFolder,
    config: RunConfig,
    store: Experience,
    version: int,
    estimator: Estimator,
    steps: int,
    device: Device,
) -> float:
    """Mean value of a version in the start states of the evaluation, by critics trained under it from scratch.

    The critics of all versions begin with the same weights and draw the same batches, so that chance does not rank them.
    """
    window, fit = settings(config, estimator, steps)
    learnt_from = digest_of(store.columns())
    work = run.cache / "ranking" / digest(asdict(config.critic) | asdict(fit) | {"frames": learnt_from})[:16]
    answer, checkpoint = (work / f"{estimator}-{version:03d}{ending}" for ending in (".json", ".safetensors"))
    if answer.exists():
        return json.loads(answer.read_text())["value"]
    known = evidence(run, config, store, version, window, fit.sample_batch, device)
    key = (config.seed, "rank", estimator)
    state = stages.new_critic(known.shape, config.critic, fit, key, known.device)
    fit_critic(state, known.data, fit, window.discount, key, checkpoint=checkpoint)
    evaluation = evaluate_windows(state.critic, known.starts, fit)
    value = evaluation.best_value if version > 0 and config.is_played_with_critics else evaluation.value
    mean = float(value[known.is_start].mean(dtype=np.float64))
    write_json(answer, {"value": mean})
    checkpoint.unlink(missing_ok=True)
    return mean


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an estimator may learn a version's value from, and the states in which it is asked for it."""

    data: CriticData
    """The run's final store, with the version's chunks at every frame."""
    starts: CriticData
    """The evaluation's recorded episodes, likewise; the same for every version."""
    is_start: Bool[ndarray, "_"]
    """Which rows of `starts` begin an episode."""
    shape: ObservationShape
    device: torch.device


def evidence(
    run: RunFolder,
    config: RunConfig,
    store: Experience,
    version: int,
    window: WindowConfig,
    sample_batch: int,
    device: Device,
) -> Evidence:
    """Draws the version's chunks, unless they are there, and reads what is recorded."""
    learnt_from = digest_of(store.columns())
    versions = Versions(run=run, config=config, device=device)
    bundle, tower = versions.policy(version), versions.tower
    scale = (run.done(0, "demos") or {})["return_scale"]
    cache = config.cache.within(run.cache)
    inputs = EvaluationInputs.of(store, bundle, tower, cache, window, scale)
    samples = run.cache / "ranking" / f"samples-{version:03d}-{learnt_from}.npy"
    if not samples.exists():
        stages.sample_stage(inputs, config.samples, (config.seed, "rank", version), samples, sample_batch)
    judged = stages.judged_actions(config.critic, versions.executed(bundle), window)
    # Every version is evaluated on the same seeds, so that the first states of version 0's episodes are everybody's.
    chunks = run.cache / "ranking" / f"start-{version:03d}-{learnt_from}.npy"
    start = stages.fresh_inputs(ExperienceStore.read(run.round(0) / "fresh"), bundle, tower, cache, window, scale)
    if not chunks.exists():
        stages.sample_stage(start, config.samples, (config.seed, "rank start"), chunks, sample_batch)
    return Evidence(
        data=stages.critic_data(inputs, samples, judged),
        starts=stages.critic_data(start, chunks, judged),
        is_start=start.frames.step == 0,
        shape=stages.observation_shape(tower, judged),
        device=tower.device,
    )


def measures(rows: Sequence[dict[str, Any]], estimator: str) -> dict[str, dict[str, float | None]]:
    """Spearman and regret@k of an estimator against return and against success; None where undefined."""
    predicted = np.array([row[estimator] for row in rows])
    result: dict[str, dict[str, float | None]] = {}
    for measured in ("return", "success"):
        true = np.array([row[measured] for row in rows])
        correlation = spearman(predicted, true)
        result[measured] = {"spearman": None if math.isnan(correlation) else correlation} | {
            f"regret@{k}": regret(predicted, true, k) if k <= len(rows) else None for k in BEST
        }
    return result


def versions_table(content: dict[str, Any]) -> Table:
    """Every version: measured success and return, and what each estimator predicted."""
    names = list(content["estimators"])
    table = Table(title=f"{content['method']} on {content['task']}, seed {content['seed']}: measured and predicted")
    for name in ("version", "success", "return", *names):
        table.add_column(name, justify="right")
    for row in content["versions"]:
        numbers = [f"{row[name]:.3f}" for name in ("return", *names)]
        table.add_row(str(row["version"]), f"{row['success']:.0%}", *numbers)
    return table


def estimators_table(content: dict[str, Any]) -> Table:
    """Every estimator: its measures."""
    table = Table(title="higher Spearman and lower regret are better")
    for name in ("estimator", "against", "spearman", *(f"regret@{k}" for k in BEST)):
        table.add_column(name, justify="right")
    for name, against in content["estimators"].items():
        for measured, numbers in against.items():
            shown = ("-" if number is None else f"{number:.2f}" for number in numbers.values())
            table.add_row(name, measured, *shown)
    return table
