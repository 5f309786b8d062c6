"""Policies and critics on a GPU, simulated: fake tensors know their device, and refuse to mix with those of another."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

sys.path.insert(0, str(Path(__file__).parent))
import vlas

from aloe.policies import flow
from aloe.policies.bundle import PolicyBundle
from aloe.policies.recipe import ActorConfig
from aloe.policies.train import ActorRows, PolicyRows, actor_losses
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.distribution import ReturnDistribution
from aloe.value.fit import FitConfig

CAMERAS = {"top": (48, 64)}
H = 6


@contextmanager
def simulated_gpu() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        yield


def move(module: nn.Module) -> None:
    """What `.to("cuda")` does, which fake tensors do not."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, value in kind.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    kind[name] = nn.Parameter(there) if kind is part._parameters else there


@pytest.mark.parametrize("name", vlas.FAMILIES)
def test_policy_on_a_gpu_takes_and_gives_what_lies_on_the_cpu(name: str, tmp_path: Path) -> None:
    with vlas.small_models():
        policy = vlas.tiny_policy(name, tmp_path, CAMERAS, 5, 3, H)
    with simulated_gpu():
        move(policy)
        assert flow.device_of(policy).type == "cuda"
        inputs = {
            "observation.state": torch.randn(4, 5),
            "observation.language.tokens": torch.randint(8, 100, (4, 10)),
            "observation.language.attention_mask": torch.ones(4, 10, dtype=torch.bool),
        }
        data = PolicyRows(
            inputs=inputs,
            action=torch.randn(4, 3),
            chunk=np.zeros((4, H), np.int64),
            is_pad=np.zeros((4, H), bool),
            images=lambda rows: {"top": np.zeros((len(rows), 48, 64, 3), np.uint8)},
            device="cuda",
        )
        actor = ActorRows(rows=np.arange(4), weight=np.ones(4, np.float32))
        bundle = PolicyBundle(policy=policy, preprocessor=None, postprocessor=None)
        generator = torch.Generator().manual_seed(0)
        for loss in actor_losses(bundle, data, actor, np.arange(4), ActorConfig(accumulate=2), generator):
            assert loss.device.type == "cuda"
        batch = data.batch(np.arange(2))
        assert batch["observation.images.top"].device.type == "cuda", "pictures are put where the policy is"
        for result in (
            flow.sample_chunks(policy, batch, torch.randn(2, 2, H, 8)),
            flow.encode_images(policy, batch),
            flow.language_features(policy, batch),
        ):
            assert result.device.type == "cpu"


def test_critics_on_a_gpu_judge_what_lies_on_the_cpu() -> None:
    shape = ObservationShape(cameras=1, feature_dim=4, state_dim=2, language_dim=3, action_dim=2, horizon=2)
    critic = ChunkCritic(CriticConfig(critics=2, width=8, layers=1, heads=2), shape)
    with simulated_gpu():
        move(critic)
        seen = Observations(features=torch.randn(3, 1, 4), state=torch.randn(3, 2), language=torch.randn(3, 3))
        assert critic(seen, torch.randn(3, 2, 2)).device.type == "cuda"
        assert critic.of_samples(seen, torch.randn(3, 4, 2, 2)).device.type == "cuda"


def test_values_on_a_gpu_judge_what_lies_on_the_cpu() -> None:
    shape = ObservationShape(cameras=1, feature_dim=4, state_dim=2, language_dim=3, action_dim=2, horizon=0)
    network = ChunkCritic(CriticConfig(critics=1, width=8, layers=1, heads=2), shape, outputs=5)
    with simulated_gpu():
        move(network)
        state = ReturnDistribution(network, FitConfig(), bins=5)
        seen = Observations(features=torch.randn(3, 1, 4), state=torch.randn(3, 2), language=torch.randn(3, 3))
        logits = network(seen)
        assert F.cross_entropy(logits, state.bin_of(torch.randn(3))).device.type == "cuda"
        assert state.mean(logits).device.type == "cuda"
