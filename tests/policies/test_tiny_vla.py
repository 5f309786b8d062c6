"""tiny_vla is a LeRobot policy like any other, and its flow runs from noise at t = 1 to actions at t = 0."""

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from torch.utils.data import DataLoader

from aloe.experience.store import ExperienceStore
from aloe.policies.flow import flow_residual
from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy
from aloe.policies.tiny_vla.modeling_tiny_vla import LANGUAGE_EMBEDDING, random_shift
from aloe.types import NO_POLICY, Episode, Source


def noise_like(batch: dict, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch["action"].shape, generator=torch.Generator().manual_seed(seed))


def test_lerobots_factory_loads_it_with_bit_equal_chunks(bundle, observe, tmp_path):
    bundle.save(tmp_path / "pretrained_model")
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(tmp_path / "pretrained_model")
    assert config.type == "tiny_vla"
    policy = get_policy_class(config.type).from_pretrained(tmp_path / "pretrained_model", strict=True)
    pre, post = make_pre_post_processors(config, pretrained_path=str(tmp_path / "pretrained_model"))
    raw = observe()
    mine, loaded = bundle.preprocessor(dict(raw)), pre(dict(raw))
    noise = noise_like(raw)
    expected = bundle.postprocessor(bundle.policy.predict_action_chunk(mine, noise=noise))
    chunks = post(policy.predict_action_chunk(loaded, noise=noise))
    assert torch.equal(chunks, expected)
    assert chunks.shape == (3, 4, 3)
    assert not torch.equal(chunks, post(policy.predict_action_chunk(loaded, noise=noise_like(raw, 2))))


def test_processors_normalise_by_the_statistics_and_back(bundle, observe):
    raw = observe()
    batch = bundle.preprocessor(dict(raw))
    torch.testing.assert_close(batch["observation.state"], (raw["observation.state"] - 0.5) / 2)
    torch.testing.assert_close(batch["action"][..., 2], (raw["action"][..., 2] - 0.3) / 4)
    torch.testing.assert_close(bundle.postprocessor(batch["action"]), raw["action"])
    torch.testing.assert_close(batch["observation.images.top"], raw["observation.images.top"])
    torch.testing.assert_close(batch[LANGUAGE_EMBEDDING].square().mean(-1), torch.ones(3))


def test_a_batch_without_an_instruction_or_a_camera_is_refused(bundle, observe):
    raw = observe()
    with pytest.raises(ValueError, match="must carry `task`"):
        bundle.preprocessor({key: value for key, value in raw.items() if key != "task"})
    batch = bundle.preprocessor(raw)
    del batch["observation.images.wrist"]
    with pytest.raises(ValueError, match=r"lacks observation\.images\.wrist"):
        bundle.policy.predict_action_chunk(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_action_steps": 5}, "must lie in 1..chunk_size"),
        ({"n_action_steps": 0}, "must lie in 1..chunk_size"),
    ],
)
def test_more_steps_than_a_chunk_has_are_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("state", "observation.state"), ("action", "a feature named action")],
)
def test_a_config_without_a_needed_feature_is_refused(bundle, missing, message):
    whole = bundle.policy.config
    config = TinyVLAConfig(
        device="cpu",
        input_features={k: v for k, v in whole.input_features.items() if missing not in k},
        output_features={k: v for k, v in whole.output_features.items() if missing not in k},
    )
    with pytest.raises(ValueError, match=message):
        TinyVLAPolicy(config)


class TellsVelocity(torch.nn.Module):
    """In place of the flow head: a velocity that is known, and the times at which it was asked."""

    def __init__(self, velocity) -> None:
        super().__init__()
        self.function, self.times = velocity, []

    def forward(self, x_t, time, prefix):
        self.times.append(time[0].item())
        return self.function(x_t, time)


def test_the_loss_is_zero_at_the_velocity_noise_minus_action(bundle, observe):
    batch = bundle.preprocessor(observe())
    noise, time = noise_like(batch), torch.tensor([0.1, 0.5, 0.9])
    bundle.policy.flow_head = TellsVelocity(lambda x_t, t: noise - batch["action"])
    assert flow_residual(bundle.policy, batch, noise, time).abs().max() == 0
    # The opposite velocity is off by 2 (noise - action) everywhere.
    bundle.policy.flow_head = TellsVelocity(lambda x_t, t: batch["action"] - noise)
    expected = 4 * (noise - batch["action"]) ** 2
    torch.testing.assert_close(flow_residual(bundle.policy, batch, noise, time), expected)


def test_the_head_is_shown_noise_at_time_1_and_the_action_at_time_0(bundle, observe):
    batch = bundle.preprocessor(observe())
    noise, shown = noise_like(batch), []
    bundle.policy.flow_head = TellsVelocity(lambda x_t, t: shown.append(x_t) or x_t)
    for t in (1.0, 0.0, 0.25):
        flow_residual(bundle.policy, batch, noise, torch.full((3,), t))
    torch.testing.assert_close(shown[0], noise)
    torch.testing.assert_close(shown[1], batch["action"])
    torch.testing.assert_close(shown[2], 0.25 * noise + 0.75 * batch["action"])


def test_sampling_goes_from_time_1_to_0_in_euler_steps(bundle, observe):
    batch = bundle.preprocessor(observe())
    noise = noise_like(batch)
    head = bundle.policy.flow_head = TellsVelocity(lambda x_t, t: noise - batch["action"])
    # The true velocity is constant along a straight path, so three steps of 1/3 arrive exactly.
    torch.testing.assert_close(bundle.policy.predict_action_chunk(batch, noise=noise), batch["action"])
    assert head.times == pytest.approx([1, 2 / 3, 1 / 3])
    # dx/dt = x from 1 to 0 in three Euler steps: (1 - 1/3)^3 = 8/27 of the noise.
    bundle.policy.flow_head = TellsVelocity(lambda x_t, t: x_t)
    torch.testing.assert_close(bundle.policy.predict_action_chunk(batch, noise=noise), noise * 8 / 27)


def test_forward_is_the_masked_mean_of_the_residual(bundle, observe):
    batch = bundle.preprocessor(observe())
    noise, time = noise_like(batch), torch.tensor([0.1, 0.5, 0.9])
    is_pad = torch.tensor([[False] * 4, [False, False, True, True], [False, True, True, True]])
    losses, _ = bundle.policy.forward(batch | {"action_is_pad": is_pad}, noise=noise, time=time, reduction="none")
    residual = flow_residual(bundle.policy, batch, noise, time)
    torch.testing.assert_close(
        losses, torch.stack([residual[0].mean(), residual[1, :2].mean(), residual[2, :1].mean()])
    )
    mean, _ = bundle.policy.forward(batch | {"action_is_pad": is_pad}, noise=noise, time=time)
    torch.testing.assert_close(mean, losses.mean())
    whole, _ = bundle.policy.forward(batch, noise=noise, time=time, reduction="none")
    torch.testing.assert_close(whole, residual.mean((1, 2)))


def test_padding_has_no_gradient(bundle, observe):
    batch = bundle.preprocessor(observe())
    is_pad = torch.tensor([[False, False, True, True]] * 3)
    noise = noise_like(batch).requires_grad_()
    head = bundle.policy.flow_head = TellsVelocity(lambda x_t, t: x_t)  # each action by itself, none mixed with another
    loss, _ = bundle.policy.forward(batch | {"action_is_pad": is_pad}, noise=noise, time=torch.full((3,), 0.5))
    loss.backward()
    assert head.times == [0.5]
    assert (noise.grad[:, :2] != 0).all()
    assert (noise.grad[:, 2:] == 0).all()


def test_select_action_plays_n_action_steps_before_it_predicts_again(bundle, observe):
    batch = bundle.preprocessor(observe(rows=1))
    noises = [noise_like(batch, seed) for seed in range(4)]
    chunks = [bundle.policy.predict_action_chunk(batch, noise=noise) for noise in noises]
    bundle.policy.reset()
    played = [bundle.policy.select_action(batch, noise=noise) for noise in noises]
    # n_action_steps = 2: the noise of the second and the fourth call is never looked at
    expected = [chunks[0][:, 0], chunks[0][:, 1], chunks[2][:, 0], chunks[2][:, 1]]
    assert all(torch.equal(a, b) for a, b in zip(played, expected, strict=True))
    bundle.policy.select_action(batch, noise=noises[0])
    bundle.policy.reset()
    assert torch.equal(bundle.policy.select_action(batch, noise=noises[1]), chunks[1][:, 0])


def test_random_shift_draws_from_its_generator_alone():
    images = torch.rand(5, 2, 3, 8, 8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = random_shift(images, 2, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(random_shift(images, 2, torch.Generator().manual_seed(7)), first)
    assert not torch.equal(random_shift(images, 2, torch.Generator().manual_seed(8)), first)


def test_random_shift_moves_a_picture_and_repeats_its_edge():
    # Column x of the picture has brightness x; moved by dx it has x + dx, cut to 0..4. Rows add 10 a row.
    x, y = torch.arange(5.0), 10 * torch.arange(5.0)
    picture = (y[:, None] + x).expand(40, 1, 3, 5, 5)
    moved = random_shift(picture, 1, torch.Generator().manual_seed(0))
    seen = set()
    for image in moved[:, 0, 0]:
        dx, dy = image[2, 2].item() % 10 - 2, image[2, 2].item() // 10 - 2
        seen.add((dx, dy))
        assert torch.equal(image, (10 * (torch.arange(5.0) + dy).clamp(0, 4))[:, None] + (x + dx).clamp(0, 4))
    assert seen == {(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}


def test_pictures_are_shifted_in_training_alone(bundle, observe):
    batch = bundle.preprocessor(observe())
    policy, generator = bundle.policy, torch.Generator()
    still = policy.encode_images(batch, generator.manual_seed(0))
    assert torch.equal(still, policy.encode_images(batch, generator.manual_seed(1)))
    policy.train()
    moved = policy.encode_images(batch, generator.manual_seed(0))
    assert torch.equal(moved, policy.encode_images(batch, generator.manual_seed(0)))
    assert not torch.equal(moved, still)
    policy.predict_action_chunk(batch)
    assert not policy.training


def test_lerobots_training_loop_turns_on_a_store(make, tmp_path):
    """The pieces of `lerobot-train`: dataset with chunks of actions, loader, preprocessor, forward, backward."""
    size = {"top": (16, 16), "wrist": (16, 16)}
    store = ExperienceStore.create(tmp_path / "store", cameras=size, state_dim=5, action_dim=3, fps=20)
    steps, generator = 6, torch.Generator().manual_seed(0)
    last = torch.arange(steps).eq(steps - 1).numpy()
    for seed in range(2):
        store.append(
            Episode(
                task="push the puck to the goal",
                seed=seed,
                images={
                    c: torch.randint(0, 256, (steps, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
                    for c in size
                },
                state=torch.randn(steps, 5, generator=generator).numpy(),
                action=torch.randn(steps, 3, generator=generator).numpy(),
                proposed_action=torch.full((steps, 3), float("nan")).numpy(),
                source=torch.full((steps,), int(Source.DEMO)).numpy(),
                policy_version=torch.full((steps,), NO_POLICY).numpy(),
                reward=(last - 1).astype("float32"),
                terminated=last,
                truncated=last & False,
                success=last,
            )
        )
    bundle = make()
    chunk = [index / store.fps for index in bundle.policy.config.action_delta_indices]
    dataset = LeRobotDataset("local/store", root=tmp_path / "store", delta_timestamps={"action": chunk})
    assert len(dataset) == 12
    assert dataset[4]["action_is_pad"].tolist() == [False, False, True, True]
    policy = bundle.policy.train()
    optimizer = bundle.policy.config.get_optimizer_preset().build(policy.get_optim_params())
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    (batch,) = DataLoader(dataset, batch_size=12)
    batch = bundle.preprocessor(batch)
    assert batch["action"].shape == (12, 4, 3)
    loss, _ = policy.forward(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
    optimizer.step()
    assert any(not torch.equal(before[name], value) for name, value in policy.state_dict().items())
