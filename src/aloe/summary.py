"""What a run has come to, in one small file: `summary.json`."""

from typing import Any

from aloe.config import RunConfig
from aloe.experience.schema import Frames
from aloe.run import RunFolder
from aloe.types import Source


def summary(run: RunFolder, config: RunConfig, frames: Frames, last: int) -> dict[str, Any]:
    """The content of `summary.json`. Episodes, steps and takeovers count from the start of the run to that round."""
    rounds = []
    for index in range(last + 1):
        counted = run.done(index, "collect") or run.done(0, "demos") or {}
        measured = run.done(index, "eval") or {}
        mine = frames.episode < counted["episodes"]
        names = ("demos", "sft", "collect", "sample", "critic", "value", "advantages", "trust", "improve", "eval")
        done = {name: run.done(index, name) for name in names}
        rounds.append(
            {
                "round": index,
                "episodes": counted["episodes"],
                "env_steps": int(mine.sum()),
                "human_steps": int((mine & (frames.source == Source.HUMAN)).sum()),
                "takeovers": int((mine & frames.takeovers).sum()),
                **{
                    k: measured[k] for k in ("success", "success_low", "success_high", "steps_to_success", "throughput")
                },
                **({"trust": trust["numbers"], "warnings": trust["warnings"]} if (trust := done["trust"]) else {}),
                "seconds": {name: content["seconds"] for name, content in done.items() if content},
            }
        )
    return {"task": config.world.task, "method": config.method, "seed": config.seed, "rounds": rounds}
