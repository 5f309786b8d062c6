"""What a run has come to, in one small file: `summary.json`."""

from typing import Any, Final

from jaxtyping import Bool
from numpy import ndarray

from aloe.config import RunConfig
from aloe.experience.schema import Frames
from aloe.run import RunFolder, read_json
from aloe.types import Source

STAGES: Final = (
    *("demos", "experience", "sft", "collect", "sample", "critic", "value", "advantages", "trust", "improve", "eval"),
)


def counts(frames: Frames, mine: Bool[ndarray, "N"]) -> dict[str, int]:
    """Steps and takeovers among these frames."""
    return {
        "env_steps": int(mine.sum()),
        "human_steps": int((mine & (frames.source == Source.HUMAN)).sum()),
        "takeovers": int((mine & frames.takeovers).sum()),
    }


def judged(run: RunFolder, index: int) -> dict[str, Any]:
    """What the round's critics were worth: numbers, tables by decile, warnings."""
    remedy = "delete it and trust.done.json beside it, and that stage is made anew"
    trust = read_json(run.round(index) / "trust.json", remedy)
    return {"trust": trust["numbers"], "by_decile": trust["by_decile"], "warnings": trust["warnings"]}


def summary(run: RunFolder, config: RunConfig, frames: Frames, last: int) -> dict[str, Any]:
    """The content of `summary.json`. Episodes, steps and takeovers are those in the store up to that round, with what
    it held before the run; offline they are all that the round has learnt from, and no success is known. `aloe rank` adds
    its `ranking`."""
    rounds = []
    for index in range(last + 1):
        counted = run.done(index, "collect") or run.done(index, "experience") or run.done(0, "demos") or {}
        measured = run.done(index, "eval") or {}
        done = {name: run.done(index, name) for name in STAGES}
        rounds.append(
            {
                "round": index,
                "episodes": counted["episodes"],
                **(counted.get("counts") or counts(frames, frames.episode < counted["episodes"])),
                **{
                    k: measured.get(k)
                    for k in ("success", "success_low", "success_high", "steps_to_success", "throughput")
                },
                **({"by_task": measured["by_task"]} if "by_task" in measured else {}),  # of several tasks
                **(judged(run, index) if done["trust"] else {}),
                "seconds": {name: content["seconds"] for name, content in done.items() if content},
            }
        )
    task = ", ".join(config.experience) if config.offline else config.world.task
    return {"task": task, "method": config.method, "seed": config.seed, "rounds": rounds}
