"""What is compared, and on what: suites (a config each) and method variants (a change of that config each)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final

from aloe.config import CollectConfig, EvalConfig, Method, RunConfig
from aloe.policies.train import ActorConfig
from aloe.rollout.human import GRADES
from aloe.stages import DemosConfig
from aloe.worlds.metaworld import MetaWorldConfig

Variant = Callable[[RunConfig], RunConfig]
"""Makes a method's config from the suite's. It may change nothing that has shaped the common start (see `start.py`)."""

REFERENCE: Final = "aloe"
"""The method that the tables compare with all others."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One benchmark: a task, its budget, and under which perturbations the first and the last policies are measured."""

    name: str
    config: RunConfig
    """The run; seed and method are set by each cell."""
    perturbations: tuple[str, ...] = ("disturbance", "unseen")
    """Values of `MetaWorldConfig.perturbation`; never trained on."""

    def __post_init__(self) -> None:
        if self.config.rounds < 1:
            raise ValueError("methods differ from the first round on: a suite needs at least one")


def _method(name: Method) -> Variant:
    def variant(config: RunConfig) -> RunConfig:
        return replace(config, method=name)

    return variant


def _in_sample(config: RunConfig) -> RunConfig:
    return replace(config, method="aloe", fit=replace(config.fit, bootstrap="in-sample"))


METHODS: Final[dict[str, Variant]] = {
    "sft": _method("sft"),
    "dagger": _method("dagger"),
    "filtered": _method("filtered"),
    "awr": _method("awr"),
    "recap": _method("recap"),
    "qc": _method("qc"),
    "aloe": _method("aloe"),
    "aloe-in-sample": _in_sample,
}
"""Everything that can be played in a suite, in the order of the tables."""


def method_config(suite: Suite, method: str, seed: int) -> RunConfig:
    """The config of one cell.

    Raises:
        ValueError: there is no such method, or the seed is negative.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; seeds count from 0")
    return METHODS[method](replace(suite.config, seed=seed))


TASKS: Final[dict[str, dict[str, Any]]] = {
    "precision": {
        "world": {"task": "peg-insert-side-v3", "max_steps": 80},
        "demos": {"episodes": 10},
        "sft": {"steps": 2000},
        "improve": {"steps": 600, "learning_rate": 5e-4},
        "human": "ordinary",
        "rounds": 5,
        "collect": {"episodes": 30},
        "eval": {"episodes": 100},
    },
    "assembly": {
        "world": {"task": "assembly-v3", "max_steps": 80},
        "demos": {"episodes": 10},
        "sft": {"steps": 2000},
        "improve": {"steps": 600, "learning_rate": 5e-4},
        "human": "ordinary",
        "rounds": 5,
        "collect": {"episodes": 30},
        "eval": {"episodes": 100},
    },
    "instructions": {
        "world": {
            "task": "reach-v3",
            "also": ("pick-place-v3", "faucet-open-v3", "faucet-close-v3"),
            "max_steps": 60,
        },
        "demos": {"episodes": 12},
        "sft": {"steps": 2000},
        "improve": {"steps": 600, "learning_rate": 5e-4},
        "human": "ordinary",
        "rounds": 5,
        "collect": {"episodes": 30},
        "eval": {"episodes": 100},
    },
}
"""The numbers of every suite, once for pictures and state. What is not here is `RunConfig`'s default."""

WORKERS: Final = 4
"""Worlds at once in a cell: the policy serves them in one batch."""

SUITES: Final = (*(f"{task}-state" for task in TASKS), *TASKS)


def find_suite(name: str) -> Suite:
    """`precision-state`, `precision`, ...: a suite by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SUITES:
        near = get_close_matches(name, SUITES, n=1, cutoff=0.5)
        raise ValueError(
            f"unknown suite {name!r}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are {', '.join(SUITES)}"
        )
    task = name.removesuffix("-state")
    observations, numbers = "pictures" if name == task else "state", TASKS[task]
    config = RunConfig(
        workers=WORKERS,
        rounds=numbers["rounds"],
        world=MetaWorldConfig(**numbers["world"], observations=observations),
        demos=DemosConfig(**numbers["demos"]),
        sft=ActorConfig(**numbers["sft"]),
        collect=CollectConfig(**numbers["collect"]),
        human=GRADES[numbers["human"]],
        improve=ActorConfig(**numbers["improve"]),
        eval=EvalConfig(**numbers["eval"]),
    )
    return Suite(name=name, config=config)
