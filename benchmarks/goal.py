"""Can a vision tower like the policy's learn from pictures where the goal is: as Meta-World draws it, as in shared scenes?

    .venv/bin/python benchmarks/goal.py

Tower and head see the start of episodes, shifted at random as in cloning, and say the goal's position. The error is the
mean distance on scenes that they have not seen, beside that of always saying the same; reaching asks for 5 cm.
"""

from dataclasses import dataclass

import torch
import tyro
from _common import print_header, print_row
from torch import Tensor, nn

from aloe.policies.tiny_vla.configuration_tiny_vla import TinyVLAConfig
from aloe.policies.tiny_vla.modeling_tiny_vla import VisionTower, random_shift
from aloe.worlds.metaworld import MetaWorld, MetaWorldConfig

HELD_OUT = 400


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    also: tuple[tuple[str, ...], ...] = ((), ("pick-place-v3",))
    """What shares the scene with reach-v3: nothing (Meta-World's own drawing), or a task."""
    scenes: tuple[int, ...] = (60, 160)
    """Starts to learn from."""
    image_size: int = 64
    steps: int = 1000
    """Of batches of 64."""
    seeds: tuple[int, ...] = (0, 1)


def starts(world: MetaWorldConfig, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, C, 3, h, w) in [0, 1] and goals (count, 3) in metres of episodes that have just begun."""
    seen = MetaWorld(world)
    known = MetaWorld(MetaWorldConfig(task=world.task, also=world.also, observations="state"))
    pictures, goals = [], []
    for seed in range(count):
        seen.reset(seed=seed)
        pictures.append(torch.stack([torch.from_numpy(p.copy()) for p in seen.pictures().values()]))
        goals.append(torch.from_numpy(known.reset(seed=seed)[0]["observation.state"][-3:]))
    seen.close()
    return torch.stack(pictures).movedim(-1, 2) / 255, torch.stack(goals)


def error(pictures: Tensor, goals: Tensor, config: Config, seed: int) -> float:
    """Mean distance in centimetres on the first `HELD_OUT` starts, after learning from the others."""
    torch.manual_seed(seed)
    policy = TinyVLAConfig()
    tower = VisionTower(policy.vision_width, policy.keypoints)
    features = pictures.shape[1] * tower.feature_dim
    head = nn.Sequential(nn.Linear(features, 256), nn.LayerNorm(256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
    net = nn.ModuleList([tower, head, nn.Linear(256, 3)])
    optimizer = torch.optim.AdamW(net.parameters(), policy.learning_rate, weight_decay=policy.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    mean, std = goals[HELD_OUT:].mean(0), goals[HELD_OUT:].std(0)

    def predict(images: Tensor) -> Tensor:
        hidden = images.flatten(0, 1)
        for part in (tower, nn.Unflatten(0, images.shape[:2]), nn.Flatten(), head, net[2]):
            hidden = part(hidden)
        return hidden

    for _ in range(config.steps):
        rows = torch.randint(HELD_OUT, len(goals), (64,))
        guess = predict(random_shift(pictures[rows], policy.image_shift))
        optimizer.zero_grad()
        nn.functional.mse_loss(guess, (goals[rows] - mean) / std).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        guess = predict(pictures[:HELD_OUT]) * std + mean
    return 100 * float((guess - goals[:HELD_OUT]).norm(dim=1).mean())


def main(config: Config) -> None:
    torch.set_num_threads(1)
    print_header(
        f"error of the goal's position in cm, pictures of {config.image_size} px, seeds {config.seeds}",
        ["reach-v3 beside", "the same always", *(f"{count} scenes" for count in config.scenes)],
    )
    for also in config.also:
        world = MetaWorldConfig(task="reach-v3", also=also, image_size=config.image_size)
        pictures, goals = starts(world, HELD_OUT + max(config.scenes))
        constant = 100 * float((goals[:HELD_OUT] - goals[HELD_OUT:].mean(0)).norm(dim=1).mean())
        errors = [
            [error(pictures[: HELD_OUT + count], goals[: HELD_OUT + count], config, seed) for seed in config.seeds]
            for count in config.scenes
        ]
        cells = [", ".join(f"{e:.1f}" for e in row) for row in errors]
        print_row([" ".join(also) or "nothing", f"{constant:.1f}", *cells])


if __name__ == "__main__":
    main(tyro.cli(Config))
