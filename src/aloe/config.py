"""The one config of a run: everything that decides its result, and complete configs by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from aloe.experience.cache import CacheConfig
from aloe.experience.mixture import RootConfig, SourceRatios, with_roots
from aloe.experience.schema import Experience
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig
from aloe.methods import aloe as aloe_method
from aloe.methods import qc
from aloe.methods.aloe import AloeConfig
from aloe.methods.awr import AwrConfig
from aloe.methods.qc import QcConfig
from aloe.methods.recap import RecapConfig
from aloe.policies.recipe import ActorConfig
from aloe.rollout.human import HumanConfig
from aloe.stages import DemosConfig, PolicyConfig, TrustConfig
from aloe.value.critic import CriticConfig
from aloe.value.fit import FitConfig
from aloe.worlds.metaworld import MetaWorldConfig

ValueMethod = Literal["awr", "recap"]
"""Methods that compare actions with the value of whoever acted in the buffer."""
CriticMethod = Literal["aloe", "qc"]
"""Methods with chunk critics."""
Method = Literal["aloe", "qc", "awr", "recap", "filtered", "dagger", "sft"]


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What is played in each round."""

    episodes: int = 20
    """Episodes a round."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError("a round needs at least one episode: --collect.episodes")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How the success of a policy version is measured."""

    episodes: int = 50
    """Episodes, on the same seeds for every version."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError("success cannot be measured on no episodes: --eval.episodes")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result, but for the machine."""

    seed: int = 0
    """Seed of everything that is chance."""
    method: Method = "aloe"
    """How the policy improves; docs/methods has a page on each."""
    rounds: int = 3
    """Rounds after cloning."""
    offline: bool = False
    """Learn from recorded experience alone: nothing is played, and so no success is measured."""
    experience: dict[str, RootConfig] = field(default_factory=dict)
    """Recorded experience to learn from besides, by names of your choice: `--experience.demos.root DIR`, and so on."""
    rename: dict[str, str] = field(default_factory=dict)
    """Recorded cameras that the policy calls otherwise: `--rename.observation.images.top=observation.images.front`."""
    sources: SourceRatios = field(default_factory=SourceRatios)
    workers: int = 3
    """Worlds at once, each in a process. Part of the config: it decides the last bits of a policy's output."""
    world: MetaWorldConfig = field(default_factory=MetaWorldConfig)
    demos: DemosConfig = field(default_factory=DemosConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    sft: ActorConfig = field(default_factory=lambda: ActorConfig(steps=1500))
    collect: CollectConfig = field(default_factory=CollectConfig)
    human: HumanConfig = field(default_factory=HumanConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    aloe: AloeConfig = field(default_factory=AloeConfig)
    awr: AwrConfig = field(default_factory=AwrConfig)
    recap: RecapConfig = field(default_factory=RecapConfig)
    qc: QcConfig = field(default_factory=QcConfig)
    improve: ActorConfig = field(default_factory=lambda: ActorConfig(steps=500))
    eval: EvalConfig = field(default_factory=EvalConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        executed = self.policy.execute or 1
        if self.policy.path is None and executed > self.window.horizon:  # a new policy predicts H actions
            raise ValueError(
                f"--policy.execute {self.policy.execute} is more than the chunk of --window.horizon {self.window.horizon}"
            )
        if self.policy.path is None and self.critic.image_tokens != 1:  # a new policy is a tiny_vla
            raise ValueError(
                "a new policy makes one token of a picture: --critic.image-tokens 1, or give --policy.path"
            )
        if self.rename and not self.offline:
            raise ValueError("--rename is for recorded cameras; a world's pictures have the policy's names")
        if self.rounds < 0 or self.seed < 0 or self.workers < 1:
            raise ValueError("--rounds and --seed must not be negative, --workers at least 1")
        endless = self.window.timeout == "bootstrap" and self.window.discount == 1
        if self.method in ("awr", "recap") and endless:
            raise ValueError(
                f"{self.method} divides the range of returns into bins, and with --window.timeout bootstrap and "
                "--window.chunk-discount 1 there is no lowest return; give a discount below 1, or --window.timeout failure"
            )
        if self.method == "qc":
            qc.check_options(self.fit)
        if self.method == "aloe":
            aloe_method.check_samples(self.aloe, "--fit.target-samples", self.fit.target_samples)

    def learns_from(self, recorded: ExperienceStore | None) -> Experience:
        """What the run learns from: the store that it records, None offline, and its roots.

        Raises:
            ValueError: they do not go together (`with_roots`).
        """
        return with_roots(recorded, self.experience, self.rename, self.sources)

    @property
    def samples(self) -> int:
        """M: chunks that are drawn at every frame for the critics."""
        return self.qc.samples if self.method == "qc" else self.aloe.samples

    @property
    def best_of(self) -> int:
        """Chunks among which the critics choose where they do; 1 for methods without such a choice."""
        return self.qc.samples if self.method == "qc" else self.aloe.best_of if self.method == "aloe" else 1

    @property
    def is_played_with_critics(self) -> bool:
        """Whether the critics' choice belongs to the method's policy itself, beyond the collection of experience."""
        return self.method == "qc"

    @property
    def judges_critics(self) -> bool:
        """Whether the critics of each round are judged, on fresh episodes, or offline on held-out ones."""
        return judges_critics(self.method, self.trust.episodes)

    @property
    def critic_fit(self) -> FitConfig:
        """How the critics of this method are trained."""
        return qc.fit_config(self.fit, self.qc) if self.method == "qc" else self.fit


def judges_critics(method: str, episodes: int) -> bool:
    """Whether runs of a method have critics that are judged, on so many episodes."""
    return episodes > 0 and method in get_args(CriticMethod)


_READ_BY: dict[Method, frozenset[str]] = {
    "aloe": frozenset({"critic", "fit", "aloe"}),
    "qc": frozenset({"critic", "fit", "qc"}),
    "awr": frozenset({"critic", "fit", "awr"}),
    "recap": frozenset({"critic", "fit", "recap"}),
    "filtered": frozenset(),
    "dagger": frozenset(),
    "sft": frozenset(),
}
"""Groups of options that some methods read and others do not; all other options shape every run."""


def unread_groups(method: Method) -> frozenset[str]:
    """Groups of `RunConfig` that say nothing about a run of this method."""
    return frozenset().union(*_READ_BY.values()) - _READ_BY[method]


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """The config with options changed: `fit__bootstrap` is the `--fit.bootstrap` of the command line."""
    for path, value in options.items():
        group, _, name = path.rpartition("__")
        inner = replace(getattr(config, group), **{name: value}) if group else value
        config = replace(config, **{group or name: inner})
    return config


WHOLE_CHUNKS: dict[str, Any] = {"critic__judges": "whole", "fit__polyak": 0.005}
"""Critics of whole chunks and slow targets, as the paper has them."""

PAPER_CLAMPED: dict[str, Any] = WHOLE_CHUNKS | {
    "critic__critics": 2,
    "fit__target_aggregation": "min",
    "fit__advantage_aggregation": "min",
    "fit__tail_fill": "zero",
    "aloe__failed_share": 1.0,
    "aloe__best_of": 1,
}
"""What the paper publishes of ALOE's method, but for discount and clamping: two critics of whole chunks, slow targets,
their minimum, zeros past the end, the whole buffer, no choice by critics while collecting."""


def as_published(config: RunConfig) -> RunConfig:
    """The config with what the paper publishes of ALOE's method: `PAPER_CLAMPED`, a discount of 0.99 a step whatever the
    horizon, and targets that are not clamped. Sizes stay the config's, as does what the paper does not disclose."""
    discount = 0.99**config.window.horizon
    return with_options(config, PAPER_CLAMPED | {"fit__clamp_targets": False, "window__chunk_discount": discount})


QUICKSTART = RunConfig(
    world=MetaWorldConfig(task="button-press-topdown-v3", max_steps=40),
    demos=DemosConfig(episodes=2),
    sft=ActorConfig(steps=4000, batch_size=32),
    collect=CollectConfig(episodes=20),
    human=HumanConfig(patience_steps=15, time_fraction=0.7, miss_probability=0.1, action_noise=0.1),
    improve=ActorConfig(steps=600),
    eval=EvalConfig(episodes=60),
)

PRESETS: dict[str, RunConfig] = {
    "quickstart": QUICKSTART,
    "paper": as_published(QUICKSTART),
    "offline": RunConfig(offline=True, rounds=1, improve=ActorConfig(steps=2000), trust=TrustConfig(episodes=50)),
    "tiny": RunConfig(
        rounds=2,
        workers=1,
        world=MetaWorldConfig(task="reach-v3", image_size=32, max_steps=20, action_repeat=4),
        demos=DemosConfig(episodes=2),
        policy=PolicyConfig(vision_width=8, keypoints=4, width=32, depth=1),
        window=WindowConfig(horizon=4),
        sft=ActorConfig(steps=12, batch_size=8, save_every=5),
        collect=CollectConfig(episodes=2),
        human=HumanConfig(patience_steps=None, time_fraction=0.5, reaction_delay_steps=1),
        critic=CriticConfig(critics=2, width=16, layers=1, heads=2),
        fit=FitConfig(steps=12, batch_size=8, save_every=5),
        aloe=AloeConfig(samples=2, failed_share=0.5, best_of=2),
        improve=ActorConfig(steps=12, batch_size=8, save_every=5, learning_rate=1e-3),
        eval=EvalConfig(episodes=3),
        trust=TrustConfig(episodes=2),
    ),
}
"""Complete configs by name: `aloe run --preset NAME`. `offline` is for a checkpoint and recorded experience: one round, and
then the robot plays again. `tiny` is for tests: a whole run in a minute or two."""
