"""The circle and its stages as commands: each a dataclass of its options, and a `main` that calls the stage."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from aloe import offline, stages
from aloe.config import PRESETS, RunConfig
from aloe.experience.cache import CacheConfig
from aloe.experience.mixture import RootConfig, SourceRatios, with_roots
from aloe.experience.schema import Experience, digest_of
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows, return_scale
from aloe.loop import run_circle
from aloe.methods import aloe as aloe_method
from aloe.methods.aloe import AloeConfig
from aloe.options import parse, take_preset
from aloe.policies.bundle import PolicyBundle, PolicyPlayer, Tower
from aloe.policies.flow import executed_actions
from aloe.policies.recipe import ActorConfig
from aloe.report.command import EPISODES
from aloe.report.folder import RunSoFar
from aloe.report.page import write_page
from aloe.report.text import tables
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder, write_json
from aloe.stages import DemosConfig, EvaluationInputs, PolicyConfig
from aloe.training import Device
from aloe.value.critic import CriticConfig
from aloe.value.fit import FitConfig
from aloe.worlds.metaworld import MetaWorldConfig

console = Console()


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """A policy on disk."""

    path: Path
    """LeRobot `pretrained_model/` folder."""


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A store on disk."""

    root: Path
    """Folder of the store: a LeRobot v3 dataset with ALOE's columns."""


@dataclass(frozen=True, kw_only=True)
class LearntFrom:
    """A store on disk to learn from; --experience.NAME.root names others, besides or instead."""

    root: Path | None = None
    """Folder of the store: a LeRobot v3 dataset with ALOE's columns."""

    def with_roots(
        self, roots: dict[str, RootConfig], rename: dict[str, str], sources: SourceRatios | None = None
    ) -> Experience:
        return with_roots(None if self.root is None else ExperienceStore.read(self.root), roots, rename, sources)


@dataclass(frozen=True, kw_only=True)
class RecordedInto:
    """The store that a run records into and learns from."""

    root: Path | None = None
    """Folder of the store, the same as for `aloe demos` and `aloe collect`; by default a new one in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Demos(DemosConfig):
    """Record demonstrations from a scripted expert. Goes on where it stopped."""

    output_dir: Path
    """Folder of the store; made if there is none."""
    seed: int = 0
    workers: int = 2
    """Worlds at once, each in a process."""
    world: MetaWorldConfig = field(default_factory=MetaWorldConfig)

    def main(self) -> None:
        store = stages.open_store(self.output_dir, self.world)
        with WorldPool(self.world, self.workers) as pool:
            stages.demonstrate(store, pool, self, self.seed)
        console.print(f"{store.num_episodes} episodes, {store.num_frames} frames in {self.output_dir}")


@dataclass(frozen=True, kw_only=True)
class Sft(ActorConfig):
    """Clone the demonstrations of a store: a new tiny_vla, or further training of --policy.path."""

    dataset: LearntFrom = field(default_factory=LearntFrom)
    experience: dict[str, RootConfig] = field(default_factory=dict)
    """Recorded experience by names of your choice: --experience.demos.root DIR, and so on."""
    rename: dict[str, str] = field(default_factory=dict)
    """Recorded cameras that the policy calls otherwise: --rename.observation.images.top=observation.images.front."""
    output_dir: Path
    """Gets `pretrained_model/` and `optimizer.safetensors`."""
    steps: int = 1500
    seed: int = 0
    device: Device = "auto"
    """Where the policy computes: a GPU where there is one; tiny_vla on the CPU."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def main(self) -> None:
        store, key = self.dataset.with_roots(self.experience, self.rename), (self.seed, "sft")
        if _finished(self.output_dir, self, "sft", store, "pretrained_model"):
            return
        if self.policy.path is None:
            bundle = stages.new_policy(store, self.policy, self.window.horizon, key, self.device)
        else:
            bundle = stages.from_checkpoint(self.policy, self.device)
            store = stages.seen_by(bundle, store)
        frames = store.columns()
        rows = stages.cloned_rows("sft", frames, make_windows(frames, self.window, return_scale(frames)))
        run = _begin(self.output_dir, self, store)
        log = run.logger(0, "sft", stages.checkpoint_step(self.output_dir / "sft.checkpoint.safetensors"))
        with run.stage(0, "sft"):
            cache = self.cache.within(self.output_dir / "cache")
            stages.train_policy(bundle, store, cache, rows, self, key, self.output_dir, log=log, label="sft")
        console.print(f"wrote {self.output_dir / 'pretrained_model'}")


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Let a policy play under the eyes of a (scripted) human who takes over; record everything."""

    policy: PolicySource
    dataset: DatasetSource
    episodes: int = 20
    """Episodes to record."""
    round: int = 1
    """Number of this collection: each has scenes of its own, and a collection that was stopped goes on."""
    policy_version: int = 0
    """Version of the policy, written beside every step."""
    execute: int | None = None
    """Actions of a chunk that are executed before the policy predicts again; by default what its config says."""
    seed: int = 0
    workers: int = 2
    """Worlds at once, each in a process."""
    device: Device = "auto"
    """Where the policy computes: a GPU where there is one; tiny_vla on the CPU."""
    watched: bool = True
    """Whether a human watches and takes over."""
    human: HumanConfig = field(default_factory=HumanConfig)
    world: MetaWorldConfig = field(default_factory=MetaWorldConfig)

    def main(self) -> None:
        bundle = PolicyBundle.load(self.policy.path, self.device)
        stages.check_fits_world(bundle, self.world)
        store = stages.open_store(self.dataset.root, self.world)
        stages.check_same_policy(store, self.seed, self.round, self.episodes, self.policy_version)
        already = stages.episodes_recorded(store, self.seed, self.round, self.episodes)
        if already == self.episodes:
            console.print(f"collection {self.round} is complete; --round {self.round + 1} begins another")
        else:
            with WorldPool(self.world, self.workers) as pool:
                stages.collect(
                    store,
                    pool,
                    PolicyPlayer(bundle=bundle),
                    self.human if self.watched else None,
                    episodes=self.episodes,
                    already=already,
                    execute=executed_actions(bundle.policy, self.execute),
                    version=self.policy_version,
                    seed=self.seed,
                    round_index=self.round,
                )
        console.print(f"{store.num_episodes} episodes, {store.num_frames} frames in {self.dataset.root}")


@dataclass(frozen=True, kw_only=True)
class Critic(FitConfig):
    """Policy evaluation: train the critics on a store under a policy, and write every window's advantage and weight."""

    policy: PolicySource
    dataset: LearntFrom = field(default_factory=LearntFrom)
    experience: dict[str, RootConfig] = field(default_factory=dict)
    """Recorded experience by names of your choice: --experience.demos.root DIR, and so on."""
    rename: dict[str, str] = field(default_factory=dict)
    """Recorded cameras that the policy calls otherwise: --rename.observation.images.top=observation.images.front."""
    sources: SourceRatios = field(default_factory=SourceRatios)
    output_dir: Path
    """Gets `critic.safetensors` and `advantages.parquet`."""
    tower: Path | None = None
    """Policy whose vision tower the critics see with; --policy.path by default. Keep it over the rounds of a run."""
    warm_start: Path | None = None
    """`critic.safetensors` of an earlier round to go on from."""
    execute: int | None = None
    """Actions of a chunk that are executed before the policy predicts again, which critics judge; by default what its
    config says."""
    scale: float | None = None
    """C, the steps that count as reward -1; by default the mean successful demonstration of the store."""
    seed: int = 0
    device: Device = "auto"
    """Where policy and critics compute: a GPU where there is one; tiny_vla on the CPU."""
    window: WindowConfig = field(default_factory=WindowConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    aloe: AloeConfig = field(default_factory=AloeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        aloe_method.check_samples(self.aloe, "--target-samples", self.target_samples)

    def main(self) -> None:
        store = self.dataset.with_roots(self.experience, self.rename, self.sources)
        if _finished(self.output_dir, self, "advantages", store, "advantages.parquet"):
            return
        bundle = PolicyBundle.load(self.policy.path, self.device)
        judged = stages.judged_actions(self.critic, executed_actions(bundle.policy, self.execute), self.window)
        seen_through = PolicyBundle.load(self.tower or self.policy.path, self.device)
        stages.check_fits_store(seen_through, store, self.window.horizon)
        store = stages.seen_by(bundle, store, self.window.horizon)
        tower = Tower(bundle=seen_through, image_tokens=self.critic.image_tokens)
        scale = return_scale(store.columns()) if self.scale is None else self.scale
        cache = self.cache.within(self.output_dir / "cache")
        inputs = EvaluationInputs.of(store, bundle, tower, cache, self.window, scale)
        stages.check_tower(tower, store.cameras)  # before hours of sampling
        stages.normalised_actions(inputs)
        run = _begin(self.output_dir, self, store)
        samples = self.output_dir / "cache" / "samples.npy"
        if not run.done(0, "sample") or not samples.exists():
            with run.stage(0, "sample"):
                stages.sample_stage(inputs, self.aloe.samples, (self.seed, "sample"), samples, self.sample_batch)
        data = stages.critic_data(inputs, samples, judged)
        shape = stages.observation_shape(tower, judged)
        state = stages.new_critic(shape, self.critic, self, (self.seed, "new critic"), tower.device)
        if run.done(0, "critic"):
            state.load(self.output_dir / "critic.safetensors")
        else:
            if self.warm_start is not None:
                state.load(self.warm_start)
            log = run.logger(0, "critic", stages.checkpoint_step(self.output_dir / "critic.checkpoint.safetensors"))
            with run.stage(0, "critic"):
                key = (self.seed, "critic")
                stages.critic_stage(data, state, self, self.window.discount, key, self.output_dir, log)
        with run.stage(0, "advantages"):
            metrics = stages.advantage_stage(
                inputs,
                data,
                state,
                self,
                lambda evaluation: aloe_method.actor_rows(inputs.windows, evaluation, self.aloe),
                self.output_dir,
            )
            run.logger(0, "advantages")(0, metrics)
        for name, value in metrics.items():
            console.print(f"{name:>20} {value:8.3f}  {stages.reading(name)}", markup=False)
        console.print(f"wrote {self.output_dir / 'advantages.parquet'}")


@dataclass(frozen=True, kw_only=True)
class Improve(ActorConfig):
    """Weighted flow matching: train a policy on a store by the weights that `aloe critic` wrote."""

    policy: PolicySource
    dataset: LearntFrom = field(default_factory=LearntFrom)
    experience: dict[str, RootConfig] = field(default_factory=dict)
    """Recorded experience by names of your choice: --experience.demos.root DIR, and so on."""
    rename: dict[str, str] = field(default_factory=dict)
    """Recorded cameras that the policy calls otherwise: --rename.observation.images.top=observation.images.front."""
    sources: SourceRatios = field(default_factory=SourceRatios)
    advantages: Path
    """`advantages.parquet` of `aloe critic` for this store."""
    output_dir: Path
    """Gets `pretrained_model/` and `optimizer.safetensors`."""
    steps: int = 500
    optimizer: Path | None = None
    """`optimizer.safetensors` of an earlier phase to go on from."""
    seed: int = 0
    device: Device = "auto"
    """Where the policy computes: a GPU where there is one; tiny_vla on the CPU."""
    cache: CacheConfig = field(default_factory=CacheConfig)

    def main(self) -> None:
        store = self.dataset.with_roots(self.experience, self.rename, self.sources)
        if _finished(self.output_dir, self, "improve", store, "pretrained_model"):
            return
        bundle = PolicyBundle.load(self.policy.path, self.device)
        store = stages.seen_by(bundle, store)
        rows = stages.rows_from_advantages(self.advantages, store.columns(), same_labels=True)
        run = _begin(self.output_dir, self, store)
        log = run.logger(0, "improve", stages.checkpoint_step(self.output_dir / "improve.checkpoint.safetensors"))
        with run.stage(0, "improve"):
            stages.train_policy(
                bundle,
                store,
                self.cache.within(self.output_dir / "cache"),
                rows,
                self,
                (self.seed, "improve"),
                self.output_dir,
                improving=True,
                optimizer_file=self.optimizer,
                log=log,
                label="improve",
            )
        console.print(f"wrote {self.output_dir / 'pretrained_model'}")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a policy alone over fixed seeds: success with its 95 % interval, steps, throughput."""

    policy: PolicySource
    episodes: int = 50
    execute: int | None = None
    """Actions of a chunk that are executed before the policy predicts again; by default what its config says."""
    seed: int = 0
    workers: int = 2
    """Worlds at once, each in a process."""
    device: Device = "auto"
    """Where the policy computes: a GPU where there is one; tiny_vla on the CPU."""
    output: Path | None = None
    """Write the figures here, as JSON."""
    world: MetaWorldConfig = field(default_factory=MetaWorldConfig)

    def main(self) -> None:
        bundle = PolicyBundle.load(self.policy.path, self.device)
        stages.check_fits_world(bundle, self.world)
        with WorldPool(self.world, self.workers) as pool:
            report = stages.measure(
                pool,
                PolicyPlayer(bundle=bundle),
                episodes=self.episodes,
                execute=executed_actions(bundle.policy, self.execute),
                version=0,
                seed=self.seed,
            )
        console.print(
            f"success {report.success:.1%} (95 % interval {report.low:.1%} to {report.high:.1%}), "
            f"{report.successes} of {report.episodes} episodes"
        )
        for task, (won, played) in report.by_task.items():
            console.print(f"{won} of {played}: {task}", markup=False)
        if report.steps_to_success is not None:
            console.print(f"{report.steps_to_success:.1f} steps to success")
        console.print(f"{report.throughput:.0f} successes an hour of simulated time")
        if self.output is not None:
            write_json(self.output, asdict(report))


_OTHER_DATA = "what is there was made of that; choose another --output-dir"


def _finished(output_dir: Path, config: Any, stage: str, store: Experience, made: str) -> bool:
    """Whether a command has done all of its work already, which it says, also where the experience has changed since.
    Writes nothing, so that a later mistake leaves nothing behind.

    Raises:
        ValueError: it was begun with other options; or is not finished and was begun with other experience.
    """
    RunFolder.check(output_dir, config)
    run = RunFolder(output_dir)
    if run.done(0, stage) is None:
        offline.is_noted(run, 0, store, str(output_dir), _OTHER_DATA)
        return False
    console.print(f"already done: {output_dir / made}")
    noted = run.done(0, "experience")
    if noted is not None and noted["digest"] != digest_of(store.columns()):
        console.print("of what was there then; steps or labels have changed since: another --output-dir takes them in")
    return True


def _begin(output_dir: Path, config: Any, store: Experience) -> RunFolder:
    """The folder of a command that trains and is not `_finished`, with a note of what it learns from."""
    run = RunFolder.open(output_dir, config)
    if run.done(0, "experience") is None:
        with run.stage(0, "experience") as result:
            result |= {"episodes": len(store.lengths), "digest": digest_of(store.columns())}
    return run


@dataclass(frozen=True, kw_only=True)
class Run(RunConfig):
    """The whole circle, round after round; --preset quickstart to begin with. The preset gives the defaults (quickstart,
    paper, tiny; offline where a --policy.path and --experience are given)."""

    output_dir: Path | None = None
    """Run folder; by default runs/<preset>-<seed>, with task and method where they are not the preset's."""
    dataset: RecordedInto = field(default_factory=RecordedInto)
    resume: bool = True
    """Go on with a run that is already there; with --no-resume that is an error."""
    device: Device = "auto"
    """Where policy and critics compute: a GPU where there is one; tiny_vla on the CPU."""


def run_command(arguments: list[str]) -> None:
    """`aloe run`: the preset gives the defaults, every other option overrides it."""
    preset, arguments = take_preset(arguments)
    options = parse(Run, "run", arguments, default=Run(**vars(PRESETS[preset])))
    config = RunConfig(**{f.name: getattr(options, f.name) for f in fields(RunConfig)})
    output_dir = options.output_dir or _default_folder(preset, config)
    run = run_circle(
        config,
        output_dir,
        store=options.dataset.root,
        resume=options.resume,
        say=lambda line: console.print(f"[bold]{line}"),
        device=options.device,
    )
    so_far = RunSoFar.read(run.root)
    for table in tables(so_far):
        console.print(table)
    console.print(f"last policy     {run.policy(config.rounds)}", markup=False)
    console.print(f"everything      {run.root}", markup=False)
    page = run.root / "report.html"
    for line in write_page([so_far], page, EPISODES).said:
        console.print(line, markup=False)
    console.print(f"report          {page}; open it in a browser", markup=False)


def _default_folder(preset: str, config: RunConfig) -> Path:
    """runs/quickstart-0; where task or method is not the preset's, it is named, too."""
    usual = PRESETS[preset]
    parts = [preset, *([config.world.task] if config.world.task != usual.world.task else [])]
    parts += [config.method] if config.method != usual.method else []
    return Path("runs") / "-".join([*parts, str(config.seed)])
