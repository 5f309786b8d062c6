"""What is compared, and on what: suites (a config each) and method variants (a change of that config each)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final

from aloe.config import PAPER_CLAMPED, WHOLE_CHUNKS, CollectConfig, EvalConfig, RunConfig, as_published, with_options
from aloe.methods.aloe import AloeConfig
from aloe.policies.recipe import ActorConfig
from aloe.rollout.human import GRADES
from aloe.stages import DemosConfig, PolicyConfig
from aloe.value.fit import FitConfig
from aloe.worlds.metaworld import MetaWorldConfig

Variant = Callable[[RunConfig], RunConfig]
"""Makes a method's config from the suite's."""

REFERENCE: Final = "aloe"
"""What the tables compare with all others."""


def _with(**options: Any) -> Variant:
    """A variant that sets options, as `with_options` names them."""
    return lambda config: with_options(config, options)


def _horizon(steps: int, execute: int) -> Variant:
    """Chunks of this many actions; the discount of a step stays what it is."""

    def variant(config: RunConfig) -> RunConfig:
        discount = config.window.chunk_discount ** (steps / config.window.horizon)
        window = replace(config.window, horizon=steps, chunk_discount=discount)
        return replace(config, policy=replace(config.policy, execute=execute), window=window)

    return variant


METHODS: Final[dict[str, Variant]] = {
    "sft": _with(method="sft"),
    "dagger": _with(method="dagger"),
    "filtered": _with(method="filtered"),
    "awr": _with(method="awr"),
    "awr-filtered": _with(method="awr", awr__failed_share=0.0),
    "recap": _with(method="recap"),
    "qc": _with(method="qc", **WHOLE_CHUNKS),
    "aloe": _with(method="aloe"),
    "aloe-paper-clamped": _with(method="aloe", **PAPER_CLAMPED),
    "aloe-in-sample": _with(method="aloe", fit__bootstrap="in-sample"),
    "aloe-monte-carlo": _with(method="aloe", fit__bootstrap="monte-carlo"),
    "aloe-best-of-1": _with(method="aloe", aloe__best_of=1),
    # All successes weigh alike: the critics only choose while collecting.
    "aloe-even": _with(method="aloe", aloe__beta_scale=1e6),
    "aloe-whole": _with(method="aloe", **WHOLE_CHUNKS),
    # What one round of the ablations speaks for, alone and together.
    "aloe-critics-10": _with(method="aloe", critic__critics=10),
    "aloe-half-corrections": _with(method="aloe", sources__corrections=0.5),
    "aloe-both": _with(method="aloe", critic__critics=10, sources__corrections=0.5),
    # Without critics, what ALOE's weights do most visibly: in the first round about half or more of them is the human's.
    "filtered-half-corrections": _with(method="filtered", sources__corrections=0.5),
    "qc-executed": _with(method="qc"),
    "aloe-paper": lambda config: as_published(with_options(config, {"method": "aloe"})),
}
"""Everything that can be played in a suite of methods, in the order of the tables."""

QUESTIONS: Final[dict[str, dict[str, Variant]]] = {
    "methods": {
        "filtered": _with(method="filtered"),
        "dagger": _with(method="dagger"),
    },
    "judges": {
        "judges-whole": _with(critic__judges="whole"),
        "judges-whole-polyak-slow": _with(**WHOLE_CHUNKS),
    },
    "bootstrap": {
        "in-sample": _with(fit__bootstrap="in-sample"),
        "monte-carlo": _with(fit__bootstrap="monte-carlo"),
    },
    "ensemble": {
        "critics-1": _with(critic__critics=1),
        "critics-2": _with(critic__critics=2),
        "critics-10": _with(critic__critics=10),
        "separate-trunks": _with(critic__trunks="separate"),
    },
    "aggregation": {
        "target-mean": _with(fit__target_aggregation="mean"),
        "target-mean-std": _with(fit__target_aggregation="mean-std"),
        "advantage-mean": _with(fit__advantage_aggregation="mean"),
        "advantage-mean-std": _with(fit__advantage_aggregation="mean-std"),
    },
    "horizon": {
        "horizon-1": _horizon(1, execute=1),
        "horizon-4": _horizon(4, execute=2),
        "horizon-16": _horizon(16, execute=2),
        "horizon-16-execute-16": _horizon(16, execute=16),
        "execute-1": _with(policy__execute=1),
        "execute-4": _with(policy__execute=4),
        "execute-8": _with(policy__execute=8),
    },
    "samples": {
        "samples-2": _with(aloe__samples=2),
        "samples-16": _with(aloe__samples=16),
        "target-samples-4": _with(fit__target_samples=4),
        "best-of-32": _with(aloe__best_of=32),
    },
    "tail": {
        "zero-tail": _with(fit__tail_fill="zero"),
    },
    "fitting": {
        "polyak-slow": _with(fit__polyak=0.005),
        "critic-steps-x2": lambda config: with_options(config, {"fit__steps": 2 * config.fit.steps}),
        "critic-steps-x4": lambda config: with_options(config, {"fit__steps": 4 * config.fit.steps}),
    },
    "weights": {
        "beta-third": _with(aloe__beta_scale=1 / 3),
        "beta-thrice": _with(aloe__beta_scale=3.0),
        "clip-1": _with(aloe__clip=1.0),
    },
    "mixture": {
        "half-demos": _with(sources__demos=0.5),
        "half-corrections": _with(sources__corrections=0.5),
        "sources-alike": _with(sources__demos=1 / 3, sources__corrections=1 / 3),
    },
    "failures": {
        "failed-kept": _with(aloe__failed_share=1.0),
        "penalty-0": _with(window__failure_penalty=0.0),
        "penalty-3": _with(window__failure_penalty=3.0),
        "failures-equal": lambda config: with_options(config, {"window__failure_steps": config.world.max_steps}),
        "cut-bootstraps": _with(window__cut="bootstrap"),
    },
}
"""What the ablations ask, and the variants that answer it: one improvement on the first round's data each, with one thing
changed; `methods` are two others to measure them by."""

ABLATIONS: Final[dict[str, Variant]] = {
    REFERENCE: _with(),
    **{name: variant for variants in QUESTIONS.values() for name, variant in variants.items()},
}
"""Everything that can be played in the suite of ablations."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One benchmark: a task, its budget, and under which perturbations the first and the last policies are measured."""

    name: str
    config: RunConfig
    """The run; seed and method are set by each cell."""
    perturbations: tuple[str, ...] = ("disturbance", "unseen")
    """Values of `MetaWorldConfig.perturbation`; never trained on."""
    variants: Mapping[str, Variant] = field(default_factory=lambda: METHODS)
    """What may be played."""
    own_starts: bool = False
    """Whether a variant may change what shapes the common start (see `start.py`); it then gets one of its own."""
    first_seed: int = 0
    """Seeds are the hundred from here on; from the fifty-first on they are for tuning, no methods are compared on them."""

    def __post_init__(self) -> None:
        if self.config.rounds < 1:
            raise ValueError("methods differ from the first round on: a suite needs at least one")


def method_config(suite: Suite, method: str, seed: int) -> RunConfig:
    """The config of one cell.

    Raises:
        ValueError: there is no such method, or the seed is another suite's.
    """
    if method not in suite.variants:
        raise ValueError(f"unknown method {method!r}; {suite.name} has {', '.join(suite.variants)}")
    if not suite.first_seed <= seed < suite.first_seed + 100:
        raise ValueError(f"seeds of {suite.name} are {suite.first_seed} to {suite.first_seed + 99}, not {seed}")
    return suite.variants[method](replace(suite.config, seed=seed))


BUDGET: Final[dict[str, Any]] = {
    "rounds": 5,
    "sft": {"batch_size": 128},
    "improve": {"steps": 1000, "batch_size": 128, "learning_rate": 5e-4},
    "fit": {"steps": 500},
    "aloe": {"samples": 4},
    "human": "ordinary",
    "policy": {"execute": 2},
    "collect": {"episodes": 60},
    "eval": {"episodes": 100},
}
"""What every suite gives to every method."""

PICTURES: Final[dict[str, Any]] = {
    "improve": BUDGET["improve"] | {"steps": 2000},
}
"""What pictures have instead: it takes more to learn to see."""

TASKS: Final[dict[str, dict[str, Any]]] = {
    "precision": {
        "world": {"task": "peg-insert-side-v3"},
        "demos": {"state": 5, "pictures": 20},
        "clone_steps": {"state": 2000, "pictures": 3000},
    },
    "assembly": {
        "world": {"task": "assembly-v3"},
        "demos": {"state": 5, "pictures": 40},
        "clone_steps": {"state": 2000, "pictures": 9000},
    },
    "instructions": {
        "world": {"task": "reach-v3", "also": ("pick-place-v3", "reach-wall-v3", "pick-place-wall-v3")},
        "demos": {"state": 3, "pictures": 10},  # of each task
        "clone_steps": {"state": 2000, "pictures": 6000},
    },
}
"""The numbers of every suite. Demonstrations are to be so many that a clone wins a fifth to a half of its episodes, and
its steps so many that more of them do not raise it: otherwise a method is also judged by how long it trains.
What is not here is `RunConfig`'s default."""

WORKERS: Final = 4
"""Worlds at once in a cell: the policy serves them in one batch."""

ABLATION: Final = "ablations-state"
"""The precision task with state observations, one round of many episodes, and every variant of `ABLATIONS`."""

FLAWLESS: Final = "flawless-state"
NOVICE: Final = "novice-state"

WATCHED_BY: Final = {FLAWLESS: "expert", NOVICE: "novice"}
"""The precision task with state observations under another human than the ordinary one: one who never errs and takes over
without limit; one who reacts late, overlooks much and often fails. Suite -> grade."""

WRIST: Final = "precision-wrist"
"""The precision task with a camera in the hand, which sees what it holds, instead of the one that looks at the hand; its
clones see so much better that with as many demonstrations little would be left to gain."""

OTHERWISE: Final[dict[str, Variant]] = {
    "-short-state": _horizon(4, execute=2),
    "-reactive-state": _with(policy__execute=1),
    "-long-state": _with(rounds=10),
    "-few-takeovers-state": _with(human__takeovers=5),
}
"""Other suites of each task with state observations: how their names end, and what differs for all methods. Chunks of four
actions instead of eight; a look after every action instead of every second; twice as many rounds; half as many takeovers
a round."""

SUITES: Final = (
    *(f"{task}-state" for task in TASKS),
    *TASKS,
    *(f"{task}{ending}" for ending in OTHERWISE for task in TASKS),
    *WATCHED_BY,
    WRIST,
    ABLATION,
)


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
    if name == ABLATION:
        precision = find_suite("precision-state").config
        # Twice the evaluation episodes, to tell the variants apart.
        once = replace(precision, rounds=1, eval=EvalConfig(episodes=200))
        return Suite(name=name, config=once, perturbations=(), variants=ABLATIONS, own_starts=True, first_seed=100)
    if name in WATCHED_BY:
        precision = find_suite("precision-state").config
        return Suite(name=name, config=replace(precision, human=GRADES[WATCHED_BY[name]]), perturbations=())
    if name == WRIST:
        changes = {"world__cameras": ("topview", "gripperPOV"), "demos__episodes": 10}
        return Suite(name=name, config=with_options(find_suite("precision").config, changes))
    for ending, variant in OTHERWISE.items():
        if name.endswith(ending):
            usual = find_suite(name.removesuffix(ending) + "-state")
            return replace(usual, name=name, config=variant(usual.config))
    task = name.removesuffix("-state")
    observations, numbers = "state", BUDGET | TASKS[task]
    if name == task:
        observations, numbers = "pictures", numbers | PICTURES
    config = RunConfig(
        workers=WORKERS,
        rounds=numbers["rounds"],
        world=MetaWorldConfig(**numbers["world"], observations=observations),
        demos=DemosConfig(episodes=numbers["demos"][observations]),
        policy=PolicyConfig(**numbers["policy"]),
        sft=ActorConfig(steps=numbers["clone_steps"][observations], **numbers["sft"]),
        collect=CollectConfig(**numbers["collect"]),
        human=GRADES[numbers["human"]],
        fit=FitConfig(**numbers["fit"]),
        aloe=AloeConfig(**numbers["aloe"]),
        improve=ActorConfig(**numbers["improve"]),
        eval=EvalConfig(**numbers["eval"]),
    )
    return Suite(name=name, config=config)
