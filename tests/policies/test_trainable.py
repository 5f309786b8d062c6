"""Which parameters of LeRobot's VLAs train, and how; a LoRA-trained policy is a plain one afterwards. Tiny weights."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.policies.factory import get_policy_class

sys.path.insert(0, str(Path(__file__).parent))
import vlas

from aloe.policies.bundle import PolicyBundle
from aloe.policies.flow import sample_chunks
from aloe.policies.memory import Memory, kept_bytes
from aloe.policies.recipe import ActorConfig, recipe
from aloe.policies.train import ActorRows, PolicyRows, actor_losses, train_actor
from aloe.policies.trainable import trainable

CAMERAS = {"top": (48, 64)}
FRAMES, H = 9, 6
PROJECTIONS = ("model.state_proj", "model.action_", "model.time_mlp")
EXPERT = {"smolvla": "model.vlm_with_expert.lm_expert.", "pi0": "model.paligemma_with_expert.gemma_expert.model."}
EXPERT["pi05"] = EXPERT["pi0"]
TOWER = {"smolvla": "vision_model", "pi0": "vision_tower", "pi05": "vision_tower"}


@pytest.fixture(scope="module", params=vlas.FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    stats = {
        key: {"mean": torch.zeros(dim), "std": torch.ones(dim), "q01": -2 * torch.ones(dim), "q99": 2 * torch.ones(dim)}
        for key, dim in (("observation.state", 5), ("action", 3))
    }
    with vlas.small_models():
        yield vlas.tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param), CAMERAS, stats)


@pytest.fixture
def bundle(checkpoint: Path) -> PolicyBundle:
    return PolicyBundle.load(checkpoint)


def problem(bundle: PolicyBundle) -> tuple[PolicyRows, ActorRows]:
    """An episode of nine frames, a window at each."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (FRAMES, 48, 64, 3), np.uint8)
    state = rng.standard_normal((FRAMES, 5)).astype(np.float32)
    action = rng.standard_normal((FRAMES, 3)).astype(np.float32)
    wanted = np.arange(FRAMES)[:, None] + np.arange(H)
    chunks = (np.minimum(wanted, FRAMES - 1), wanted >= FRAMES)
    rows = PolicyRows.of(bundle, state, action, chunks, ["push"] * FRAMES, lambda index: {"top": pictures[index]})
    return rows, ActorRows(rows=np.arange(FRAMES), weight=rng.uniform(0.5, 2, FRAMES).astype(np.float32))


def chunks(bundle: PolicyBundle) -> torch.Tensor:
    noise = torch.randn(2, 2, H, 8, generator=torch.Generator().manual_seed(0))
    return sample_chunks(bundle.policy, problem(bundle)[0].batch(np.array([0, 5])), noise)


def trained_names(bundle: PolicyBundle, train: str) -> set[str]:
    with trainable(bundle.policy, ActorConfig(train=train, lora_rank=4), (0,)) as policy:
        return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_each_choice_trains_what_it_says(bundle: PolicyBundle) -> None:
    family = bundle.policy.name
    every = {name for name, _ in bundle.policy.named_parameters()}
    expert = {name for name in every if name.startswith((EXPERT[family], *PROJECTIONS))}
    assert trained_names(bundle, "expert") == expert
    # The heads that predict words have no part in any action.
    assert trained_names(bundle, "all") == {name for name in every if "lm_head" not in name}
    # SmolVLA's config freezes all but the expert, pi0's and pi0.5's freezes nothing.
    assert trained_names(bundle, "preset") == trained_names(bundle, "expert" if family == "smolvla" else "all")
    bundle.policy.config.train_expert_only = True
    assert trained_names(bundle, "preset") == expert
    adapters = trained_names(bundle, "lora")
    assert adapters
    assert all("lora_" in name and name.startswith((EXPERT[family], *PROJECTIONS)) for name in adapters)
    assert {name for name, _ in bundle.policy.named_parameters()} == every


def test_what_is_frozen_stays_in_evaluation_mode(bundle: PolicyBundle) -> None:
    tower = next(module for name, module in bundle.policy.named_modules() if name.endswith(TOWER[bundle.policy.name]))
    for train, trains in (("expert", False), ("all", True), ("lora", False)):
        with trainable(bundle.policy, ActorConfig(train=train, lora_rank=4), (0,)) as policy:
            assert policy.training
            assert tower.training == trains
        assert not bundle.policy.training
        left = {name for name, parameter in bundle.policy.named_parameters() if parameter.requires_grad}
        assert left == trained_names(bundle, "preset")


def test_a_batch_may_mix_instructions_with_and_without_a_condition_of_any_length(bundle: PolicyBundle) -> None:
    """SmolVLA pads words to the longest of a call."""
    rng = np.random.default_rng(0)
    state, action = np.ones((4, 5), np.float32), rng.standard_normal((4, 3)).astype(np.float32)  # pi0.5 reads the state
    chunks, words = (np.zeros((4, H), np.int64), np.zeros((4, H), bool)), [". Advantage: positive, and more of it"] * 4
    pictures = np.zeros((4, 48, 64, 3), np.uint8)

    def seen(condition: list[str] | None) -> PolicyRows:
        images = lambda index: {"top": pictures[index]}  # noqa: E731
        return PolicyRows.of(bundle, state, action, chunks, ["push"] * 4, images, condition)

    rows = seen(words)
    mixed = rows.batch(np.arange(4), torch.tensor([False, True, False, True]))
    tokens = mixed["observation.language.tokens"]
    assert (tokens[0] == tokens[2]).all()
    assert (tokens[1] == tokens[3]).all()
    assert (tokens[0] != tokens[1]).any()
    torch.testing.assert_close(rows.action, seen(None).action)


def test_training_changes_the_chosen_parameters_alone(bundle: PolicyBundle, checkpoint: Path) -> None:
    before = {name: value.clone() for name, value in bundle.policy.state_dict().items()}
    train_actor(bundle, *problem(bundle), ActorConfig(steps=2, batch_size=4, train="expert"), (0,))
    changed = {name for name, value in bundle.policy.state_dict().items() if (value != before[name]).any()}
    assert any(name.startswith(EXPERT[bundle.policy.name]) for name in changed)
    assert all(name.startswith((EXPERT[bundle.policy.name], *PROJECTIONS)) for name in changed)
    whole = PolicyBundle.load(checkpoint)
    train_actor(whole, *problem(whole), ActorConfig(steps=2, batch_size=4, train="all"), (0,))
    changed = {name for name, value in whole.policy.state_dict().items() if (value != before[name]).any()}
    assert any(TOWER[bundle.policy.name] in name for name in changed)


def test_merged_adapters_are_the_same_policy_in_plain_weights(
    bundle: PolicyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, before = set(bundle.policy.state_dict()), chunks(bundle)
    with trainable(bundle.policy, ActorConfig(train="lora", lora_rank=4), (0,)) as policy:
        torch.testing.assert_close(chunks(bundle), before)  # new adapters add nothing
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        adapted = chunks(bundle)
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(chunks(bundle), adapted, rtol=1e-4, atol=1e-5)
    assert set(bundle.policy.state_dict()) == names
    bundle.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["use_peft"], config["pretrained_path"]) == (False, None)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it would fail
    theirs = get_policy_class(bundle.policy.name).from_pretrained(tmp_path, strict=True).eval()
    batch = problem(bundle)[0].batch(np.array([0]))
    noise = torch.randn(1, H, 8, generator=torch.Generator().manual_seed(2))
    expected = theirs.predict_action_chunk(dict(batch), noise=noise)
    torch.testing.assert_close(sample_chunks(bundle.policy, batch, noise[:, None])[:, 0], expected, rtol=0, atol=0)


def test_resumed_adapters_end_as_uninterrupted_ones(
    bundle: PolicyBundle, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ActorConfig(steps=4, batch_size=4, train="lora", lora_rank=2, save_every=2, learning_rate=1e-2)
    assert train_actor(bundle, *problem(bundle), config, (0,)) is None  # no later phase can go on from the moments
    cut, taken = PolicyBundle.load(checkpoint), tmp_path / "checkpoint.safetensors"

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_actor(cut, *problem(cut), config, (0,), checkpoint=taken, log=stop)
    assert taken.stat().st_size < (checkpoint / "model.safetensors").stat().st_size / 2  # adapters alone
    resumed = PolicyBundle.load(checkpoint)
    train_actor(resumed, *problem(resumed), config, (0,), checkpoint=taken)
    for name, value in bundle.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value), name
    assert (chunks(bundle) != chunks(PolicyBundle.load(checkpoint))).any()


def test_a_policy_without_places_for_adapters_is_named(make) -> None:
    with pytest.raises(ValueError, match="tiny_vla names no place for LoRA adapters; give --train all"):
        trained_names(make(), "lora")


def test_optimizer_follows_the_policys_preset_unless_told_otherwise(bundle: PolicyBundle) -> None:
    usual = recipe(bundle.policy, ActorConfig(steps=300), improving=True)
    small = bundle.policy.name == "smolvla"
    peak = 1e-4 if small else 2.5e-5
    assert (usual.betas, usual.eps) == ((0.9, 0.95), 1e-8)
    assert (usual.weight_decay, usual.clip_norm) == ((1e-10, 10) if small else (0.01, 1))
    # LeRobot's schedule has 1000 steps of warm-up in 30,000; of 300 steps that leaves 10: 1/11 of the peak at the first.
    assert usual.rate(0) == pytest.approx(peak / 11)
    # From the peak down to 2.5e-6, half a cosine: midway lies the mean of the two.
    assert usual.rate(150) == pytest.approx((peak + 2.5e-6) / 2)
    assert usual.rate(300) == pytest.approx(2.5e-6)
    group = usual.optimizer(bundle.policy).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == (usual.betas, usual.weight_decay)
    told = ActorConfig(steps=300, learning_rate=2e-3, warmup=100, betas=(0.8, 0.9), weight_decay=0.5, clip_norm=3.0)
    mine = recipe(bundle.policy, told, improving=True)
    assert (mine.betas, mine.weight_decay, mine.clip_norm) == ((0.8, 0.9), 0.5, 3.0)
    assert mine.rate(0) == pytest.approx(2e-3 / 101)
    assert mine.rate(150) / usual.rate(150) == pytest.approx(2e-3 / peak)


def test_tiny_vla_is_improved_at_half_its_rate(make) -> None:
    policy = make().policy
    cloning, improving = (recipe(policy, ActorConfig(steps=1000), improving=further) for further in (False, True))
    assert (cloning.betas, cloning.eps, cloning.weight_decay, cloning.clip_norm) == ((0.9, 0.999), 1e-8, 1e-4, 1.0)
    # 50 steps of warm-up, then half a cosine from 1 to 0.05 over all 1000 steps.
    assert cloning.rate(0) == pytest.approx(1e-3 / 50)
    assert cloning.rate(500) == pytest.approx(1e-3 * (0.05 + 0.95 / 2))
    assert improving.rate(500) == pytest.approx(5e-4 * (0.05 + 0.95 / 2))


def gradients(bundle: PolicyBundle, **options) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one batch of seven windows, some of them padded; the loss, too."""
    data, actor = problem(bundle)
    config = ActorConfig(batch_size=7, train="all", **options)
    with trainable(bundle.policy, config, (0,)) as policy:
        policy.zero_grad()
        total = 0.0
        for loss in actor_losses(bundle, data, actor, np.arange(2, 9), config, torch.Generator().manual_seed(0)):
            loss.backward()
            total += loss.item()
        return total, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float) -> None:
    """By the largest entry of each gradient; one of a key's bias is 0 but for rounding, as softmax does not see it."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= rtol * value.abs().max() + 1e-7, name


def test_a_batch_in_parts_has_the_gradient_of_the_whole(bundle: PolicyBundle) -> None:
    whole, expected = gradients(bundle)
    # Windows at frames 2 to 8 of nine, in parts of 3, 2 and 2: with 17, 7 and 3 valid actions no two of them count alike.
    total, found = gradients(bundle, accumulate=3)
    assert total == pytest.approx(whole, rel=1e-5)
    assert_close(found, expected, 1e-3)


def test_autocast_computes_in_bfloat16_and_keeps_the_weights(bundle: PolicyBundle) -> None:
    whole, expected = gradients(bundle)
    total, found = gradients(bundle, dtype="bfloat16")
    assert total != whole  # bfloat16 has 8 bits: 0.4 % a number
    assert total == pytest.approx(whole, rel=0.02)
    flat, of_bfloat16 = (torch.cat([g[name].flatten() for name in expected]) for g in (expected, found))
    assert torch.cosine_similarity(flat, of_bfloat16, 0) > 0.98
    assert {value.dtype for value in (*bundle.policy.parameters(), *found.values())} == {torch.float32}


def test_checkpointing_computes_again_and_gives_the_same_gradients(bundle: PolicyBundle) -> None:
    calls: dict[str, int] = {}
    for name, module in bundle.policy.named_modules():
        if name.endswith("layers.0.mlp"):  # of the tower, the language model and the expert
            first = module.fc1 if "vision" in name else module.up_proj
            first.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    _, expected = gradients(bundle)
    assert set(calls.values()) == {1}
    assert len(calls) == 3
    calls.clear()
    _, found = gradients(bundle, checkpointing=True)
    assert min(calls.values()) == 2  # forward, and again for the backward pass
    assert len(calls) == 3
    assert_close(found, expected, 1e-5)
    calls.clear()
    gradients(bundle)
    assert set(calls.values()) == {1}  # and off again


def test_tiny_vla_has_no_checkpointing(make) -> None:
    with (
        pytest.raises(ValueError, match=r"tiny_vla has no activation checkpointing.*leave --checkpointing out"),
        trainable(make().policy, ActorConfig(checkpointing=True), (0,)),
    ):
        pass


def test_a_batch_has_no_more_parts_than_windows() -> None:
    with pytest.raises(ValueError, match="a batch of 4 windows has no 5 parts"):
        ActorConfig(batch_size=4, accumulate=5)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"train": "lora"}, {"dtype": "bfloat16"}])
def test_memory_of_two_small_passes_tells_that_of_a_larger_one(bundle: PolicyBundle, options: dict) -> None:
    data, actor = problem(bundle)
    config = ActorConfig(**{"train": "all", **options})
    with trainable(bundle.policy, config, (0,)) as policy:

        def kept(windows: int) -> int:
            rows, generator = np.resize(actor.rows, windows), torch.Generator().manual_seed(0)
            return kept_bytes(lambda: list(actor_losses(bundle, data, actor, rows, config, generator)), policy)

        trained = [p for p in policy.parameters() if p.requires_grad]
        memory = Memory.of(trained, kept(2), kept(4))
        found = memory.needed(12) - memory.gradients - memory.moments
        assert found == pytest.approx(kept(12), rel=0.02)
