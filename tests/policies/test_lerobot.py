"""What ALOE computes with LeRobot's VLAs is what these compute themselves: tiny random weights, equal noise."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import vlas

from aloe.policies import lerobot as vla

CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
STATE, ACTION, H, N = 5, 3, 6, 8


@pytest.fixture(scope="module", params=vlas.FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreTrainedPolicy]:
    with vlas.small_models():
        yield vlas.tiny_policy(request.param, tmp_path_factory.mktemp("vla"), CAMERAS, STATE, ACTION, H)


def batch_of(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """As the preprocessor leaves it; every second instruction is shorter."""
    generator = torch.Generator().manual_seed(seed)
    is_word = torch.ones(rows, 10, dtype=torch.bool)
    is_word[1::2, 6:] = False
    return {
        **{f"observation.images.{c}": torch.rand(rows, 3, h, w, generator=generator) for c, (h, w) in CAMERAS.items()},
        "observation.state": torch.randn(rows, STATE, generator=generator),
        "observation.language.tokens": torch.randint(8, 100, (rows, 10), generator=generator),
        "observation.language.attention_mask": is_word,
        "action": torch.randn(rows, H, ACTION, generator=generator),
    }


def test_loss_without_a_mask_is_the_policys_own(policy: PreTrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(3)
    noise, time = torch.randn(3, H, N), torch.rand(3)
    # pi0 and pi0.5 draw noise and time themselves; SmolVLA does where it is given none.
    monkeypatch.setattr(policy.model, "sample_noise", lambda shape, device: noise)
    monkeypatch.setattr(policy.model, "sample_time", lambda count, device: time)
    residual = vla.flow_residual(policy, batch, noise, time)
    assert residual.shape == (3, H, ACTION)
    each, _ = policy.forward(dict(batch), reduction="none")
    torch.testing.assert_close(residual.mean((1, 2)), each, rtol=0, atol=0)
    residual.mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())


@pytest.mark.parametrize("samples", [1, 8])
def test_samples_are_what_the_policy_predicts_for_each_noise(policy: PreTrainedPolicy, samples: int) -> None:
    batch = {key: value for key, value in batch_of(2).items() if key != "action"}
    noise = torch.randn(2, samples, H, N, generator=torch.Generator().manual_seed(1))
    chunks = vla.sample_chunks(policy, batch, noise)
    assert chunks.shape == (2, samples, H, ACTION)
    for m in range(samples):
        policy.reset()
        expected = policy.predict_action_chunk(dict(batch), noise=noise[:, m])
        # The same sums in batches of another size: equal but for the last bits.
        torch.testing.assert_close(chunks[:, m], expected, rtol=1e-5, atol=1e-6)
    if samples > 1:
        assert (chunks[:, 0] - chunks[:, 1]).abs().max() > 1e-3


def test_observation_is_encoded_once_for_all_samples(policy: PreTrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, rows = vla._encoder(policy), []
    original = encoder.embed_image
    monkeypatch.setattr(encoder, "embed_image", lambda image: rows.append(len(image)) or original(image))
    vla.sample_chunks(policy, batch_of(2), torch.randn(2, 8, H, N))
    assert rows == [2, 2]  # two cameras, two observations


def test_image_tokens_are_means_over_the_towers_grid(policy: PreTrainedPolicy) -> None:
    batch = batch_of(2)
    dim = vla.image_token_dim(policy)
    one, four = (vla.image_tokens(policy, batch, count) for count in (1, 4))
    assert one.shape == (2, 2, 1, dim)
    assert four.shape == (2, 2, 4, dim)
    torch.testing.assert_close(four.mean(2, keepdim=True), one)  # an even grid, so that quarters weigh alike
    changed = {**batch, "observation.images.wrist": batch["observation.images.wrist"].flip(-1)}
    moved = (vla.image_tokens(policy, changed, 1) - one).abs().amax((0, 2, 3))
    assert moved[0] == 0
    assert moved[1] > 0


def test_pooling_keeps_neighbours_together() -> None:
    # A 4 x 4 grid of the numbers 0 to 15: the upper left quarter is 0, 1, 4, 5.
    tokens = torch.arange(16.0)[None, :, None]
    assert vla.pool_tokens(tokens, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert vla.pool_tokens(tokens, 2).flatten().tolist() == [3.5, 11.5]  # no square: along the sequence


def test_language_features_tell_words_apart_and_ignore_padding(policy: PreTrainedPolicy) -> None:
    batch = batch_of(2)
    features = vla.language_features(policy, batch)
    assert features.shape == (2, vla.image_token_dim(policy))
    tokens = batch["observation.language.tokens"].clone()
    tokens[1, 6:] = 9  # padding
    torch.testing.assert_close(
        vla.language_features(policy, {**batch, "observation.language.tokens": tokens}), features
    )
    tokens[1, 5] = 7
    assert (vla.language_features(policy, {**batch, "observation.language.tokens": tokens}) - features)[
        1
    ].abs().max() > 0


def test_flow_times_follow_the_recipe(policy: PreTrainedPolicy) -> None:
    times = vla.sample_time(policy, 200_000, torch.Generator().manual_seed(0))
    # Beta(1.5, 1) has the mean 0.6 and the distribution t^1.5; times are 0.001 + 0.999 of it.
    assert times.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.002)
    assert (times < 0.001 + 0.999 * 0.5).double().mean().item() == pytest.approx(0.5**1.5, abs=0.004)
