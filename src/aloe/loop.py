"""The circle: collect, evaluate the chunks, improve, measure; round after round.

Each stage is skipped when its result is there, and otherwise made from what the earlier stages left, so that a run that is
killed anywhere and started again ends with the same weights as one that was not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float32
from numpy import ndarray

from aloe import offline, stages
from aloe.config import RunConfig, ValueMethod
from aloe.experience.cache import Cache
from aloe.experience.mixture import SourceRatios
from aloe.experience.schema import Experience
from aloe.experience.store import ExperienceStore
from aloe.experience.view import View
from aloe.experience.windows import make_windows, return_scale
from aloe.methods import aloe as aloe_method
from aloe.methods import awr, qc, recap
from aloe.policies.bundle import PolicyBundle, Tower, check_device
from aloe.policies.flow import check_guided, chunk_shape
from aloe.policies.train import ActorRows
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder, read_json, write_json
from aloe.stages import EvaluatedEpisode, EvaluationInputs
from aloe.summary import summary
from aloe.training import Device, Log, has_share
from aloe.types import Source
from aloe.value.evaluate import Evaluation
from aloe.versions import Versions
from aloe.worlds.metaworld import MetaWorldConfig

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Circle:
    """One run in progress."""

    run: RunFolder
    config: RunConfig
    store: ExperienceStore | None
    """What this run records; nothing offline."""
    experience: Experience
    """What it learns from: the store, and other roots."""
    pool: WorldPool | None
    """None offline."""
    say: Say
    device: Device = "cpu"
    """Where policies and critics compute."""

    @property
    def versions(self) -> Versions:
        """The policy of each round so far."""
        return Versions(run=self.run, config=self.config, device=self.device)

    def turn(self) -> None:
        """Plays all rounds."""
        for index in range(self.config.rounds + 1):
            last = "eval" if not self.config.offline else "improve" if index else "sft"
            if not self.run.done(index, last):
                self.play_round(index) if index else self.start()
            self._finish_round(index)

    def start(self) -> None:
        """Round 0: demonstrations, the cloned policy, its success."""
        config, run = self.config, self.run
        if config.offline:
            offline.look(run, 0, self.experience, config.rename)
        elif not run.done(0, "demos"):
            assert self.store is not None
            assert self.pool is not None
            self._check_scenes_are_new(self.store)
            self.say("round 0: recording demonstrations")
            with run.stage(0, "demos") as result:
                # What was begun is brought to its end; what another root has already need not be recorded.
                if not (self.experience.columns().source == Source.DEMO).any() or self.store.num_episodes:
                    stages.demonstrate(self.store, self.pool, config.demos, config.seed)
                result |= {
                    "episodes": self.store.num_episodes,
                    "return_scale": return_scale(self.experience.columns()),
                }
        if not run.done(0, "sft"):
            with run.stage(0, "sft"):
                self._clone()
        self.measure(0)

    def play_round(self, index: int) -> None:
        """collect -> sample -> critic -> advantages -> trust -> improve -> eval, as far as the method has these stages.
        Offline, what is there already stands for the collection, and nothing is measured."""
        run, bundle = self.run, self.versions.policy(index - 1)
        if self.config.offline:
            self.collect(index)  # which only looks
        if not run.done(index, "improve"):
            key, moments = (self.config.seed, "improve", index), self._moments(index - 1)
            stages.check_trainable(bundle, self.experience, self._cache, self.config.improve, key, moments)
        if not self.config.offline:
            self.collect(index)
        if not run.done(index, "advantages"):
            match self.config.method:
                case "aloe" | "qc":
                    self._evaluate_chunks(index, bundle)
                case "awr" | "recap":
                    self._evaluate_states(index, bundle, self.config.method)
                case "sft" | "dagger" | "filtered":
                    pass  # nothing is evaluated
        if self.config.judges_critics and not run.done(index, "trust"):
            if self.config.offline and not self._held_out:
                self.say(f"round {index}: the critics are not judged, there are too few episodes to hold any out")
            else:
                self._trust(index, bundle)
        if not run.done(index, "improve"):
            self.say(f"round {index}: improving the policy")
            with run.stage(index, "improve"):
                self._improve(index, bundle)
        self.measure(index)

    # -- stages -------------------------------------------------------------------------------------------------------

    def collect(self, index: int) -> None:
        """Records the episodes of a round, unless that is done; offline, looks what there is."""
        if self.config.offline:
            offline.look(self.run, index, self.experience, self.config.rename)
        elif not self.run.done(index, "collect"):
            assert self.store is not None
            self.say(f"round {index}: collecting {self.config.collect.episodes} episodes with the human watching")
            with self.run.stage(index, "collect") as result:
                self._collect(index)
                result |= {"episodes": self.store.num_episodes}

    def _check_scenes_are_new(self, store: ExperienceStore) -> None:
        """Raises ValueError if the store, before anything is recorded or cloned, holds scenes that a round is to play."""
        config = self.config
        for index in range(1, config.rounds + 1):
            if stages.episodes_recorded(store, config.seed, index, config.collect.episodes):
                raise ValueError(
                    f"{store.root} holds scenes of round {index} and seed {config.seed} already, of `aloe collect` or of "
                    "another run; choose another --seed, and with it another --output-dir"
                )

    def _clone(self) -> None:
        config, out = self.config, self.run.round(0)
        key = (config.seed, "sft")
        if config.policy.path is not None:
            self.say(f"round 0: starting from {config.policy.path}")
            stages.from_checkpoint(config.policy).save_atomically(self.run.policy(0))
            return
        self.say("round 0: cloning the demonstrations")
        bundle = stages.new_policy(self.experience, config.policy, config.window.horizon, key, self.device)
        frames = self.experience.columns()
        rows = stages.cloned_rows("sft", frames, make_windows(frames, config.window, self._scale))
        experience, shares = self.experience, self.experience.shares
        if shares is not None and not has_share(rows.rows, shares):
            # They are meant for later, when there is more than demonstrations.
            roots = {name: replace(root, ratio=None) for name, root in config.experience.items()}
            experience = replace(config, sources=SourceRatios(), experience=roots).learns_from(self.store)
        log = self._logger(0, "sft", out / "sft.checkpoint.safetensors")
        stages.train_policy(bundle, experience, self._cache, rows, config.sft, key, out, log=log, label="sft")

    def _collect(self, index: int) -> None:
        config = self.config
        assert self.store is not None
        assert self.pool is not None
        before = (self.run.done(index - 1, "collect") or self.run.done(0, "demos") or {})["episodes"]
        already = self.store.num_episodes - before
        if already != stages.episodes_recorded(self.store, config.seed, index, config.collect.episodes):
            raise ValueError(
                f"{self.store.root} holds {self.store.num_episodes} episodes, this run {before} before round {index}: "
                "something else wrote to it or removed episodes, or another run recorded these very scenes; restore it, or "
                "choose another --output-dir, and for the same store another --seed"
            )
        player = self.versions.player(index - 1, choosing=True)
        stages.collect(
            self.store,
            self.pool,
            player,
            config.human,
            episodes=config.collect.episodes,
            already=already,
            execute=self.versions.executed(player.bundle),
            version=index - 1,
            seed=config.seed,
            round_index=index,
        )

    def _evaluate_chunks(self, index: int, bundle: PolicyBundle) -> None:
        config, run, out = self.config, self.run, self.run.round(index)
        self.say(f"round {index}: evaluating action chunks under the current policy")
        inputs, fit = self._inputs(bundle), config.critic_fit
        samples = run.cache / "samples" / f"{index:03d}.npy"
        if not run.done(index, "sample") or not samples.exists():
            with run.stage(index, "sample"):
                key = (config.seed, "sample", index)
                stages.sample_stage(inputs, config.samples, key, samples, fit.sample_batch)
        data = stages.critic_data(inputs, samples, self.versions.judged(inputs.tower))
        state = self.versions.new_critics(inputs.tower)
        if run.done(index, "critic"):
            state.load(out / "critic.safetensors")
        else:
            if index > 1:
                state.load(run.round(index - 1) / "critic.safetensors")
            log = self._logger(index, "critic", out / "critic.checkpoint.safetensors")
            with run.stage(index, "critic"):
                key = (config.seed, "critic", index)
                known = replace(data, windows=offline.without(inputs, self._held_out)) if config.offline else data
                stages.critic_stage(known, state, fit, config.window.discount, key, out, log)

        def weigh(evaluation: Evaluation) -> ActorRows:
            if config.method == "qc":
                return qc.actor_rows(inputs.windows)
            return aloe_method.actor_rows(inputs.windows, evaluation, config.aloe)

        with run.stage(index, "advantages"):
            run.logger(index, "advantages")(0, stages.advantage_stage(inputs, data, state, fit, weigh, out))

    def _evaluate_states(self, index: int, bundle: PolicyBundle, method: ValueMethod) -> None:
        """The value of whoever acted, for AWR and RECAP."""
        config, run, out = self.config, self.run, self.run.round(index)
        self.say(f"round {index}: learning the value of states from the returns")
        inputs, discount = self._inputs(bundle), config.window.discount
        bins = config.awr.bins if method == "awr" else config.recap.bins
        state = stages.new_value(inputs, config.critic, config.fit, bins, (config.seed, "new value"))
        if run.done(index, "value"):
            state.load(out / "value.safetensors")
        else:
            if index > 1:
                state.load(run.round(index - 1) / "value.safetensors")
            log = self._logger(index, "value", out / "value.checkpoint.safetensors")
            with run.stage(index, "value"):
                stages.value_stage(inputs, state, config.fit, (config.seed, "value", index), out, log)

        def weigh(value: Float32[ndarray, "N"]) -> tuple[Float32[ndarray, "N"], ActorRows]:
            if method == "awr":
                return awr.advantages(inputs.windows, value), awr.actor_rows(inputs.windows, value, config.awr)
            advantage = recap.advantages(inputs.windows, value, discount)
            return advantage, recap.actor_rows(inputs.frames, inputs.windows, advantage, config.recap)

        with run.stage(index, "advantages"):
            run.logger(index, "advantages")(0, stages.value_advantage_stage(inputs, state, weigh, out))

    def _trust(self, index: int, bundle: PolicyBundle) -> None:
        """Judges the critics of a round on the recorded evaluation episodes of the policy that they evaluated; offline, on
        the held-out ones."""
        config, run, version = self.config, self.run, index - 1
        learnt = self._inputs(bundle)
        if config.offline:
            learnt = replace(learnt, windows=offline.without(learnt, self._held_out))
            judged = View(self.experience, episodes=self._held_out[-config.trust.episodes :])
            facts = stages.facts_of(judged.columns())
        else:
            judged = ExperienceStore.read(run.round(version) / "fresh")
            facts = EvaluatedEpisode.read(run.round(version) / "fresh.json")
        critic = self.versions.critics(index, learnt.tower).critic
        fresh = stages.fresh_inputs(
            judged,
            bundle,
            learnt.tower,
            self._cache,
            config.window,
            self._scale,
        )
        with run.stage(index, "trust") as result:
            trust = stages.trust_stage(
                fresh,
                facts,
                learnt,
                run.round(index),
                critic,
                config.critic_fit,
                (config.seed, "trust", index),
                run.cache / "fresh" / f"{version:03d}.npy",
                samples=config.samples,
                best_of=version > 0 and config.is_played_with_critics,
                weighted=config.method == "aloe",
                q_chunking=config.method == "qc",
            )
            write_json(run.round(index) / "trust.json", trust)
            run.logger(index, "trust")(0, {k: v for k, v in trust["numbers"].items() if v is not None})
            result |= {"numbers": trust["numbers"], "warnings": trust["warnings"]}
        for warning in trust["warnings"]:
            self.say(f"round {index}: warning: {warning}")

    def _improve(self, index: int, bundle: PolicyBundle) -> None:
        config, out = self.config, self.run.round(index)
        frames = self.experience.columns()
        match config.method:
            case "sft" | "dagger" | "filtered":
                rows = stages.cloned_rows(config.method, frames, make_windows(frames, config.window, self._scale))
            case "aloe" | "qc" | "awr" | "recap":
                dropout = config.recap.dropout if config.method == "recap" else 0.0
                rows = stages.rows_from_advantages(out / "advantages.parquet", frames, dropout)
        log = self._logger(index, "improve", out / "improve.checkpoint.safetensors")
        stages.train_policy(
            bundle,
            self.experience,
            self._cache,
            rows,
            config.improve,
            (config.seed, "improve", index),
            out,
            improving=True,
            optimizer_file=self._moments(index - 1),
            log=log,
            label="improve",
        )

    def _moments(self, version: int) -> Path | None:
        """Of the optimizer that made a version, for the next to go on from."""
        moments = self.run.round(version) / "optimizer.safetensors"
        return moments if moments.exists() else None

    def measure(self, version: int, stage: str = "eval", *, choosing: bool = False) -> None:
        """Measures the success of a version in the pool's world, as that stage of its round.

        choosing: with the critics' choice among chunks, also for a method whose policy acts alone.
        """
        if self.pool is None:
            return  # offline there is nothing to measure it in
        self.say(f"round {version}: measuring success over {self.config.eval.episodes} episodes")
        self.versions.measure(version, self.pool, stage, choosing or self.config.is_played_with_critics)

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _inputs(self, bundle: PolicyBundle) -> EvaluationInputs:
        tower = self.versions.tower
        return EvaluationInputs.of(self.experience, bundle, tower, self._cache, self.config.window, self._scale)

    @property
    def _held_out(self) -> list[int]:
        """Offline: episodes that no critic is trained on, where critics are judged."""
        if not self.config.judges_critics:
            return []
        return stages.held_out(self.experience.columns(), self.config.trust.held_out)

    @property
    def _cache(self) -> Cache:
        return self.config.cache.within(self.run.cache)

    @property
    def _scale(self) -> float:
        """C, fixed when the demonstrations were done."""
        demos = self.run.done(0, "experience" if self.config.offline else "demos")
        assert demos is not None, "the scale of the rewards is known once there are demonstrations"
        return demos["return_scale"]

    def _logger(self, index: int, stage: str, checkpoint: Path) -> Log:
        """A logger that keeps what was logged up to the checkpoint from which the stage goes on."""
        return self.run.logger(index, stage, stages.checkpoint_step(checkpoint))

    def _finish_round(self, index: int) -> None:
        """Brings TensorBoard and then the summary up to date, unless the summary holds this round already."""
        path = self.run.root / "summary.json"
        if not path.exists() or len(read_json(path, "delete it; it is written anew")["rounds"]) <= index:
            self.run.write_tensorboard()
            write_json(path, summary(self.run, self.config, (self.store or self.experience).columns(), index))


@contextmanager
def open_circle(
    config: RunConfig,
    run: RunFolder,
    say: Say = print,
    world: MetaWorldConfig | None = None,
    device: Device = "cpu",
) -> Iterator[Circle]:
    """A circle with its worlds running and its folder locked; it plays in `world` if another is given than the run's.
    Offline without any world."""
    if config.offline:
        with run.locked():
            experience = offline.experience(config, run.policy(0))
            yield Circle(run=run, config=config, store=None, experience=experience, pool=None, say=say, device=device)
        return
    with run.locked(), WorldPool(world or config.world, config.workers) as pool:
        store = stages.open_store(run.experience, config.world)
        experience = config.learns_from(store)
        yield Circle(run=run, config=config, store=store, experience=experience, pool=pool, say=say, device=device)


def run_circle(
    config: RunConfig,
    output_dir: Path,
    *,
    store: Path | None = None,
    resume: bool = True,
    say: Say = print,
    device: Device = "cpu",
) -> RunFolder:
    """`aloe run`: makes or goes on with the run in `output_dir`.

    store: folder of the store to record into, and to learn from; by default one in `output_dir`.

    Raises:
        ValueError: the folder belongs to another config, something in the config does not fit together, or there is no GPU.
    """
    check_device(device)  # before anything is recorded
    if config.offline and store is not None:
        raise ValueError(
            "offline nothing is recorded; name what there is with --experience.NAME.root, not --dataset.root"
        )
    if config.offline and not config.experience:
        raise ValueError("offline there is only recorded experience to learn from; name it: --experience.NAME.root DIR")
    if config.policy.path is not None and not RunFolder(output_dir).policy(0).exists():
        bundle = stages.from_checkpoint(config.policy)
        if config.offline:
            cameras = offline.experience(config, config.policy.path).cameras
        else:
            stages.check_fits_world(bundle, config.world)
            cameras = config.world.camera_sizes
        stages.check_tower(Tower(bundle=bundle, image_tokens=config.critic.image_tokens), cameras)
        if config.method == "recap" and config.recap.guidance != 1:
            check_guided(bundle.policy)
        if config.window.horizon > (predicted := chunk_shape(bundle.policy)[0]):
            raise ValueError(
                f"{config.policy.path} predicts chunks of {predicted} actions; give --window.horizon {predicted} or less"
            )
    output_dir.mkdir(parents=True, exist_ok=True)
    with RunFolder(output_dir).locked():  # nothing is changed under another process that works there
        run = RunFolder.open(output_dir, config, resume)
        if store is not None:
            run.record_into(store)
    with open_circle(config, run, say, device=device) as circle:
        circle.turn()
    return run
