"""Tiny SmolVLA, pi0 and pi0.5 with random weights: LeRobot's own classes, made without any download."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

FAMILIES = ("smolvla", "pi0", "pi05")
SPECIAL = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
)
VOCABULARY = 512


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    words = [*SPECIAL, *(chr(i) for i in range(32, 127)), "\n"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
    )


def features(cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int) -> dict:
    seen = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for c, size in cameras.items()}
    return {
        "input_features": {**seen, "observation.state": PolicyFeature(FeatureType.STATE, (state_dim,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
    }


def _smolvlm_config() -> SmolVLMConfig:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "model_type": "llama"}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 64, "patch_size": 16}
    return SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=4, pad_token_id=0)


def smolvlm(folder: Path, config: SmolVLMConfig | None = None) -> Path:
    """The vision-language model that a SmolVLA is made from, as a local folder: config (by default a tiny one) and
    processor."""
    (config or _smolvlm_config()).save_pretrained(folder)
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokenizer(),
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=4,
    ).save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class PiSizes:
    """Of a pi0 or pi0.5, in LeRobot's words. It needs 8 heads of pi0's language model."""

    language: dict[str, int]
    expert: dict[str, int]
    vision: dict[str, int]


TINY_PI = PiSizes(
    language={"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 8, "num_kv_heads": 1, "head_dim": 16},
    expert={"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 8, "num_kv_heads": 1, "head_dim": 16},
    vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": 32, "patch_size": 8},
)


@contextmanager
def small_models(sizes: PiSizes = TINY_PI) -> Iterator[None]:
    """While it lasts, every new pi0 and pi0.5 has these sizes: by default 0.3 M parameters, not 3.6 billion."""

    def gemma(variant: str) -> SimpleNamespace:
        """Instead of `get_gemma_config`."""
        return SimpleNamespace(**(sizes.expert if "300m" in variant else sizes.language))

    def smaller(original: Callable, config: Any) -> Any:
        """Instead of the two constructors, which set some sizes themselves."""
        text = getattr(config, "text_config", config)
        text.vocab_size = VOCABULARY
        if (vision := getattr(config, "vision_config", None)) is not None:
            for name, size in sizes.vision.items():
                setattr(vision, name, size)
            vision.projection_dim = config.projection_dim = text.hidden_size
        return original(config)

    with ExitStack() as stack:
        for module in (modeling_pi0, modeling_pi05):
            stack.enter_context(patch.object(module, "get_gemma_config", gemma))
            for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
                stack.enter_context(patch.object(module, name, partial(smaller, getattr(module, name))))
        yield


def tiny_policy(
    family: str, folder: Path, cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int, chunk: int
) -> PreTrainedPolicy:
    """A policy with random weights; `folder` keeps what SmolVLA reads again whenever it is loaded. Pi needs
    `small_models`."""
    shared = features(cameras, state_dim, action_dim)
    shared |= {"chunk_size": chunk, "n_action_steps": chunk, "max_state_dim": 8, "max_action_dim": 8}
    shared |= {"device": "cpu", "push_to_hub": False}
    torch.manual_seed(0)
    if family == "smolvla":
        sizes = {"resize_imgs_with_padding": (64, 64), "num_vlm_layers": 2, "num_steps": 3}
        policy = SmolVLAPolicy(SmolVLAConfig(**shared, **sizes, vlm_model_name=str(smolvlm(folder / "smolvlm"))))
    else:
        kind, config = {"pi0": (PI0Policy, PI0Config), "pi05": (PI05Policy, PI05Config)}[family]
        sizes = {"image_resolution": (32, 32), "num_inference_steps": 3, "tokenizer_max_length": 64}
        policy = kind(config(**shared, **sizes))
    return policy.eval()


def processors(
    policy: PreTrainedPolicy, folder: Path, stats: dict[str, dict[str, torch.Tensor]]
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """A policy's own pre- and postprocessor, normalising by `stats`; `folder` keeps the tokenizer."""
    words = folder / "tokenizer"
    tokenizer().save_pretrained(words)

    def step(**options: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(**options | {"tokenizer_name": str(words)})

    module = import_module(f"lerobot.policies.{policy.name}.processor_{policy.name}")
    with patch.object(module, "TokenizerProcessorStep", step):
        return make_pre_post_processors(policy.config, dataset_stats=stats)


def tiny_checkpoint(
    family: str, folder: Path, cameras: dict[str, tuple[int, int]], stats: dict[str, dict[str, torch.Tensor]]
) -> Path:
    """A `pretrained_model/` folder as LeRobot saves it, its processors normalising by `stats`."""
    state_dim, action_dim = (len(stats[key]["mean"]) for key in ("observation.state", "action"))
    policy = tiny_policy(family, folder, cameras, state_dim, action_dim, chunk=6)
    out = folder / "pretrained_model"
    for part in (policy, *processors(policy, folder, stats)):
        part.save_pretrained(out)
    return out
