"""`tiny_vla`: a small vision tower, a sentence embedding of the instruction, and a flow-matching head over chunks.

A LeRobot policy like any other: `PreTrainedPolicy.from_pretrained` loads it, `lerobot-train` and `lerobot-eval` run it.
The parts are separate functions (`encode_images`, `prefix`, `velocity`, `denoise`) because post-training asks for them
separately; `aloe.policies.flow` is the only other place that calls them.

Flow time as in openpi and SmolVLA: t = 1 is noise, t = 0 is the action.
"""

from collections import deque
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from aloe.losses import flow_interpolate, flow_matching_residual, masked_chunk_mean
from aloe.policies.tiny_vla.configuration_tiny_vla import LANGUAGE_DIM, TinyVLAConfig

LANGUAGE_EMBEDDING = "observation.language_embedding"
"""Where the preprocessor leaves the instruction: (B, 384) float32."""


class VisionTower(nn.Module):
    """A convolutional tower with a spatial softmax: where in the picture is each of the learned feature points?

    (B, 3, h, w) in [0, 1] -> (B, 3 * keypoints): x and y in [-1, 1] and the strength of every feature point.
    """

    def __init__(self, width: int, keypoints: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, width, 6, stride=4, padding=1),  # a coarse first step: pixels are dear on a CPU
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),  # 8 x 8 of 64 pixels: a feature point lies between cells
            nn.ReLU(),
            nn.Conv2d(width, keypoints, 1),
        )
        self.feature_dim = 3 * keypoints

    def forward(self, image: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        pixels = (image * 2 - 1).contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        maps = self.convolutions(pixels).contiguous()
        rows, columns = maps.shape[-2:]
        attention = maps.flatten(2).softmax(-1).unflatten(2, (rows, columns))
        x = (attention.sum(2) * torch.linspace(-1, 1, columns, device=image.device)).sum(-1)
        y = (attention.sum(3) * torch.linspace(-1, 1, rows, device=image.device)).sum(-1)
        return torch.cat([x, y, torch.tanh(maps.amax((2, 3)) / 8)], -1)


class FlowHead(nn.Module):
    """Velocity of the flow at (x_t, t), given what is seen: residual MLP blocks with additive conditioning."""

    def __init__(self, chunk_dim: int, prefix_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(6), persistent=False)
        self.enter = nn.Linear(chunk_dim + 12, width)
        self.condition = nn.Linear(prefix_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, chunk_dim))

    def forward(
        self, x_t: Float[Tensor, "B H A"], time: Float[Tensor, "B"], prefix: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B H A"]:
        angles = time[:, None] * self.frequencies
        hidden = self.enter(torch.cat([x_t.flatten(1), angles.sin(), angles.cos()], -1)) + self.condition(prefix)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.leave(hidden).view_as(x_t)


class TinyVLAPolicy(PreTrainedPolicy):
    """See the module's docstring. Everything here is in the normalised units of the pre- and postprocessor."""

    config_class = TinyVLAConfig  # type: ignore[assignment]
    name = "tiny_vla"  # type: ignore[assignment]

    def __init__(self, config: TinyVLAConfig, **kwargs: Any) -> None:
        super().__init__(config)
        config.validate_features()
        assert config.robot_state_feature is not None
        assert config.action_feature is not None
        self.config: TinyVLAConfig = config
        self.action_dim = config.action_feature.shape[0]
        self.cameras = list(config.image_features)
        self.vision_tower = VisionTower(config.vision_width, config.keypoints)  # idle where there is no camera
        self.language = nn.Sequential(nn.Linear(LANGUAGE_DIM, 32), nn.SiLU())
        seen = len(self.cameras) * self.vision_tower.feature_dim + config.robot_state_feature.shape[0] + 32
        self.fuse = nn.Sequential(
            nn.Linear(seen, config.width),
            nn.LayerNorm(config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
        )
        self.flow_head = FlowHead(config.chunk_size * self.action_dim, config.width, config.width, config.depth)
        self.reset()

    # -- the parts ----------------------------------------------------------------------------------------------------

    @property
    def feature_dim(self) -> int:
        """D, the width of `encode_images`' output."""
        return self.vision_tower.feature_dim

    def encode_images(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C D"]:
        """Features of every camera's picture. In training mode the pictures are randomly shifted first."""
        for camera in self.cameras:
            if camera not in batch:
                raise ValueError(f"the batch lacks {camera}, which this policy was made for; rename a camera?")
        if not self.cameras:
            return batch[OBS_STATE].new_zeros(len(batch[OBS_STATE]), 0, self.feature_dim)
        images = torch.stack([batch[camera] for camera in self.cameras], 1)  # (B, C, 3, h, w)
        if self.training and self.config.image_shift:
            images = random_shift(images, self.config.image_shift, generator)
        return self.vision_tower(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def prefix(
        self, features: Float[Tensor, "B C D"], state: Float[Tensor, "B S"], language: Float[Tensor, "B 384"]
    ) -> Float[Tensor, "B W"]:
        """All that the flow head needs to know of an observation; computed once for any number of samples."""
        return self.fuse(torch.cat([features.flatten(1), state, self.language(language)], -1))

    def velocity(
        self, x_t: Float[Tensor, "B H A"], time: Float[Tensor, "B"], prefix: Float[Tensor, "B W"]
    ) -> Float[Tensor, "B H A"]:
        return self.flow_head(x_t, time, prefix)

    def denoise(
        self,
        noise: Float[Tensor, "B H A"],
        prefix: Float[Tensor, "B W"],
        unconditional: Float[Tensor, "B W"] | None = None,
        guidance: float = 1.0,
    ) -> Float[Tensor, "B H A"]:
        """Euler integration of the velocity from noise (t = 1) to actions (t = 0).

        With the prefix of an `unconditional` instruction the velocity is v_u + guidance * (v - v_u), classifier-free
        guidance (Ho & Salimans 2022).
        """
        x_t = noise
        step = 1 / self.config.num_flow_steps
        for k in range(self.config.num_flow_steps):
            time = torch.full(noise.shape[:1], 1 - k * step, dtype=noise.dtype, device=noise.device)
            velocity = self.velocity(x_t, time, prefix)
            if unconditional is not None:
                plain = self.velocity(x_t, time, unconditional)
                velocity = plain + guidance * (velocity - plain)
            x_t = x_t - step * velocity
        return x_t

    # -- LeRobot's interface ------------------------------------------------------------------------------------------

    def get_optim_params(self) -> Any:
        return self.parameters()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Float[Tensor, "B H A"] | None = None,
        time: Float[Tensor, "B"] | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> tuple[Tensor, dict[str, Any] | None]:
        """Flow-matching loss: the mean, or with `reduction="none"` one value (B,) per sample. Padding does not count."""
        action = batch[ACTION]
        noise = torch.randn_like(action) if noise is None else noise
        time = torch.rand(len(action), device=action.device) if time is None else time
        is_pad: Bool[Tensor, "B H"] = batch.get(
            "action_is_pad", torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
        )
        prefix = self.prefix(self.encode_images(batch), batch[OBS_STATE], batch[LANGUAGE_EMBEDDING])
        velocity = self.velocity(flow_interpolate(action, noise, time), time, prefix)
        losses = masked_chunk_mean(flow_matching_residual(velocity, action, noise), is_pad)
        return (losses if reduction == "none" else losses.mean()), None

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Tensor], noise: Float[Tensor, "B H A"] | None = None, **kwargs: Any
    ) -> Float[Tensor, "B H A"]:
        self.eval()
        state = batch[OBS_STATE]
        if noise is None:
            noise = torch.randn(len(state), self.config.chunk_size, self.action_dim, device=state.device)
        return self.denoise(noise, self.prefix(self.encode_images(batch), state, batch[LANGUAGE_EMBEDDING]))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Float[Tensor, "B A"]:
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()


def random_shift(
    images: Float[Tensor, "B C 3 h w"], pixels: int, generator: torch.Generator | None = None
) -> Float[Tensor, "B C 3 h w"]:
    """Moves each picture by a random whole number of pixels, the edge repeated (Yarats et al. 2021, DrQ-v2)."""
    flat = images.flatten(0, 1)
    count, _, height, width = flat.shape
    padded = F.pad(flat, (pixels,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * pixels + 1, (count, 2), generator=generator).tolist()
    moved = [padded[i, :, top : top + height, left : left + width] for i, (top, left) in enumerate(corners)]
    return torch.stack(moved).unflatten(0, images.shape[:2])
