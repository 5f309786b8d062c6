"""The stages of the circle, each usable alone: demonstrate, clone, collect, evaluate chunks, improve, measure success.

Every function takes what it reads and where it writes; the order of them, and what is skipped, is `loop.py`'s.
"""

from aloe.stages.actor import (
    CloningMethod,
    PolicyConfig,
    check_fits_store,
    check_trainable,
    checkpoint_step,
    cloned_rows,
    new_policy,
    policy_rows,
    rows_from_advantages,
    seen_by,
    train_policy,
)
from aloe.stages.critic import (
    EvaluationInputs,
    advantage_stage,
    critic_data,
    critic_stage,
    judged_actions,
    new_critic,
    observation_shape,
    sample_stage,
)
from aloe.stages.play import (
    DemosConfig,
    check_fits_world,
    check_same_policy,
    collect,
    demonstrate,
    episodes_recorded,
    measure,
    open_store,
)
from aloe.stages.trust import EvaluatedEpisode, TrustConfig, facts_of, fresh_inputs, held_out, trust_stage
from aloe.stages.value import new_value, value_advantage_stage, value_stage

__all__ = [
    "CloningMethod",
    "DemosConfig",
    "EvaluatedEpisode",
    "EvaluationInputs",
    "PolicyConfig",
    "TrustConfig",
    "advantage_stage",
    "check_fits_store",
    "check_fits_world",
    "check_same_policy",
    "check_trainable",
    "checkpoint_step",
    "cloned_rows",
    "collect",
    "critic_data",
    "critic_stage",
    "demonstrate",
    "episodes_recorded",
    "facts_of",
    "fresh_inputs",
    "held_out",
    "judged_actions",
    "measure",
    "new_critic",
    "new_policy",
    "new_value",
    "observation_shape",
    "open_store",
    "policy_rows",
    "rows_from_advantages",
    "sample_stage",
    "seen_by",
    "train_policy",
    "trust_stage",
    "value_advantage_stage",
    "value_stage",
]
