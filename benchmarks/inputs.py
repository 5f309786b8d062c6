"""Does the policy use what it is given? Two tasks in one scene, told apart by the instruction alone.

One tiny_vla is cloned from demonstrations of `faucet-open-v3` and `faucet-close-v3` (the same faucet in the same places),
then measured as it is, with the two instructions exchanged, and with black pictures. With `--run` the same is done, but for
the exchange, to the last policies of finished runs.

    .venv/bin/python benchmarks/inputs.py --seeds 0 1 --episodes 30 --demos 8 --steps 600
    .venv/bin/python benchmarks/inputs.py --run runs/quickstart-0 runs/quickstart-1 --episodes 60
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aloe import stages
from aloe.config import RunConfig
from aloe.evaluation.success import wilson_interval
from aloe.experience.cache import Cache
from aloe.experience.windows import WindowConfig, make_windows, return_scale
from aloe.policies.bundle import PolicyBundle, PolicyPlayer
from aloe.policies.recipe import ActorConfig
from aloe.rollout.collect import episode_seeds
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.run import RunFolder, from_plain
from aloe.worlds.metaworld import INSTRUCTIONS, MetaWorldConfig

TASKS: tuple[str, ...] = ("faucet-open-v3", "faucet-close-v3")
OTHER = {INSTRUCTIONS[a]: INSTRUCTIONS[b] for a, b in (TASKS, TASKS[::-1])}


@dataclass(frozen=True, kw_only=True)
class Deceived(PolicyPlayer):
    """A policy whose inputs are tampered with before it sees them."""

    tamper: Callable[[dict[str, np.ndarray], list[str]], tuple[dict[str, np.ndarray], list[str]]]

    def __call__(self, images, state, tasks, noise):
        images, tasks = self.tamper(images, tasks)
        return super().__call__(images, state, tasks, noise)


CONDITIONS = {
    "as it is": lambda images, tasks: (images, tasks),
    "instructions exchanged": lambda images, tasks: (images, [OTHER.get(task, task) for task in tasks]),
    "black pictures": lambda images, tasks: ({name: np.zeros_like(p) for name, p in images.items()}, tasks),
}


def world(task: str) -> MetaWorldConfig:
    return MetaWorldConfig(task=task, max_steps=50, action_repeat=4)


def clone(seed: int, demos: int, steps: int, folder: Path) -> PolicyBundle:
    """One policy from `demos` demonstrations of each task."""
    store = stages.open_store(folder / "experience", world(TASKS[0]))
    for task in TASKS:
        with WorldPool(world(task), 2) as pool:
            requests = [
                EpisodeRequest(index=i, seed=s) for i, s in enumerate(episode_seeds(seed, "demonstrate", demos))
            ]
            for episode in pool.play(requests, None, demo_noise=0.1, progress=task):
                store.append(episode)
    frames, window = store.columns(), WindowConfig()
    bundle = stages.new_policy(store, stages.PolicyConfig(), window.horizon, (seed, "sft"))
    rows = stages.cloned_rows("sft", frames, make_windows(frames, window, return_scale(frames)))
    config = ActorConfig(steps=steps)
    stages.train_policy(bundle, store, Cache(root=folder / "cache"), rows, config, (seed, "sft"), folder, label="sft")
    return bundle


def successes(pool: WorldPool, bundle: PolicyBundle, condition: str, seed: int, episodes: int) -> int:
    """Episodes that the policy wins on the evaluation seeds, given what `condition` makes of its inputs."""
    requests = [EpisodeRequest(index=i, seed=s) for i, s in enumerate(episode_seeds(seed, "evaluate", episodes))]
    player = Deceived(bundle=bundle, tamper=CONDITIONS[condition])
    label = f"{pool.world.task}, {condition}"
    played = pool.play(requests, player, execute=4, record=False, policy_version=0, progress=label)
    return sum(episode.succeeded for episode in played)


def print_table(rows: dict[str, dict[str, int]], count: int) -> None:
    """Conditions by task: success with its 95 % Wilson interval."""
    tasks = list(next(iter(rows.values())))
    print(f"\n{count} episodes a cell, success with 95 % Wilson interval\n")
    print("| the policy is given | " + " | ".join(tasks) + " |\n|---|" + "---|" * len(tasks))
    for condition, won in rows.items():
        cells = []
        for task in tasks:
            low, high = wilson_interval(won[task], count)
            cells.append(f"{won[task] / count:.0%} ({low:.0%} to {high:.0%})")
        print(f"| {condition} | " + " | ".join(cells) + " |")


def of_runs(runs: list[Path], episodes: int) -> None:
    won = {"as it is": {}, "black pictures": {}}
    for run in runs:
        config = from_plain(RunConfig, RunFolder(run).options())
        bundle = PolicyBundle.load(RunFolder(run).policy(config.rounds))
        with WorldPool(config.world, config.workers) as pool:
            for condition, cells in won.items():
                more = successes(pool, bundle, condition, config.seed, episodes)
                cells[config.world.task] = cells.get(config.world.task, 0) + more
    print_table(won, len(runs) * episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", help="finished runs of one task, instead of cloning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--demos", type=int, default=8, help="demonstrations of each task")
    parser.add_argument("--steps", type=int, default=600, help="gradient steps of cloning")
    parser.add_argument("--episodes", type=int, default=30, help="evaluation episodes of each seed, task and condition")
    arguments = parser.parse_args()
    if arguments.run:
        of_runs(arguments.run, arguments.episodes)
        return
    won = {condition: dict.fromkeys(TASKS, 0) for condition in CONDITIONS}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            bundle = clone(seed, arguments.demos, arguments.steps, Path(folder))
        for task in TASKS:
            with WorldPool(world(task), 2) as pool:
                for condition, cells in won.items():
                    cells[task] += successes(pool, bundle, condition, seed, arguments.episodes)
    print_table(won, len(arguments.seeds) * arguments.episodes)


if __name__ == "__main__":
    main()
