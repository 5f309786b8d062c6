"""Critic steps a second: target, gradient step and Polyak step, on random data of the quickstart's shape, whole chunks
of 8 actions judged.

.venv/bin/python benchmarks/critic.py
"""

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from _common import per_second, print_header, print_row

from aloe.experience.schema import Frames
from aloe.experience.windows import WindowConfig, make_windows
from aloe.types import Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.evaluate import evaluate_windows
from aloe.value.fit import CriticData, CriticState, FitConfig, critic_step

SHAPE = ObservationShape(cameras=2, feature_dim=96, state_dim=4, language_dim=384, action_dim=4, horizon=8)
SIZES = {
    "default": (CriticConfig(), FitConfig()),
    "paper": (
        CriticConfig(critics=2, width=256, layers=6, heads=8),
        FitConfig(batch_size=256, target_samples=4, learning_rate=3e-5),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    frames: int = 4000
    """N: steps in the store."""
    episode: int = 40
    """T: steps of each episode."""
    samples: int = 8
    """M: chunks of the policy at every frame."""
    seconds: float = 10
    """How long to measure each cell."""
    threads: int = 1
    """Threads of torch."""


def random_frames(config: Config, rng: np.random.Generator) -> Frames:
    """Episodes of one length, every other one a success, the first of them a demonstration."""
    count = config.frames // config.episode * config.episode
    episode, step = np.divmod(np.arange(count), config.episode)
    last = step == config.episode - 1
    action = rng.uniform(-1, 1, (count, SHAPE.action_dim)).astype(np.float32)
    return Frames(
        state=rng.standard_normal((count, SHAPE.state_dim)).astype(np.float32),
        action=action,
        proposed_action=action,
        source=np.where(episode == 0, Source.DEMO, Source.POLICY).astype(np.int64),
        policy_version=np.zeros(count, np.int64),
        reward=-np.ones(count, np.float32),
        terminated=last,
        truncated=np.zeros(count, bool),
        success=last & (episode % 2 == 0),
        seed=episode,
        episode=episode,
        step=step,
        task_index=np.zeros(count, np.int64),
        tasks=["press the button"],
    )


def random_data(config: Config) -> CriticData:
    rng = np.random.default_rng(0)
    frames = random_frames(config, rng)
    count = len(frames)
    features = rng.standard_normal((count, SHAPE.cameras, SHAPE.feature_dim)).astype(np.float16)
    language = torch.from_numpy(rng.standard_normal((1, SHAPE.language_dim)).astype(np.float32)).expand(count, -1)
    state = torch.from_numpy(frames.state)

    def observations(frames: np.ndarray) -> Observations:
        index = torch.from_numpy(frames)
        return Observations(
            features=torch.from_numpy(features[frames]).float(), state=state[index], language=language[index]
        )

    samples = rng.uniform(-1, 1, (count, config.samples, SHAPE.horizon, SHAPE.action_dim)).astype(np.float32)
    return CriticData(
        windows=make_windows(frames, WindowConfig(horizon=SHAPE.horizon), scale=config.episode),
        observations=observations,
        action=torch.from_numpy(frames.action),
        samples=samples,
    )


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    data, generator = random_data(config), torch.Generator().manual_seed(0)
    print_header(
        f"Critics on {len(data.windows)} windows; C={SHAPE.cameras}, D={SHAPE.feature_dim}, S={SHAPE.state_dim}, "
        f"L={SHAPE.language_dim}, A={SHAPE.action_dim}, H={SHAPE.horizon}, M={config.samples}",
        ["size", "parameters", "batch", "steps/s", "ms a step", "windows/s of advantages"],
    )
    for name, (critic_config, fit) in SIZES.items():
        state = CriticState(ChunkCritic(critic_config, SHAPE), fit)

        def step(state: CriticState = state, fit: FitConfig = fit) -> None:
            batch = torch.randint(len(data.windows), (fit.batch_size,), generator=generator).numpy()
            critic_step(state, data, batch, fit, WindowConfig().discount, fit.learning_rate, generator)

        steps = per_second(step, config.seconds)
        some = random_data(Config(frames=512, episode=32, samples=config.samples))
        advantages = per_second(lambda: evaluate_windows(state.critic, some, fit), config.seconds / 2, warm_up=1)  # noqa: B023
        parameters = sum(parameter.numel() for parameter in state.critic.parameters())
        print_row(
            [
                name,
                f"{parameters / 1e6:.2f} M",
                fit.batch_size,
                f"{steps:.2f}",
                f"{1000 / steps:.0f}",
                f"{advantages * len(some.windows):.0f}",
            ]
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
