"""How far a round's critic can be trusted, as a stage: judged on fresh episodes of the policy that it evaluated.

The critic of round n was trained under policy n - 1. The evaluation episodes of that policy were never trained on; the
first of them are recorded in `rounds/<n - 1>/fresh/`, a store like any other. What the numbers mean is in docs/trust.md.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from numpy import ndarray

from aloe.evaluation.calibration import Calibration, advantage_slope, by_decile
from aloe.evaluation.credit import credit, failure_step, takeovers
from aloe.evaluation.health import warnings_of
from aloe.evaluation.ranking import spearman
from aloe.evaluation.support import best_return_at, chunk_distance, effective_share, support
from aloe.experience.cache import Cache
from aloe.experience.schema import Experience, Frames
from aloe.experience.windows import WindowConfig, Windows, make_windows
from aloe.policies.bundle import PolicyBundle, Tower
from aloe.stages.critic import (
    EvaluationInputs,
    critic_columns,
    critic_data,
    sample_stage,
    value_columns,
    write_table,
)
from aloe.types import Episode, Source
from aloe.value.critic import ChunkCritic
from aloe.value.evaluate import Evaluation, evaluate_windows
from aloe.value.fit import CriticData, FitConfig

BEFORE_TAKEOVER = 5
"""Steps before a human acts that count as "before the takeover"."""
MARGIN = 0.01
"""How far above a return a value must lie to exceed it, as a share of the range of returns."""


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """What the critics are judged on."""

    episodes: int = 20
    """Evaluation episodes of each policy version that are recorded for it (at most all); offline, held-out episodes. 0
    switches the judgement off."""
    held_out: float = 0.1
    """Offline: share of the episodes that judge the critics instead of training them. The policy learns from all."""

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise ValueError("--trust.episodes must not be negative; 0 switches the judgement of the critics off")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--trust.held-out is a share, from 0 to below 1, not {self.held_out}")


@dataclass(frozen=True, kw_only=True)
class EvaluatedEpisode:
    """What is kept of every evaluation episode, in `fresh.json`."""

    seed: int
    steps: int
    success: bool
    failure_step: int | None
    """Of a failed episode: the step at which it went wrong, where the simulator knows."""
    disturbed_at: int | None
    """Step at which the world was disturbed."""

    @staticmethod
    def of(episode: Episode) -> "EvaluatedEpisode":
        return EvaluatedEpisode(
            seed=episode.seed,
            steps=episode.steps,
            success=episode.succeeded,
            failure_step=None if episode.succeeded else failure_step(episode.progress, episode.disturbed_at),
            disturbed_at=episode.disturbed_at,
        )

    @staticmethod
    def read(path: Path) -> "list[EvaluatedEpisode]":
        """The content of a `fresh.json`."""
        return [EvaluatedEpisode(**row) for row in json.loads(path.read_text())]


def held_out(frames: Frames, share: float) -> list[int]:
    """Episodes that no critic is trained on. An episode's own actions decide: that others come later changes nothing."""
    starts = np.flatnonzero(frames.step == 0)
    parts = np.split(np.ascontiguousarray(frames.action), starts[1:])
    numbers = [int.from_bytes(hashlib.sha256(part.tobytes()).digest()[:8]) / 2**64 for part in parts]
    return [int(frames.episode[start]) for start, number in zip(starts, numbers, strict=True) if number < share]


def facts_of(frames: Frames) -> list[EvaluatedEpisode]:
    """What is known of recorded episodes; no simulator tells where one went wrong."""
    lasts = np.flatnonzero(np.append(frames.step[1:] == 0, True))
    return [
        EvaluatedEpisode(
            seed=int(frames.seed[last]),
            steps=int(frames.step[last]) + 1,
            success=bool(frames.success[last]),
            failure_step=None,
            disturbed_at=None,
        )
        for last in lasts
    ]


def fresh_inputs(
    store: Experience, bundle: PolicyBundle, tower: Tower, cache: Cache, window: WindowConfig, scale: float
) -> EvaluationInputs:
    """Fresh episodes as policy evaluation reads them. `scale` is the run's, not theirs."""
    frames = store.columns()
    windows = make_windows(frames, window, scale, any_length=True)
    return EvaluationInputs(store=store, frames=frames, windows=windows, bundle=bundle, tower=tower, cache=cache)


def trust_stage(
    fresh: EvaluationInputs,
    facts: list[EvaluatedEpisode],
    learnt: EvaluationInputs,
    out: Path,
    critic: ChunkCritic,
    fit: FitConfig,
    key: tuple[int | str, ...],
    chunks: Path,
    *,
    samples: int,
    best_of: bool,
    weighted: bool,
    q_chunking: bool,
) -> dict[str, Any]:
    """Judges a critic; `numbers` (None where undefined), `return_range` of what it learnt from, `warnings`, and the tables
    `by_decile` of value and chunk. Writes `fresh_values.parquet`, a row a state like `advantages.parquet`, into `out`.

    fresh, facts: episodes that it has not seen, of the policy that it evaluated, and what the simulator knows of them.
    learnt, out: what it was trained on, and the folder of the `advantages.parquet` that came of it.
    samples: chunks that are drawn at every fresh state, into the file `chunks`. best_of: whether the critics choose at
    play. weighted: whether the actor's weights follow the advantages, so that something may be wrong with them.
    q_chunking: whether the method is `qc`, which sets some options itself.
    """
    sample_stage(fresh, samples, key, chunks, fit.sample_batch)
    data = critic_data(fresh, chunks, critic.shape.horizon)
    evaluation = evaluate_windows(critic, data, fit)
    value, q = evaluation.best_value if best_of else evaluation.value, evaluation.q_of_executed
    known, realised = fresh.windows.ended, fresh.windows.monte_carlo
    begins = known & (fresh.frames.step == 0)
    seen = learnt.windows.monte_carlo[learnt.windows.ended]
    return_range = float(seen.max() - seen.min()) if len(seen) else math.nan
    table = pd.read_parquet(out / "advantages.parquet")
    error = np.abs(evaluation.q.mean(1) - realised)  # not of an aggregation that contains the spread itself
    numbers = {
        "episodes": len(np.unique(fresh.frames.episode)),
        **_prefixed("value", Calibration.of(value[known], realised[known])),
        **_prefixed("chunk", Calibration.of(q[known], realised[known])),
        **_prefixed("start", Calibration.of(value[begins], realised[begins])),
        "advantage_slope": math.nan  # the best of several is not what the policy does on average
        if best_of
        else advantage_slope(q[known], evaluation.q_of_samples[known], realised[known]),
        "spread_error_correlation": spearman(evaluation.q.std(1)[known], error[known]),
        **credit_numbers(value, fresh.frames, facts),
        **takeover_numbers(table["value"].to_numpy(), learnt.frames, version=int(fresh.frames.policy_version.max())),
        **support_numbers(evaluation, data, fresh.frames, learnt),
        "effective_share": effective_share(table["weight"].to_numpy()) if weighted else math.nan,
    }
    numbers = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    kept = value_columns(fresh, value, q - value, critic_columns(evaluation))
    write_table(kept, out / "fresh_values.parquet")
    return {
        "numbers": numbers,
        "return_range": None if math.isnan(return_range) else return_range,
        "warnings": list(warnings_of(numbers, return_range, q_chunking=q_chunking).values()),
        "by_decile": {
            name: [asdict(part) for part in by_decile(predicted[known], realised[known])]
            for name, predicted in (("value", value), ("chunk", q))
        },
    }


def _prefixed(prefix: str, calibration: Calibration) -> dict[str, float]:
    return {f"{prefix}_{name}": number for name, number in asdict(calibration).items()}


def credit_numbers(value: Float32[ndarray, "N"], frames: Frames, facts: list[EvaluatedEpisode]) -> dict[str, float]:
    """Steepest drop of the value against the step of failure, over the failed fresh episodes."""
    failed = {e: facts[e].failure_step for e in np.unique(frames.episode).tolist() if not facts[e].success}
    known = {episode: step for episode, step in failed.items() if step is not None}
    result = credit([value[frames.episode == episode] for episode in known], list(known.values()))
    return {
        "credit_episodes": result.episodes,
        "credit_distance": result.distance,
        "credit_distance_of_chance": result.distance_of_chance,
    }


def takeover_numbers(value: Float32[ndarray, "N"], frames: Frames, version: int) -> dict[str, float]:
    """Values before each takeover from a policy version, against its episodes that succeeded without."""
    before, untouched = [], np.zeros(len(frames), bool)
    for rows in _episodes(frames, version):
        human = np.flatnonzero(frames.source[rows] == Source.HUMAN)
        if len(human):
            before.append(rows[max(0, human[0] - BEFORE_TAKEOVER) : human[0]])
        else:
            untouched[rows] = frames.success[rows[-1]]  # a failure that nobody saw would have needed one
    moment = moments(frames, frames.tasks, frames.step.max() + 1)
    result = takeovers(value, moment, before, untouched)
    return {
        "takeovers_compared": result.count,
        "takeover_value_difference": result.difference,
        "takeover_auc": result.auc,
    }


def moments(frames: Frames, tasks: list[str], steps: int) -> Int64[ndarray, "N"]:
    """A number a frame, shared by frames of one task and step, also of two stores; `steps` is above all steps."""
    task = np.array([tasks.index(name) for name in frames.tasks])
    return task[frames.task_index] * steps + frames.step


def _episodes(frames: Frames, version: int) -> Iterator[ndarray]:
    """Rows of each episode that this policy version began."""
    starts = np.flatnonzero(frames.step == 0)
    for start, end in zip(starts, np.append(starts[1:], len(frames)), strict=True):
        if frames.source[start] == Source.POLICY and frames.policy_version[start] == version:
            yield np.arange(start, end)


def support_numbers(
    evaluation: Evaluation, data: CriticData, frames: Frames, learnt: EvaluationInputs
) -> dict[str, float]:
    """The critics on samples against the critics on executed chunks, and against the returns in what they learnt from."""
    windows: Windows = learnt.windows
    seen, tasks = windows.monte_carlo[windows.ended], learnt.frames.tasks
    if not len(seen):
        return {}
    steps = max(frames.step.max(), learnt.frames.step.max()) + 1
    executed = data.chunks(np.arange(len(frames)), None).numpy()
    result = support(
        q_executed=evaluation.q_of_executed,
        q_samples=evaluation.q_of_samples,
        spread_executed=evaluation.q.std(-1),
        spread_samples=evaluation.q_samples.std(-1),
        distance=chunk_distance(np.asarray(data.samples), executed, data.windows.is_pad[:, : executed.shape[1]]),
        best=float(seen.max()),
        best_at_step=best_return_at(
            seen, moments(learnt.frames, tasks, steps)[windows.ended], moments(frames, tasks, steps)
        ),
        margin=MARGIN * float(seen.max() - seen.min()),
    )
    return asdict(result)
