"""The circle: collect, evaluate the chunks, improve, measure; round after round.

Each stage is skipped when its result is there, and otherwise made from what the earlier stages left, so that a run that is
killed anywhere and started again ends with the same weights as one that was not.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aloe import stages
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows, return_scale
from aloe.methods.aloe import AloeConfig
from aloe.policies.flow import PolicyBundle, check_sees_all, chunk_shape
from aloe.policies.train import ActorConfig
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder, write_json
from aloe.stages import DemosConfig, EvaluationInputs, PolicyConfig
from aloe.training import Log
from aloe.types import Source
from aloe.value.critic import CriticConfig
from aloe.value.fit import FitConfig
from aloe.worlds.metaworld import MetaWorldConfig

Method = Literal["aloe", "sft"]
Say = Callable[[str], None]


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
    """How the policy improves; `sft` clones the demonstrations and learns nothing from experience."""
    rounds: int = 3
    """Rounds after cloning."""
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
    improve: ActorConfig = field(default_factory=lambda: ActorConfig(steps=500, learning_rate=5e-4))
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.policy.execute > self.window.horizon:
            raise ValueError(
                f"--policy.execute {self.policy.execute} is more than the chunk of --window.horizon {self.window.horizon}"
            )
        if self.rounds < 0 or self.seed < 0 or self.workers < 1:
            raise ValueError("--rounds and --seed must not be negative, --workers at least 1")
        if self.fit.target_samples > self.aloe.samples:
            raise ValueError(
                f"the target averages --fit.target-samples {self.fit.target_samples} chunks, but --aloe.samples draws "
                f"{self.aloe.samples}"
            )


@dataclass(frozen=True, kw_only=True)
class Circle:
    """One run in progress."""

    run: RunFolder
    config: RunConfig
    store: ExperienceStore
    pool: WorldPool
    say: Say

    def turn(self) -> None:
        """Plays all rounds."""
        for index in range(self.config.rounds + 1):
            if not self.run.done(index, "eval"):
                self.play_round(index) if index else self.start()
            self._finish_round(index)

    def start(self) -> None:
        """Round 0: demonstrations, the cloned policy, its success."""
        config, run = self.config, self.run
        if not run.done(0, "demos"):
            self.say("round 0: recording demonstrations")
            with run.stage(0, "demos") as result:
                stages.demonstrate(self.store, self.pool, config.demos, config.seed)
                result |= {
                    "episodes": self.store.num_episodes,
                    "return_scale": return_scale(self.store.columns()),
                }
        if not run.done(0, "sft"):
            with run.stage(0, "sft"):
                self._clone()
        self._measure(0)

    def play_round(self, index: int) -> None:
        """collect -> sample -> critic -> advantages -> improve -> eval."""
        run, bundle = self.run, PolicyBundle.load(self.run.policy(index - 1))
        if not run.done(index, "collect"):
            self.say(f"round {index}: collecting {self.config.collect.episodes} episodes with the human watching")
            with run.stage(index, "collect") as result:
                self._collect(index, bundle)
                result |= {"episodes": self.store.num_episodes}
        if self.config.method == "aloe":
            self._evaluate_chunks(index, bundle)
        if not run.done(index, "improve"):
            self.say(f"round {index}: improving the policy")
            with run.stage(index, "improve"):
                self._improve(index, bundle)
        self._measure(index)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _clone(self) -> None:
        config, out = self.config, self.run.round(0)
        key = (config.seed, "sft")
        if config.policy.path is not None:
            self.say(f"round 0: starting from {config.policy.path}")
            PolicyBundle.load(config.policy.path).save_atomically(self.run.policy(0))
            return
        self.say("round 0: cloning the demonstrations")
        bundle = stages.new_policy(self.store, config.policy, config.window.horizon, key)
        rows = stages.sft_rows(self.store.columns(), config.window, self._scale)
        log = self._logger(0, "sft", out / "sft.checkpoint.safetensors")
        stages.train_policy(bundle, self.store, self.run.cache, rows, config.sft, key, out, log=log, label="sft")

    def _collect(self, index: int, bundle: PolicyBundle) -> None:
        config = self.config
        before = (self.run.done(index - 1, "collect") or self.run.done(0, "demos") or {})["episodes"]
        already = self.store.num_episodes - before
        if already != stages.episodes_recorded(self.store, config.seed, index, config.collect.episodes):
            raise ValueError(
                f"{self.store.root} holds {self.store.num_episodes} episodes, this run {before} before round {index}: "
                "something else wrote to it or removed episodes; restore it, or choose another --output-dir"
            )
        stages.collect(
            self.store,
            self.pool,
            bundle,
            config.human,
            episodes=config.collect.episodes,
            already=already,
            execute=config.policy.execute,
            version=index - 1,
            seed=config.seed,
            round_index=index,
        )

    def _evaluate_chunks(self, index: int, bundle: PolicyBundle) -> None:
        config, run, out = self.config, self.run, self.run.round(index)
        names = ("sample", "critic", "advantages")
        if all(run.done(index, name) for name in names):
            return
        self.say(f"round {index}: evaluating action chunks under the current policy")
        tower = PolicyBundle.load(run.policy(0))
        inputs = EvaluationInputs.of(self.store, bundle, tower, run.cache, config.window, self._scale)
        samples = run.cache / "samples" / f"{index:03d}.npy"
        if not run.done(index, "sample") or not samples.exists():
            with run.stage(index, "sample"):
                stages.sample_stage(inputs, config.aloe.samples, (config.seed, "sample", index), samples)
        data = stages.critic_data(inputs, samples)
        state = stages.new_critic(data, config.critic, config.fit, (config.seed, "new critic"))
        if run.done(index, "critic"):
            state.load(out / "critic.safetensors")
        else:
            if index > 1:
                state.load(run.round(index - 1) / "critic.safetensors")
            log = self._logger(index, "critic", out / "critic.checkpoint.safetensors")
            with run.stage(index, "critic"):
                key = (config.seed, "critic", index)
                stages.critic_stage(data, state, config.fit, config.window.discount, key, out, log)
        with run.stage(index, "advantages"):
            metrics = stages.advantage_stage(inputs, data, state, config.fit, config.aloe, out)
            run.logger(index, "advantages")(0, metrics)

    def _improve(self, index: int, bundle: PolicyBundle) -> None:
        config, run, out = self.config, self.run, self.run.round(index)
        frames = self.store.columns()
        if config.method == "sft":
            rows = stages.sft_rows(frames, config.window, self._scale)
        else:
            windows = make_windows(frames, config.window, self._scale)
            rows = stages.rows_from_advantages(out / "advantages.parquet", frames, windows)
        moments = run.round(index - 1) / "optimizer.safetensors"
        log = self._logger(index, "improve", out / "improve.checkpoint.safetensors")
        stages.train_policy(
            bundle,
            self.store,
            run.cache,
            rows,
            config.improve,
            (config.seed, "improve", index),
            out,
            optimizer_file=moments if moments.exists() else None,
            log=log,
            label="improve",
        )

    def _measure(self, version: int) -> None:
        self.say(f"round {version}: measuring success over {self.config.eval.episodes} episodes")
        with self.run.stage(version, "eval") as result:
            report = stages.measure(
                self.pool,
                PolicyBundle.load(self.run.policy(version)),
                episodes=self.config.eval.episodes,
                execute=self.config.policy.execute,
                version=version,
                seed=self.config.seed,
            )
            result |= {
                "success": report.success,
                "success_low": report.low,
                "success_high": report.high,
                "steps_to_success": report.steps_to_success,
                "throughput": report.throughput,
            }
            logged = {k: v for k, v in result.items() if v is not None}
            self.run.logger(version, "eval")(0, logged)

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        """C, fixed when the demonstrations were done."""
        demos = self.run.done(0, "demos")
        assert demos is not None, "the scale of the rewards is known once there are demonstrations"
        return demos["return_scale"]

    def _logger(self, index: int, stage: str, checkpoint: Path) -> Log:
        """A logger that keeps what was logged up to the checkpoint from which the stage goes on."""
        return self.run.logger(index, stage, stages.checkpoint_step(checkpoint))

    def _finish_round(self, index: int) -> None:
        """Brings TensorBoard and then the summary up to date, unless the summary holds this round already."""
        path = self.run.root / "summary.json"
        if not path.exists() or len(json.loads(path.read_text())["rounds"]) <= index:
            self.run.write_tensorboard()
            write_json(path, summary(self.run, self.config, self.store, index))


def summary(run: RunFolder, config: RunConfig, store: ExperienceStore, last: int) -> dict[str, Any]:
    """The content of `summary.json`. Episodes, steps and takeovers count from the start of the run to that round."""
    frames = store.columns()
    rounds = []
    for index in range(last + 1):
        counted = run.done(index, "collect") or run.done(0, "demos") or {}
        measured = run.done(index, "eval") or {}
        mine = frames.episode < counted["episodes"]
        human = (frames.source == Source.HUMAN) & mine
        began = human.copy()
        began[1:] &= ~(human[:-1] & (frames.episode[1:] == frames.episode[:-1]))
        names = ("demos", "sft", "collect", "sample", "critic", "advantages", "improve", "eval")
        done = {name: run.done(index, name) for name in names}
        rounds.append(
            {
                "round": index,
                "episodes": counted["episodes"],
                "env_steps": int(mine.sum()),
                "human_steps": int(human.sum()),
                "takeovers": int(began.sum()),
                **{
                    k: measured[k] for k in ("success", "success_low", "success_high", "steps_to_success", "throughput")
                },
                "seconds": {name: content["seconds"] for name, content in done.items() if content},
            }
        )
    return {"task": config.world.task, "method": config.method, "seed": config.seed, "rounds": rounds}


def run_circle(config: RunConfig, output_dir: Path, *, resume: bool = True, say: Say = print) -> RunFolder:
    """`aloe run`: makes or goes on with the run in `output_dir`.

    Raises:
        ValueError: the folder belongs to another config, or something in the config does not fit together.
    """
    if config.policy.path is not None and not RunFolder(output_dir).policy(0).exists():
        bundle = PolicyBundle.load(config.policy.path)
        stages.check_fits_world(bundle, config.world)
        check_sees_all(bundle, config.world.camera_sizes)
        horizon = chunk_shape(bundle.policy)[0]
        if horizon != config.window.horizon:
            raise ValueError(
                f"{config.policy.path} predicts chunks of {horizon} actions; give --window.horizon {horizon}"
            )
    run = RunFolder.open(output_dir, config, resume)
    with run.locked(), WorldPool(config.world, config.workers) as pool:
        store = stages.open_store(run.experience, config.world)
        Circle(run=run, config=config, store=store, pool=pool, say=say).turn()
    return run


PRESETS: dict[str, RunConfig] = {
    "quickstart": RunConfig(
        world=MetaWorldConfig(task="button-press-topdown-v3", max_steps=40),
        demos=DemosConfig(episodes=3),
        sft=ActorConfig(steps=2000),
        collect=CollectConfig(episodes=20),
        human=HumanConfig(patience_steps=15, time_fraction=0.7, miss_probability=0.1, action_noise=0.1),
        improve=ActorConfig(steps=600, learning_rate=5e-4),
        eval=EvalConfig(episodes=60),
    ),
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
        aloe=AloeConfig(samples=2, failed_share=0.5),
        improve=ActorConfig(steps=12, batch_size=8, save_every=5),
        eval=EvalConfig(episodes=2),
    ),
}
"""Complete configs by name: `aloe run --preset NAME`. `tiny` is for tests: a whole run in well under a minute."""
