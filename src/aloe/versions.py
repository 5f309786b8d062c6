"""The policy versions of a run, with their critics where the method has any: how a version acts, and how often it
succeeds."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass

from aloe import stages
from aloe.config import RunConfig
from aloe.methods import recap
from aloe.policies.bundle import PolicyBundle, PolicyPlayer, Tower
from aloe.policies.flow import executed_actions
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder, new_folder, write_json
from aloe.stages import EvaluatedEpisode
from aloe.training import Device
from aloe.types import Episode
from aloe.value.fit import CriticState
from aloe.value.play import BestOfPlayer


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Version v is the policy that round v ended with, 0 the cloned one. Critics of round v judged the actions that it
    learnt from."""

    run: RunFolder
    config: RunConfig
    device: Device

    def policy(self, version: int) -> PolicyBundle:
        return PolicyBundle.load(self.run.policy(version), self.device)

    @property
    def tower(self) -> Tower:
        """The first policy's, for all rounds. Loaded anew each time, so that a large one does not stay in memory."""
        return Tower(bundle=self.policy(0), image_tokens=self.config.critic.image_tokens)

    def critics(self, version: int, tower: Tower) -> CriticState:
        """As round `version` left them.

        Raises:
            ValueError: the file is damaged, or holds critics of another shape.
        """
        state = self.new_critics(tower)
        state.load(self.run.round(version) / "critic.safetensors")
        return state

    def new_critics(self, tower: Tower) -> CriticState:
        """As the first round begins with them."""
        config = self.config
        shape = stages.observation_shape(tower, self.judged(tower))
        return stages.new_critic(shape, config.critic, config.critic_fit, (config.seed, "new critic"), tower.device)

    def judged(self, tower: Tower) -> int:
        """Actions of a chunk that the critics see."""
        return stages.judged_actions(self.config.critic, self.executed(tower.bundle), self.config.window)

    def executed(self, bundle: PolicyBundle) -> int:
        """Actions of a chunk that are carried out before the policy is asked anew."""
        return executed_actions(bundle.policy, self.config.policy.execute)

    def player(self, version: int, choosing: bool) -> PolicyPlayer | BestOfPlayer:
        """A version as it acts, under the condition that belongs to the method.

        choosing: with the critics' choice among chunks, where the version has critics and `best_of` is more than 1.
        """
        config, bundle = self.config, self.policy(version)
        if version and config.method == "recap":
            return PolicyPlayer(bundle=bundle, condition=recap.POSITIVE, guidance=config.recap.guidance)
        if version and choosing and config.best_of > 1:
            tower = self.tower
            return BestOfPlayer(
                bundle=bundle,
                critic=self.critics(version, tower).critic.eval(),
                tower=tower,
                samples=config.best_of,
                aggregation=config.critic_fit.advantage_aggregation,
                std_weight=config.fit.std_weight,
            )
        return PolicyPlayer(bundle=bundle)

    def measure(self, version: int, pool: WorldPool, stage: str, choosing: bool) -> None:
        """Measures the success of a version in the pool's world, as that stage of its round.

        The stage `eval` also keeps episodes for the critics, which no training sees, and what is known of all.
        """
        keeping = self._fresh(version) if stage == "eval" else nullcontext(_forget)
        with self.run.stage(version, stage) as result, keeping as keep:
            player = self.player(version, choosing)
            report = stages.measure(
                pool,
                player,
                episodes=self.config.eval.episodes,
                execute=self.executed(player.bundle),
                version=version,
                seed=self.config.seed,
                recorded=self._recorded(version) if stage == "eval" else 0,  # pictures cost more than the rest
                keep=keep,
            )
            result |= {
                "success": report.success,
                "success_low": report.low,
                "success_high": report.high,
                "steps_to_success": report.steps_to_success,
                "throughput": report.throughput,
            }
            logged = {k: v for k, v in result.items() if v is not None}
            if report.by_task:
                result["by_task"] = report.by_task
                logged |= {f"success/{task}": won / played for task, (won, played) in report.by_task.items()}
            self.run.logger(version, stage)(0, logged)

    def _recorded(self, version: int) -> int:
        """Evaluation episodes to record: for the critics; and of version 0, whose starts serve `aloe rank` for all."""
        return self.config.trust.episodes if self.config.judges_critics or not version else 0

    @contextmanager
    def _fresh(self, version: int) -> Iterator[Callable[[Episode], None]]:
        """Takes the episodes of an evaluation: the first go to `fresh/`, what is known of all of them to `fresh.json`."""
        facts: list[EvaluatedEpisode] = []
        recorded = self._recorded(version)
        with ExitStack() as stack:
            store = None
            if recorded:
                folder = stack.enter_context(new_folder(self.run.round(version) / "fresh"))
                store = stages.open_store(folder, self.config.world)

            def keep(episode: Episode) -> None:
                if store is not None and len(facts) < recorded:
                    store.append(episode)
                facts.append(EvaluatedEpisode.of(episode))

            yield keep
        write_json(self.run.round(version) / "fresh.json", [asdict(fact) for fact in facts])


def _forget(episode: Episode) -> None:
    """What is kept of an episode under a perturbation: its outcome is counted, and that is all."""
