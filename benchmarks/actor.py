"""Actor steps a second of tiny_vla, with and without its vision tower, and chunks that it samples.

.venv/bin/python benchmarks/actor.py
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import tyro
from _common import per_second, print_header, print_row
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from aloe.policies.bundle import PolicyBundle
from aloe.policies.flow import IMAGES, sample_chunks
from aloe.policies.recipe import ActorConfig
from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy
from aloe.policies.train import ActorRows, PolicyRows, train_actor

S, A, H = 4, 4, 8


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    frames: int = 1000
    """N: steps in the store, in memory."""
    cameras: int = 2
    image_size: int = 64
    batch_size: int = 64
    samples: int = 8
    """M: chunks for each observation."""
    seconds: float = 10
    """How long to measure each row."""
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    """Threads of torch."""


def new_bundle(config: Config) -> PolicyBundle:
    size = (3, config.image_size, config.image_size)
    policy_config = TinyVLAConfig(
        device="cpu",
        push_to_hub=False,
        chunk_size=H,
        input_features={
            **{IMAGES + str(c): PolicyFeature(FeatureType.VISUAL, size) for c in range(config.cameras)},
            "observation.state": PolicyFeature(FeatureType.STATE, (S,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (A,))},
    )
    torch.manual_seed(0)
    stats = {"observation.state": S, "action": A}
    pre, post = make_pre_post_processors(
        policy_config, dataset_stats={k: {"mean": torch.zeros(d), "std": torch.ones(d)} for k, d in stats.items()}
    )
    return PolicyBundle(policy=TinyVLAPolicy(policy_config), preprocessor=pre, postprocessor=post)


def random_rows(bundle: PolicyBundle, config: Config) -> tuple[PolicyRows, ActorRows]:
    rng, count, size = np.random.default_rng(0), config.frames, config.image_size
    images = {str(c): rng.integers(0, 256, (count, size, size, 3), np.uint8) for c in range(config.cameras)}
    rows = PolicyRows.of(
        bundle,
        rng.standard_normal((count, S)).astype(np.float32),
        rng.standard_normal((count, A)).astype(np.float32),
        (np.minimum(np.arange(count)[:, None] + np.arange(H), count - 1), np.zeros((count, H), bool)),
        ["press the button"] * count,
        lambda frames: {camera: pictures[frames] for camera, pictures in images.items()},
    )
    return rows, ActorRows(rows=np.arange(count), weight=rng.uniform(0.1, 2, count).astype(np.float32))


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    bundle = new_bundle(config)
    bundle.policy.to(config.device)
    rows, actor = random_rows(bundle, config)
    parameters = sum(parameter.numel() for parameter in bundle.policy.parameters())
    print_header(
        f"tiny_vla, {parameters / 1e6:.2f} M parameters, {config.cameras} cameras of {config.image_size} px, H={H}, "
        f"batch {config.batch_size}, on {config.device}",
        ["what", "per second", "ms"],
    )
    steps = 10
    for train in ("all", "expert"):
        fit = ActorConfig(steps=steps, batch_size=config.batch_size, train=train)
        train_actor(bundle, rows, actor, replace(fit, steps=2), (0, "warm-up"))
        rate = steps * per_second(lambda: train_actor(bundle, rows, actor, fit, (0, "actor")), config.seconds, 0)  # noqa: B023
        print_row([f"actor steps, {train} trained", f"{rate:.1f}", f"{1000 / rate:.0f}"])

    noise = torch.randn(config.batch_size, config.samples, H, A)
    frames = np.arange(config.batch_size)
    rate = config.batch_size * per_second(
        lambda: sample_chunks(bundle.policy, rows.batch(frames), noise), config.seconds
    )
    print_row([f"observations with M = {config.samples} chunks each", f"{rate:.0f}", f"{1000 / rate:.2f}"])
    print_row(["chunks", f"{rate * config.samples:.0f}", f"{1000 / rate / config.samples:.3f}"])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
