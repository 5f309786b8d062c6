"""The ensemble of chunk critics: Q_1..Q_K(s, a_{t:t+E}, l), one small transformer with K readout tokens (paper, "Critic").

Tokens: K learned readouts, one for proprioception, one for the instruction, one a camera (features of the policy's frozen
vision tower), one an action of the chunk. Each readout ends in its own MLP head, so the critics share a trunk and
differ in what they read from it.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Size of the ensemble."""

    critics: int = 4
    """K: readout tokens, each a critic. (Paper: not disclosed; its figure shows 2.)"""
    width: int = 64
    """Width of the transformer. (Paper: 256.)"""
    layers: int = 2
    """Transformer layers. (Paper: 6.)"""
    heads: int = 4
    """Attention heads. (Paper: 8.)"""
    image_tokens: int = 1
    """Tokens of each camera's picture: the vision tower's output, pooled to so many. `tiny_vla` has one. (Paper: not
    disclosed.)"""
    trunks: Literal["shared", "separate"] = "shared"
    """One transformer with K readouts (paper), or a transformer for each critic, at K times the cost."""
    judges: Literal["executed", "whole"] = "executed"
    """What critics see of a chunk: the actions that are executed before the policy looks again, or all of it (paper)."""

    def __post_init__(self) -> None:
        if min(self.critics, self.layers, self.heads, self.image_tokens) < 1:
            raise ValueError("a critic needs at least one readout, one layer, one head and one token a picture")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


@dataclass(frozen=True, kw_only=True)
class ObservationShape:
    """What the critic is shown of an observation, and the chunk that it judges."""

    cameras: int
    """C; with several tokens a picture, tokens of all pictures."""
    feature_dim: int
    state_dim: int
    language_dim: int
    action_dim: int
    horizon: int
    """E, the actions of a chunk that are judged, from its first on; 0 for a state value V(s), which sees no actions."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """A batch of what critics see."""

    features: Float[Tensor, "B C D"]
    state: Float[Tensor, "B S"]
    language: Float[Tensor, "B L"]

    def __len__(self) -> int:
        return len(self.state)

    def to(self, device: torch.device) -> "Observations":
        return Observations(
            features=self.features.to(device), state=self.state.to(device), language=self.language.to(device)
        )

    def repeat(self, times: int) -> "Observations":
        """Each row `times` times in a row: (B, ...) -> (B * times, ...)."""
        return Observations(
            features=self.features.repeat_interleave(times, 0),
            state=self.state.repeat_interleave(times, 0),
            language=self.language.repeat_interleave(times, 0),
        )


class ChunkCritic(nn.Module):
    """Q_1..Q_K of a chunk, or with `shape.horizon == 0` the state values V_1..V_K.

    `outputs`: numbers at each readout; the logits of as many bins where the value is a distribution.
    """

    def __init__(self, config: CriticConfig, shape: ObservationShape, outputs: int = 1) -> None:
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList()
        if config.trunks == "separate":
            alone = replace(config, critics=1, trunks="shared")
            self.members.extend(ChunkCritic(alone, shape, outputs) for _ in range(config.critics))
            return
        width = config.width
        self.readouts = nn.Parameter(torch.randn(config.critics, width) * 0.02)
        self.state = nn.Linear(shape.state_dim, width)
        self.language = nn.Linear(shape.language_dim, width)
        self.camera = nn.Sequential(nn.LayerNorm(shape.feature_dim), nn.Linear(shape.feature_dim, width))
        self.action = nn.Linear(shape.action_dim, width)
        tokens = config.critics + 2 + shape.cameras + shape.horizon
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)) for _ in range(config.critics)
        )

    def forward(self, observations: Observations, action: Float[Tensor, "B E A"] | None = None) -> Float[Tensor, "B K"]:
        """Values of one normalised chunk per observation: (B, K), or (B, K * outputs), on the critic's device.

        Raises:
            ValueError: the chunk has another length or width than the critic was made for.
        """
        wanted = (self.shape.horizon, self.shape.action_dim)
        if (action is None) != (self.shape.horizon == 0) or (action is not None and action.shape[1:] != wanted):
            raise ValueError(
                f"this critic judges chunks of shape {wanted}, not {None if action is None else tuple(action.shape[1:])}"
            )
        if len(self.members):
            return torch.cat([member(observations, action) for member in self.members], -1)
        batch, device = len(observations), self.position.device
        observations = observations.to(device)
        tokens = [
            self.readouts.expand(batch, -1, -1),
            self.state(observations.state)[:, None],
            self.language(observations.language)[:, None],
            self.camera(observations.features.float()),  # float16 in the cache, and until it lies on the device
        ]
        if action is not None:
            tokens.append(self.action(action.to(device)))
        read = self._read(torch.cat(tokens, 1) + self.position)
        return torch.cat([head(read[:, k]) for k, head in enumerate(self.heads)], -1)

    def _read(self, hidden: Float[Tensor, "B T W"]) -> Float[Tensor, "B K W"]:
        """The output of `trunk` at the readouts, its last layer computed for nothing else, which saves a step a fifth."""
        *before, last = self.trunk.layers
        for layer in before:
            hidden = layer(hidden)
        assert isinstance(last, nn.TransformerEncoderLayer)
        seen, read = last.norm1(hidden), hidden[:, : len(self.heads)]
        read = read + last.self_attn(seen[:, : len(self.heads)], seen, seen, need_weights=False)[0]
        read = read + last.linear2(last.activation(last.linear1(last.norm2(read))))
        assert self.trunk.norm is not None
        return self.trunk.norm(read)

    def of_samples(self, observations: Observations, actions: Float[Tensor, "B M E A"]) -> Float[Tensor, "B M K"]:
        """Values of M chunks for each observation."""
        batch, samples = actions.shape[:2]
        observations = observations.to(next(self.parameters()).device)  # before they are repeated there
        return self(observations.repeat(samples), actions.flatten(0, 1)).view(batch, samples, -1)
