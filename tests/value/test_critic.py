import pytest
import torch
from torch import Tensor

from aloe.losses import critic_loss
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape

SHAPE = ObservationShape(cameras=2, feature_dim=6, state_dim=4, language_dim=5, action_dim=3, horizon=4)


def make_critic(critics: int = 3, shape: ObservationShape = SHAPE) -> ChunkCritic:
    torch.manual_seed(0)
    return ChunkCritic(CriticConfig(critics=critics, width=16, layers=2, heads=2), shape)


def make_inputs(batch: int = 5, seed: int = 1) -> tuple[Observations, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    observations = Observations(features=random(batch, 2, 6), state=random(batch, 4), language=random(batch, 5))
    return observations, random(batch, 4, 3)


def changed(observations: Observations, **parts: Tensor) -> Observations:
    values = {name: getattr(observations, name) for name in ("features", "state", "language")}
    return Observations(**(values | parts))


def test_every_head_and_every_input_gets_gradients() -> None:
    critic = make_critic()
    observations, action = make_inputs()
    critic_loss(critic(observations, action), torch.zeros(5)).backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_each_critic_has_a_head_and_a_readout_of_its_own() -> None:
    critic = make_critic()
    q = critic(*make_inputs())
    assert q.shape == (5, 3)
    assert len({tuple(column.tolist()) for column in q.T}) == 3
    q[:, 1].sum().backward()
    # The loss of critic 1 does not reach the heads of the others.
    reached = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in critic.heads]
    assert reached == [False, True, False]


@pytest.mark.parametrize("part", ["features", "state", "language"])
def test_value_depends_on_every_part_of_the_observation(part: str) -> None:
    critic = make_critic()
    observations, action = make_inputs()
    before = critic(observations, action)
    blank = changed(observations, **{part: torch.zeros_like(getattr(observations, part))})
    assert ((critic(blank, action) - before).abs() > 1e-5).all()
    # A part that is another row's (an instruction, say) gives another value too.
    swapped = changed(observations, **{part: getattr(observations, part).roll(1, 0)})
    assert ((critic(swapped, action) - before).abs() > 1e-5).all()


@pytest.mark.parametrize("camera", [0, 1])
def test_value_depends_on_each_camera_and_which_is_which(camera: int) -> None:
    critic = make_critic()
    observations, action = make_inputs()
    before = critic(observations, action)
    features = observations.features.clone()
    features[:, camera] = 0
    assert ((critic(changed(observations, features=features), action) - before).abs() > 1e-6).all()
    exchanged = changed(observations, features=observations.features.flip(1))
    assert not torch.allclose(critic(exchanged, action), before, atol=1e-6)


@pytest.mark.parametrize("step", range(4))
def test_value_depends_on_every_action_of_the_chunk(step: int) -> None:
    critic = make_critic()
    observations, action = make_inputs()
    altered = action.clone()
    altered[:, step] += 1
    assert ((critic(observations, altered) - critic(observations, action)).abs() > 1e-5).all()


def test_value_depends_on_the_order_of_the_actions() -> None:
    critic = make_critic()
    observations, action = make_inputs()
    assert not torch.allclose(critic(observations, action.flip(1)), critic(observations, action), atol=1e-6)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    critic = make_critic()
    observations, action = make_inputs()
    first = Observations(
        features=observations.features[:1], state=observations.state[:1], language=observations.language[:1]
    )
    torch.testing.assert_close(critic(first, action[:1]), critic(observations, action)[:1])


@pytest.mark.parametrize("wrong", [(5, 3, 3), (5, 5, 3), (5, 4, 2)])
def test_chunk_of_another_shape_is_refused(wrong: tuple[int, ...]) -> None:
    observations, _ = make_inputs()
    with pytest.raises(ValueError, match=r"chunks of shape \(4, 3\)"):
        make_critic()(observations, torch.zeros(wrong))


def test_critic_of_chunks_wants_a_chunk_and_a_state_value_none() -> None:
    observations, action = make_inputs()
    with pytest.raises(ValueError, match="not None"):
        make_critic()(observations)
    shape = ObservationShape(cameras=2, feature_dim=6, state_dim=4, language_dim=5, action_dim=3, horizon=0)
    state_value = make_critic(shape=shape)
    assert state_value(observations).shape == (5, 3)
    with pytest.raises(ValueError, match="judges chunks"):
        state_value(observations, action)


def test_values_of_samples_are_those_of_one_call_each() -> None:
    critic = make_critic()
    observations, _ = make_inputs()
    actions = torch.randn(5, 7, 4, 3, generator=torch.Generator().manual_seed(2))
    together = critic.of_samples(observations, actions)
    assert together.shape == (5, 7, 3)
    for m in range(7):
        torch.testing.assert_close(together[:, m], critic(observations, actions[:, m]))


def test_values_are_the_same_in_training_and_in_evaluation() -> None:
    # PyTorch takes another, fused path through a transformer in evaluation; and there is no dropout.
    critic = make_critic()
    observations, action = make_inputs()
    training = critic(observations, action)
    critic.eval()
    with torch.no_grad():
        torch.testing.assert_close(critic(observations, action), training, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_readouts_are_those_of_the_whole_trunk(layers: int) -> None:
    torch.manual_seed(0)
    critic = ChunkCritic(CriticConfig(critics=3, width=16, layers=layers, heads=2), SHAPE)
    tokens = torch.randn(5, 3 + 2 + SHAPE.cameras + SHAPE.horizon, 16)
    torch.testing.assert_close(critic._read(tokens), critic.trunk(tokens)[:, :3])


@pytest.mark.parametrize("wrong", [{"critics": 0}, {"layers": 0}, {"width": 10, "heads": 4}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one|multiple of heads"):
        CriticConfig(**wrong)


def test_critics_with_separate_trunks_share_nothing() -> None:
    torch.manual_seed(0)
    config = CriticConfig(critics=3, width=16, layers=1, heads=2, trunks="separate")
    critic = ChunkCritic(config, SHAPE)
    q = critic(*make_inputs())
    assert q.shape == (5, 3)
    q[:, 1].sum().backward()
    reached = [any(p.grad is not None and p.grad.any() for p in member.parameters()) for member in critic.members]
    assert reached == [False, True, False]
