"""The actor's trainer: which windows count, what is frozen, what is refused."""

import numpy as np
import pytest
import torch

from aloe.policies.flow import flow_residual
from aloe.policies.recipe import ActorConfig
from aloe.policies.train import ActorRows, PolicyRows, actor_losses, train_actor

FRAMES = 10
BRIEF = ActorConfig(steps=3, batch_size=4)


def problem(bundle, seed: int = 0) -> PolicyRows:
    """A store of ten frames as the policy sees it."""
    rng = np.random.default_rng(seed)
    pictures = {camera: rng.integers(0, 256, (FRAMES, 16, 16, 3), np.uint8) for camera in ("top", "wrist")}
    state = rng.standard_normal((FRAMES, 5)).astype(np.float32)
    action = rng.standard_normal((FRAMES, 3)).astype(np.float32)
    wanted = np.arange(FRAMES)[:, None] + np.arange(4)
    return PolicyRows.of(
        bundle,
        state,
        action,
        (np.minimum(wanted, FRAMES - 1), wanted >= FRAMES),
        ["push"] * FRAMES,
        lambda rows: {camera: p[rows] for camera, p in pictures.items()},
    )


def windows(weight: list[float] | None = None, rows: list[int] | None = None) -> ActorRows:
    """A window at every frame of one episode of ten."""
    weights = np.array([1.0] * FRAMES if weight is None else weight, np.float32)
    chosen = np.flatnonzero(weights > 0) if rows is None else np.array(rows)
    return ActorRows(rows=chosen, weight=weights)


def weights_of(bundle) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in bundle.policy.state_dict().items()}


def trained(make, data_change=lambda data: None, **options) -> dict[str, bytes]:
    bundle = make()
    data = problem(bundle)
    data_change(data)
    train_actor(bundle, data, options.pop("actor", windows()), options.pop("config", BRIEF), (0, "test"), **options)
    return weights_of(bundle)


def test_windows_that_are_left_out_have_no_influence(make):
    some = windows(rows=[0, 1, 2])  # which see the actions of frames 0 to 5
    expected = trained(make, actor=some)

    def change(data: PolicyRows) -> None:
        data.action[6:] += 100
        data.inputs["observation.state"][3:] += 100

    assert trained(make, change, actor=some) == expected
    assert trained(make, lambda data: data.action[:6].add_(100), actor=some) != expected


def test_a_window_of_weight_0_in_the_batch_has_no_influence(make):
    weight = [1.0] * 5 + [0.0] * 5
    every = windows(weight, rows=list(range(FRAMES)))
    config = ActorConfig(steps=3, batch_size=32)

    def change(data: PolicyRows) -> None:
        data.action[8:] += 100  # only windows from 5 on reach so far
        data.inputs["observation.state"][5:] += 100

    assert trained(make, change, actor=every, config=config) == trained(make, actor=every, config=config)


def test_padding_of_a_window_has_no_influence(make):
    last = windows(rows=[FRAMES - 1])  # one action, and three that repeat it as padding

    def without_padding(data: PolicyRows) -> None:
        data.is_pad[:] = False

    assert trained(make, actor=last) != trained(make, without_padding, actor=last)
    bundle = make()
    data, rows = problem(bundle), last.rows
    (loss,) = actor_losses(bundle, data, last, rows, BRIEF, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 3, generator=generator)
    time = torch.rand(1, generator=generator)
    batch = data.batch(rows) | {"action": data.action[torch.full((1, 4), 9)]}
    torch.testing.assert_close(loss, flow_residual(bundle.policy, batch, noise, time)[0, 0].mean())


def test_weights_count_by_their_ratio_within_the_batch(make):
    bundle = make()
    data = problem(bundle)
    weight = [3.0, 1.0] + [0.0] * 8
    rows = np.array([0, 1])
    (loss,) = actor_losses(bundle, data, windows(weight), rows, BRIEF, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 3, generator=generator)
    time = torch.rand(2, generator=generator)
    action = data.action[torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])]
    residual = flow_residual(bundle.policy, data.batch(rows) | {"action": action}, noise, time).mean((1, 2))
    # 3 and 1 have the mean 2: the windows count 1.5 and 0.5.
    torch.testing.assert_close(loss, (1.5 * residual[0] + 0.5 * residual[1]) / 2)
    tens = windows([10 * w for w in weight])
    (tenfold,) = actor_losses(bundle, data, tens, rows, BRIEF, torch.Generator().manual_seed(0))
    torch.testing.assert_close(tenfold, loss)


def test_a_frozen_tower_stays_as_it_was_to_the_bit(make):
    before = weights_of(make())
    frozen = trained(make, config=ActorConfig(steps=3, batch_size=4, train="expert"))
    tower = [name for name in before if name.startswith("vision_tower")]
    assert tower
    assert [name for name in tower if frozen[name] != before[name]] == []
    assert frozen["flow_head.enter.weight"] != before["flow_head.enter.weight"]
    unfrozen = trained(make)
    assert [name for name in tower if unfrozen[name] == before[name]] == []
    assert unfrozen == trained(make, config=ActorConfig(steps=3, batch_size=4, train="all"))


def test_training_is_a_function_of_its_key(make):
    results = []
    for key, global_seed in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(global_seed)
        bundle = make()
        train_actor(bundle, problem(bundle), windows(), BRIEF, (key, "sft"))
        results.append(weights_of(bundle))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_what_a_policy_counts_along_is_the_same_after_a_stop(make, tmp_path):
    def counting():
        bundle = make()
        bundle.policy.fuse.append(torch.nn.BatchNorm1d(16))
        return bundle

    config, checkpoint = ActorConfig(steps=6, batch_size=4, save_every=2), tmp_path / "half.safetensors"
    whole = counting()
    train_actor(whole, problem(whole), windows(), config, (0,))

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    stopped, resumed = counting(), counting()
    with pytest.raises(KeyboardInterrupt):
        train_actor(stopped, problem(stopped), windows(), config, (0,), checkpoint=checkpoint, log=stop)
    train_actor(resumed, problem(resumed), windows(), config, (0,), checkpoint=checkpoint)
    assert whole.policy.state_dict()["fuse.4.num_batches_tracked"] == 6
    assert weights_of(resumed) == weights_of(whole)


def test_training_lowers_the_loss_on_what_it_was_shown(make):
    bundle, losses = make(width=64), []
    data = problem(bundle)
    config = ActorConfig(steps=201, batch_size=32, warmup=5, learning_rate=3e-3)
    train_actor(bundle, data, windows(), config, (0, "sft"), log=lambda step, values: losses.append(values["loss"]))
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    assert not bundle.policy.training


def test_training_refuses_what_it_cannot_learn_from(make):
    bundle = make()
    data = problem(bundle)
    with pytest.raises(ValueError, match="nothing for the actor to learn from"):
        train_actor(bundle, data, windows(rows=[]), BRIEF, (0,))
    five = (np.zeros((FRAMES, 5), np.int64), np.zeros((FRAMES, 5), bool))
    with pytest.raises(ValueError, match="the policy predicts chunks of 4 actions, not of 5"):
        PolicyRows.of(bundle, np.zeros((FRAMES, 5)), np.zeros((FRAMES, 3)), five, ["push"] * FRAMES, data.images)
