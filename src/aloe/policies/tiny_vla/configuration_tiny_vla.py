"""Configuration of `tiny_vla`, a vision-language-action policy small enough to train on two CPU cores."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.optim.optimizers import AdamWConfig

LANGUAGE_DIM = 384
"""Width of the MiniLM sentence embedding."""


@PreTrainedConfig.register_subclass("tiny_vla")
@dataclass
class TinyVLAConfig(PreTrainedConfig):
    """Cameras, proprioception and an instruction in; a chunk of actions out, by flow matching.

    (Mutable, unlike every other config of this code base, because LeRobot's base class is.)
    """

    chunk_size: int = 8
    """H: actions that the policy predicts at once."""
    n_action_steps: int = 4
    """Actions that are executed before the policy predicts again."""

    image_shift: int = 4
    """Pictures are moved by up to this many pixels during training (random-shift augmentation); 0 for none."""
    vision_width: int = 32
    """Channels of the vision tower."""
    keypoints: int = 32
    """Feature points that the tower finds in each picture (spatial softmax)."""
    width: int = 256
    """Width of the flow-matching head."""
    depth: int = 3
    """Residual blocks of the flow-matching head."""
    num_flow_steps: int = 5
    """Euler steps from noise (t = 1) to the action (t = 0)."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps must lie in 1..chunk_size ({self.chunk_size}), not {self.n_action_steps}")

    def validate_features(self) -> None:
        if self.robot_state_feature is None:
            raise ValueError("tiny_vla needs proprioception: a feature named observation.state")
        if self.action_feature is None:
            raise ValueError("tiny_vla needs a feature named action")
        shapes = {feature.shape for feature in self.image_features.values()}
        if len(shapes) > 1 or any(f.type is not FeatureType.VISUAL for f in self.image_features.values()):
            raise ValueError(f"all cameras of tiny_vla must share one size, not {sorted(shapes)}")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.learning_rate, weight_decay=self.weight_decay, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
