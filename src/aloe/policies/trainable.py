"""Which parameters of a policy train, LoRA adapters among them. Afterwards the policy is as plain as before."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from aloe.policies.flow import family
from aloe.policies.recipe import ActorConfig
from aloe.training import generator_for


@contextmanager
def trainable(policy: PreTrainedPolicy, config: ActorConfig, key: tuple[int | str, ...]) -> Iterator[PreTrainedPolicy]:
    """While it lasts, the policy is in training mode and the chosen parameters train. Then LoRA adapters are merged into
    the weights, and everything is frozen or not, and kept for the backward pass or not, as the policy's own config says.

    key: decides the first weights of the adapters.

    Raises:
        ValueError: the policy has no place for adapters, or no activation checkpointing.
    """
    kind = family(policy)
    kind.choose_trained(policy, "expert" if config.train == "lora" else config.train)
    if config.checkpointing:
        kind.checkpoint_activations(policy, True)
    adapted = _with_adapters(policy, config.lora_rank, key) if config.train == "lora" else None
    policy.train()
    try:
        yield policy
    finally:
        if adapted is not None:
            adapted.merge_and_unload()  # in place: what stays are the policy's own modules
            policy.config.use_peft = False  # LeRobot would look for adapters beside the weights
        if config.checkpointing:
            kind.checkpoint_activations(policy, False)
        kind.choose_trained(policy, "preset")
        policy.eval()


def _with_adapters(policy: PreTrainedPolicy, rank: int, key: tuple[int | str, ...]) -> Any:
    """LeRobot's own wrapping, at the places that the policy names."""
    if policy._get_default_peft_targets() is None:
        raise ValueError(f"{policy.name} names no place for LoRA adapters; give --train all or --train expert")
    config = policy.config
    origin, config.pretrained_path = config.pretrained_path, Path(".")  # LeRobot's sign that it is trained further
    logging.disable(logging.WARNING)  # it would say nevertheless that SmolVLA is trained from scratch
    try:
        with torch.random.fork_rng():
            torch.manual_seed(generator_for(*key, "lora").initial_seed())
            return policy.wrap_with_peft(peft_cli_overrides={"r": rank})
    finally:
        logging.disable(logging.NOTSET)
        config.pretrained_path = origin
