"""What a run does differently that has neither robot nor simulator: recorded experience in, a better policy out.

What the roots hold when a round begins is what it learns from. The next round may learn from more: the rollouts of the
policy that came of this one, for example.
"""

import dataclasses
from pathlib import Path

import numpy as np

from aloe import stages
from aloe.config import RunConfig
from aloe.experience.schema import Experience, digest_of
from aloe.experience.windows import Windows, return_scale
from aloe.policies.bundle import PolicyBundle
from aloe.run import RunFolder
from aloe.summary import counts


def experience(config: RunConfig, policy: Path) -> Experience:
    """The roots of a run, with the cameras that the policy sees; with all where there is no policy yet.

    Raises:
        ValueError: they do not go together, or not with the policy.
    """
    roots = config.learns_from(None)
    source = policy if policy.exists() else config.policy.path
    return roots if source is None else stages.seen_by(PolicyBundle.load(source), roots)


def is_noted(run: RunFolder, index: int, experience: Experience, what: str, remedy: str) -> bool:
    """Whether it is written down already what a round learns from.

    Raises:
        ValueError: it is, and was something else. `what` says of what, `remedy` what to do.
    """
    if (begun := run.done(index, "experience")) is None:
        return False
    if begun["digest"] != digest_of(experience.columns()):
        raise ValueError(
            f"{what} was begun with {begun['episodes']} episodes, now there are {len(experience.lengths)}, or other "
            f"labels; {remedy}"
        )
    return True


def look(run: RunFolder, index: int, experience: Experience, rename: dict[str, str]) -> None:
    """Write down what a round learns from; and where the round is begun already, see that it is still the same.

    Raises:
        ValueError: it is not.
    """
    remedy = f"give the same experience to finish it, or delete {run.round(index)} to begin it anew"
    if is_noted(run, index, experience, f"round {index}", remedy):
        before = (run.done(index, "experience") or {}).get("rename", rename)
        if before != rename:
            raise ValueError(f"round {index} was begun with --rename {before}, now it is {rename}; {remedy}")
        return
    frames = experience.columns()
    with run.stage(index, "experience") as result:
        result |= {
            "episodes": len(experience.lengths),
            "counts": counts(frames, np.ones(len(frames), bool)),
            "digest": digest_of(frames),
            "rename": rename,
            **({} if index else {"return_scale": return_scale(frames)}),
        }


def without(inputs: stages.EvaluationInputs, held_out: list[int]) -> Windows:
    """The windows, those that begin in a held-out episode without target and return: critics are trained on none of them,
    nor are their returns among those that were seen."""
    windows, kept = inputs.windows, ~np.isin(inputs.frames.episode, held_out)
    return dataclasses.replace(windows, has_target=windows.has_target & kept, ended=windows.ended & kept)
