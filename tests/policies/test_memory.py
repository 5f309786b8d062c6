"""The estimate of training's memory, by hand; what is refused, and what is said then."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aloe.policies import train
from aloe.policies.bundle import PolicyBundle
from aloe.policies.flow import weights_key
from aloe.policies.memory import GIB, Memory, free_memory, kept_bytes, remedy
from aloe.policies.recipe import ActorConfig
from aloe.policies.train import ActorRows, PolicyRows, check_memory, train_actor
from aloe.training import save_state

# 2 GiB of gradients and 4 of moments; a pass keeps 1 GiB, and half a GiB for each window.
MEMORY = Memory(gradients=2 * GIB, moments=4 * GIB, constant=1 * GIB, per_window=GIB / 2)


def four_frames(bundle: PolicyBundle) -> PolicyRows:
    """A store of zeros."""
    return PolicyRows.of(
        bundle,
        np.zeros((4, 5), np.float32),
        np.zeros((4, 3), np.float32),
        (np.zeros((4, 4), np.int64), np.zeros((4, 4), bool)),
        ["push"] * 4,
        lambda rows: dict.fromkeys(("top", "wrist"), np.zeros((len(rows), 16, 16, 3), np.uint8)),
    )


def test_parameters_and_two_passes_tell_the_memory_of_every_batch() -> None:
    # 100 numbers of 4 bytes. Two windows keep 900 bytes, four 1300: 200 a window, and 500 whatever the size.
    memory = Memory.of([nn.Parameter(torch.zeros(60)), nn.Parameter(torch.zeros(40))], 900, 1300)
    assert memory == Memory(gradients=400, moments=800, constant=500, per_window=200)
    assert memory.needed(10) == 400 + 800 + 500 + 10 * 200


def test_what_fits_needs_no_remedy() -> None:
    config = ActorConfig(batch_size=16)  # 7 GiB and 16 windows of a half: 15 GiB
    assert remedy(MEMORY, config, 15 * GIB, on_gpu=True) is None
    assert remedy(MEMORY, config, 14.9 * GIB, on_gpu=True) is not None


def test_remedy_names_what_helps_and_is_not_on_yet() -> None:
    config = ActorConfig(batch_size=16)
    # 9.6 GiB leave 2.6 for windows: five at once, so four parts of at most four.
    said = remedy(MEMORY, config, 9.6 * GIB, on_gpu=True)
    assert said == (
        "training would take 15.0 GiB beside the weights (gradients 2.0, optimizer 4.0, a pass of 16 windows 9.0), and "
        "9.6 are free; give --accumulate 4 or --checkpointing or --dtype bfloat16"
    )
    on = ActorConfig(batch_size=16, accumulate=2, checkpointing=True, dtype="bfloat16")
    assert remedy(MEMORY, on, 9.6 * GIB, on_gpu=True).endswith("give --accumulate 4")
    assert "bfloat16" not in remedy(MEMORY, config, 9.6 * GIB, on_gpu=False)  # slower on a CPU
    # 5 GiB do not hold what is kept for each trained number.
    assert remedy(MEMORY, config, 5 * GIB, on_gpu=True).endswith("give --train expert or --train lora")
    expert = ActorConfig(batch_size=16, train="expert")
    assert remedy(MEMORY, expert, 5 * GIB, on_gpu=False).endswith("give --train lora")
    nothing = ActorConfig(batch_size=1, train="lora")
    assert remedy(MEMORY, nothing, 5 * GIB, on_gpu=False).endswith("give a larger machine")


def test_memory_is_looked_at_before_an_earlier_phases_moments_take_some(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, order = make(), []
    data = four_frames(bundle)
    actor, config = ActorRows(rows=np.arange(4), weight=np.ones(4, np.float32)), ActorConfig(steps=1, batch_size=4)
    optimizer = train_actor(bundle, data, actor, config, (0,))
    assert optimizer is not None
    save_state(tmp_path / "optimizer.safetensors", {}, {"optimizer": optimizer}, 1)
    for name in ("check_memory", "load_state"):
        real = getattr(train, name)
        monkeypatch.setattr(train, name, lambda *a, name=name, real=real: order.append(name) or real(*a))
    train_actor(bundle, data, actor, config, (0,), optimizer_file=tmp_path / "optimizer.safetensors")
    assert order == ["check_memory", "load_state"]


def test_looking_at_memory_leaves_a_policy_with_running_statistics_as_it_was(make) -> None:
    bundle, passes = make(), []
    tower = bundle.policy.vision_tower
    tower.register_buffer("seen", torch.zeros(()))
    tower.register_forward_hook(lambda module, *_: passes.append(module.seen.add_(1)) and None)
    before = weights_key(bundle.policy)
    data = four_frames(bundle)
    check_memory(bundle, data, ActorConfig(steps=1, batch_size=4))
    assert passes
    assert weights_key(bundle.policy) == before


def test_bytes_of_a_pass_are_those_that_live_at_once() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(3)))
    seen = torch.zeros(5, 8)  # 160 bytes, which were there before
    # Six results of 5 x 8 numbers: the backward pass asks for those of the sigmoids, which are also the next inputs; a
    # linear layer's own dies once its sigmoid has read it. At most three and one are alive at once.
    assert kept_bytes(lambda: layers(seen), layers) == 4 * 160

    def again() -> torch.Tensor:
        return checkpoint(layers[2], checkpoint(layers[1], layers[0](seen), use_reentrant=False), use_reentrant=False)

    assert kept_bytes(again, layers) <= kept_bytes(lambda: layers(seen), layers)
    frozen = layers.requires_grad_(False)
    assert kept_bytes(lambda: frozen(seen), frozen) < 4 * 160


def test_free_memory_is_what_the_machine_says() -> None:
    assert 2**24 < free_memory(torch.device("cpu")) < 2**50


def test_training_says_what_it_takes_and_what_cannot_fit_is_refused_before_it_starts(
    make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make()
    data = four_frames(bundle)
    actor = ActorRows(rows=np.arange(4), weight=np.ones(4, np.float32))
    monkeypatch.setattr(train, "WORTH_SAYING", 0)
    train_actor(bundle, data, actor, ActorConfig(steps=1, batch_size=4), (0,), label="improve")
    assert "improve: training takes about 0.0 GiB beside the weights (gradients 0.0," in capsys.readouterr().err
    monkeypatch.setattr(train, "free_memory", lambda device: 1000.0)
    before = {name: value.clone() for name, value in bundle.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"training would take .* beside the weights .*0\.0 are free; give --train"):
        train_actor(bundle, data, actor, ActorConfig(steps=2, batch_size=4), (0,))
    assert all(torch.equal(value, before[name]) for name, value in bundle.policy.state_dict().items())
