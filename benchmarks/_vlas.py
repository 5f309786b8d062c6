"""Real VLAs for the benchmarks: LeRobot's own classes with random weights, small ones or as large as they come."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from transformers import SmolVLMConfig

from aloe.policies.bundle import PolicyBundle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "policies"))
import vlas

Family = Literal["smolvla", "pi0", "pi05"]
Size = Literal["tiny", "full"]
CAMERAS: tuple[str, ...] = ("top", "wrist")
STATE, ACTION = 6, 6
CHUNK: dict[Size, int] = {"tiny": 12, "full": 50}
CAMERA: dict[Size, tuple[int, int]] = {"tiny": (120, 160), "full": (480, 640)}
"""(h, w) of what is recorded."""


def smolvlm_config(size: Size) -> SmolVLMConfig:
    """Of the model that SmolVLA is made from; its tokenizer is not here, ours has one token a letter.

    Tiny is full with every width divided by 8, depths and sequences by 4, and so many heads the fewer, so that what
    pictures cost beside actions, and attention beside the rest, stays in proportion.
    """
    if size == "full":
        text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "vocab_size": 49280}
        text |= {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64}
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        vision |= {"image_size": 512, "patch_size": 16}
    else:
        text = {"hidden_size": 120, "intermediate_size": 320, "num_hidden_layers": 8, "vocab_size": 6160}
        text |= {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 40}
        vision = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 2}
        vision |= {"image_size": 256, "patch_size": 16}
    parts = {"text_config": text | {"model_type": "llama"}, "vision_config": vision, "scale_factor": 4}
    return SmolVLMConfig.from_dict(parts | {"image_token_id": 4, "pad_token_id": 0})


PI = vlas.PiSizes(
    language={"width": 256, "depth": 4, "mlp_dim": 2048, "num_heads": 8, "num_kv_heads": 1, "head_dim": 32},
    expert={"width": 128, "depth": 4, "mlp_dim": 512, "num_heads": 8, "num_kv_heads": 1, "head_dim": 32},
    vision={"hidden_size": 144, "intermediate_size": 538, "num_hidden_layers": 7, "num_attention_heads": 2}
    | {"image_size": 112, "patch_size": 14},
)
"""A tiny pi0 or pi0.5, divided in the same way; only the 8 heads have to be so many."""


@contextmanager
def random_vla(family: Family, size: Size, folder: Path) -> Iterator[PolicyBundle]:
    """A policy with LeRobot's usual ten flow steps. `folder` has to outlive it; tiny ones of the pi families can be loaded
    again only while this lasts."""
    shared = vlas.features(dict.fromkeys(CAMERAS, CAMERA[size]), STATE, ACTION)
    shared |= {"chunk_size": CHUNK[size], "n_action_steps": CHUNK[size], "device": "cpu", "push_to_hub": False}
    with vlas.small_models(PI) if size == "tiny" else nullcontext():
        torch.manual_seed(0)
        policy = _policy(family, size, folder, shared)
        numbers = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
        stats = {
            key: {name: torch.full((width,), value) for name, value in numbers.items()}
            for key, width in (("observation.state", STATE), ("action", ACTION))
        }
        pre, post = vlas.processors(policy, folder, stats)
        yield PolicyBundle(policy=policy.eval(), preprocessor=pre, postprocessor=post)


def _policy(family: Family, size: Size, folder: Path, shared: dict[str, Any]) -> PreTrainedPolicy:
    tiny = size == "tiny"
    if family == "smolvla":
        sizes = {"resize_imgs_with_padding": (256, 256), "num_vlm_layers": 4, "tokenizer_max_length": 12}
        vlm = str(vlas.smolvlm(folder / "smolvlm", smolvlm_config(size)))
        return SmolVLAPolicy(SmolVLAConfig(**shared, **(sizes if tiny else {}), vlm_model_name=vlm))
    kind, config = {"pi0": (vlas.PI0Policy, vlas.PI0Config), "pi05": (vlas.PI05Policy, vlas.PI05Config)}[family]
    sizes = {"image_resolution": (112, 112), "tokenizer_max_length": 50 if family == "pi05" else 12}
    return kind(config(**shared, **(sizes if tiny else {})))
