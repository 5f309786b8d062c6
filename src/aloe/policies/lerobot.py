"""SmolVLA, pi0 and pi0.5 as ALOE asks of them: the only file that knows the insides of these models.

Each is LeRobot's own class, untouched. What is here calls its parts in the order in which its own `forward` and
`sample_actions` do, so that losses and samples are the same for the same noise (tests/policies/test_lerobot.py). But the
mask is ours (pi0.5's own loss does not know padding), noise and time come from outside, and an observation is encoded once
for all of its M samples: the key-value cache of its pictures and words is made once and shared.

Noise is as wide as the model inside (`max_action_dim`), actions as wide as the robot's.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector, prepare_attention_masks_4d
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from aloe.policies.family import Batch, Part

Vla = SmolVLAPolicy | PI0Policy | PI05Policy
RESIZES = True
"""With their proportions kept, to what the tower was made for."""
GUIDED = False


def noise_dim(policy: Vla) -> int:
    """Width of a step's noise."""
    return policy.config.max_action_dim


def flow_residual(
    policy: Vla,
    batch: Batch,
    noise: Float[Tensor, "B H N"],
    time: Float[Tensor, "B"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H A"]:
    """Squared error of the velocity at the given noise and time, unreduced, without the padded widths."""
    seen, state = _observation(policy, batch)
    action = pad_vector(batch[ACTION], noise_dim(policy))
    losses = _model(policy).forward(*seen, *state, action, noise, time)
    return losses[..., : batch[ACTION].shape[-1]]


def sample_time(policy: Vla, count: int, generator: torch.Generator) -> Float[Tensor, "B"]:
    """Flow times as the policy's recipe draws them: offset + scale * Beta(a, 1), by the inverse of its distribution.

    Raises:
        ValueError: the config asks for another second parameter of the Beta distribution than 1.
    """
    alpha, beta, scale, offset = 1.5, 1.0, 0.999, 0.001  # SmolVLA's, which its config does not name
    if not isinstance(policy, SmolVLAPolicy):
        config = policy.config
        alpha, beta = config.time_sampling_beta_alpha, config.time_sampling_beta_beta
        scale, offset = config.time_sampling_scale, config.time_sampling_offset
    if beta != 1:
        raise ValueError(f"time_sampling_beta_beta is {beta}; ALOE draws flow times for 1 only")
    return offset + scale * torch.rand(count, generator=generator) ** (1 / alpha)


@torch.no_grad()
def sample_chunks(
    policy: Vla,
    batch: Batch,
    noise: Float[Tensor, "B M H N"],
    unconditional: Batch | None = None,
    guidance: float = 1.0,
) -> Float[Tensor, "B M H A"]:
    """M chunks for each observation, which is encoded once. Equal to `predict_action_chunk` for each of the M noises."""
    seen, state = _observation(policy, batch)
    model, encoder = _model(policy), _encoder(policy)
    if isinstance(policy, SmolVLAPolicy):
        if not policy.config.use_cache:
            raise ValueError(
                "this SmolVLA was saved with use_cache off; set it in its config.json, it changes no result"
            )
        embedded, is_known, is_causal = model.embed_prefix(*seen, state=state[0])
        mask = make_att_2d_masks(is_known, is_causal)
    else:
        embedded, is_known, is_causal = model.embed_prefix(*seen)
        mask = prepare_attention_masks_4d(make_att_2d_masks(is_known, is_causal))
        encoder.paligemma.model.language_model.config._attn_implementation = "eager"  # as `sample_actions` does
    _, cache = encoder.forward(
        attention_mask=mask,
        position_ids=torch.cumsum(is_known, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embedded, None],
        use_cache=True,
    )
    steps = policy.config.num_steps if isinstance(policy, SmolVLAPolicy) else policy.config.num_inference_steps
    velocity = partial(_velocity, policy, state, is_known, cache, noise.shape[1])
    chunks = euler_integrate(velocity, noise.flatten(0, 1), steps)
    action = policy.config.action_feature
    assert action is not None
    return chunks[..., : action.shape[0]].unflatten(0, noise.shape[:2])


def _velocity(
    policy: Vla,
    state: tuple[Tensor, ...],
    is_known: Bool[Tensor, "B P"],
    cache: DynamicCache,
    samples: int,
    x_t: Float[Tensor, "BM H N"],
    time: Float[Tensor, "BM"],
) -> Float[Tensor, "BM H N"]:
    """LeRobot's `denoise_step` for M samples of each observation as one sequence of M * H steps, none of which sees another
    sample. So keys and values of the observation lie in memory once, and are read once, for all of them.

    state: of the models that see it apart from the words. is_known: the prefix' tokens that are no padding.
    """
    model, encoder = _model(policy), _encoder(policy)
    if isinstance(policy, PI0Policy):
        embedded, is_step, is_causal, condition = model.embed_suffix(state[0].repeat_interleave(samples, 0), x_t, time)
    elif isinstance(policy, PI05Policy):
        embedded, is_step, is_causal, condition = model.embed_suffix(x_t, time)
    else:
        (embedded, is_step, is_causal), condition = model.embed_suffix(x_t, time), None
    rows, (length, width) = len(is_known), embedded.shape[1:]
    among = make_att_2d_masks(is_step, is_causal).unflatten(0, (rows, samples))
    apart = torch.eye(samples, dtype=torch.bool, device=x_t.device)[:, None, :, None]
    among = (among[:, :, :, None] & apart).reshape(rows, samples * length, samples * length)
    mask = torch.cat([is_known[:, None].expand(-1, samples * length, -1), among], 2)
    position = is_known.sum(-1)[:, None] + (torch.cumsum(is_step, 1) - 1).view(rows, -1)
    more: dict[str, Any] = {"use_cache": True}
    if not isinstance(policy, SmolVLAPolicy):
        mask = prepare_attention_masks_4d(mask)
        encoder.gemma_expert.model.config._attn_implementation = "eager"  # as `denoise_step` does
        time_only = None if condition is None else condition[::samples]  # the same for all samples
        more = {"use_cache": False, "adarms_cond": [None, time_only]}
    (_, seen), _ = encoder.forward(
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        inputs_embeds=[None, embedded.reshape(rows, -1, width)],
        **more,
    )
    cache.crop(is_known.shape[1])  # of what this step added
    return model.action_out_proj(seen.view(-1, length, width)[:, -x_t.shape[1] :].float())


def image_tokens(policy: Vla, batch: Batch, count: int) -> Float[Tensor, "B C T D"]:
    """What the vision tower and its projection make of each camera's picture, pooled to `count` tokens."""
    embed = _encoder(policy).embed_image
    images, _ = _images(policy, batch)
    seen = sum(key in batch for key in policy.config.image_features)  # beyond them come the empty ones
    return torch.stack([pool_tokens(embed(image).float(), count) for image in images[:seen]], 1)


def pool_tokens(tokens: Float[Tensor, "B N D"], count: int) -> Float[Tensor, "B T D"]:
    """Means of neighbouring tokens: over a grid where both numbers are squares, else along the sequence."""
    total = tokens.shape[1]
    side, wanted = math.isqrt(total), math.isqrt(count)
    if (side * side, wanted * wanted) == (total, count):
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(grid, wanted).flatten(2).transpose(1, 2)
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), count).transpose(1, 2)


def image_token_dim(policy: Vla) -> int:
    """D of `image_tokens`: the width of the language model."""
    return _token_embedding(policy).embedding_dim


def language_dim(policy: Vla) -> int:
    """L of `language_features`."""
    return image_token_dim(policy)


@torch.no_grad()
def language_features(policy: Vla, batch: Batch) -> Float[Tensor, "B L"]:
    """Mean of the embeddings of the prompt's tokens."""
    embedded = _token_embedding(policy)(batch[OBS_LANGUAGE_TOKENS]).float()
    is_word = batch[OBS_LANGUAGE_ATTENTION_MASK].to(embedded.dtype)[..., None]
    return (embedded * is_word).sum(1) / is_word.sum(1).clamp(min=1)


def vision_tower(policy: Vla) -> nn.ModuleList:
    """The tower and the projection of its output."""
    if isinstance(policy, SmolVLAPolicy):
        inner = _encoder(policy).get_vlm_model()
        return nn.ModuleList([inner.vision_model, inner.connector])
    inner = _encoder(policy).paligemma.model
    return nn.ModuleList([inner.vision_tower, inner.multi_modal_projector])


def choose_trained(policy: Vla, part: Part) -> None:
    """`preset` is what LeRobot froze when it made the policy. The expert has the projections of action, state, time."""
    model, encoder = _model(policy), _encoder(policy)
    flags = policy.config.freeze_vision_encoder, policy.config.train_expert_only
    # The flags also decide what stays in evaluation mode; `policy.config` is saved, and stays as it is.
    encoder.freeze_vision_encoder, encoder.train_expert_only = flags if part == "preset" else (part == "expert",) * 2
    policy.requires_grad_(True)
    if isinstance(policy, SmolVLAPolicy):
        if part == "preset":
            encoder.set_requires_grad()
            model.set_requires_grad()
        elif part == "expert":
            encoder.vlm.requires_grad_(False)
        heads = [encoder.vlm.lm_head]
    else:
        encoder._set_requires_grad()
        heads = [encoder.paligemma.lm_head, encoder.gemma_expert.lm_head]
    for head in heads:  # which predict words: no action depends on them
        if head.weight is not _token_embedding(policy).weight:
            head.requires_grad_(False)


def checkpoint_activations(policy: Vla, on: bool) -> None:
    """LeRobot's own for pi0 and pi0.5. SmolVLA has none: its layers' attention and feed-forward parts get it here, which
    hold nearly all that a layer keeps; their methods are wrapped on the instance, and no class changes."""
    model, encoder = _model(policy), _encoder(policy)
    if not isinstance(policy, SmolVLAPolicy):
        on = on or policy.config.gradient_checkpointing
        model.gradient_checkpointing_enable() if on else model.gradient_checkpointing_disable()
        return
    inner = encoder.get_vlm_model()
    layers = [*inner.text_model.layers, *encoder.lm_expert.layers]
    parts = [(layer.mlp, "forward") for layer in layers]
    parts += [(encoder, "forward_attn_layer"), (encoder, "forward_cross_attn_layer")]
    parts += [(layer, "forward") for layer in inner.vision_model.encoder.layers]
    for module, name in parts:
        module.__dict__.pop(name, None)
        if on:
            setattr(module, name, partial(checkpoint, getattr(module, name), use_reentrant=False))


def improvement_rate(policy: Vla) -> float:
    """The policy's own preset."""
    return policy.config.get_optimizer_preset().lr


def _model(policy: Vla) -> Any:
    """LeRobot's types say less than its code."""
    return policy.model


def _encoder(policy: Vla) -> Any:
    """Tower and language model, with the action expert beside them."""
    model = _model(policy)
    return model.vlm_with_expert if isinstance(policy, SmolVLAPolicy) else model.paligemma_with_expert


def _token_embedding(policy: Vla) -> nn.Embedding:
    if isinstance(policy, SmolVLAPolicy):
        return _encoder(policy).get_vlm_model().text_model.get_input_embeddings()
    return _encoder(policy).paligemma.model.language_model.get_input_embeddings()


def _images(policy: Vla, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures as the tower expects them, and which of them are real."""
    return policy.prepare_images(batch) if isinstance(policy, SmolVLAPolicy) else policy._preprocess_images(batch)


def _observation(policy: Vla, batch: Batch) -> tuple[tuple, tuple]:
    """(images, their masks, tokens, their mask), and (state,) for the models that see it apart from the words."""
    if isinstance(policy, SmolVLAPolicy) and policy.config.adapt_to_pi_aloha:
        raise ValueError("ALOE does not train a SmolVLA with adapt_to_pi_aloha")
    seen = (*_images(policy, batch), batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])
    return seen, () if isinstance(policy, PI05Policy) else (policy.prepare_state(batch),)
