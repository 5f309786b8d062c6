"""What ALOE asks of a kind of flow-matching policy, beyond LeRobot's own interface: a module with these functions.

`tiny_vla/family.py` and `lerobot.py` are such modules; `flow.py` finds the one that belongs to a policy. Everything is in
the normalised units of the policy's preprocessor. docs/new-policy.md says how to write another.
"""

from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""A preprocessed batch: pictures (B, 3, h, w) in [0, 1], state, and what the preprocessor made of the instruction."""

Part = Literal["preset", "expert", "all"]
"""Which parameters of a policy train: what its own config says, the action expert with its projections, or everything."""


class Family(Protocol):
    """`policy` is a LeRobot `PreTrainedPolicy` of the family."""

    RESIZES: bool
    """Whether pictures of any size may be given: they are resized inside."""
    GUIDED: bool
    """Whether `sample_chunks` heeds an unconditional batch; where it does not, guidance is refused before it is called."""

    def noise_dim(self, policy: Any) -> int:
        """N, the width of a step's noise: that of an action, or of what it is padded to inside."""
        ...

    def sample_time(self, policy: Any, count: int, generator: torch.Generator) -> Float[Tensor, "B"]:
        """Flow times for training, by the policy's own recipe; 1 is noise, 0 the action."""
        ...

    def flow_residual(
        self,
        policy: Any,
        batch: Batch,
        noise: Float[Tensor, "B H N"],
        time: Float[Tensor, "B"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "B H A"]:
        """(v_theta - (noise - action))^2 of `batch["action"]`, unreduced. generator: of the augmentation, if any."""
        ...

    def sample_chunks(
        self,
        policy: Any,
        batch: Batch,
        noise: Float[Tensor, "B M H N"],
        unconditional: Batch | None,
        guidance: float,
    ) -> Float[Tensor, "B M H A"]:
        """M chunks an observation, which is encoded once. unconditional, guidance: classifier-free guidance, if any."""
        ...

    def image_tokens(self, policy: Any, batch: Batch, count: int) -> Float[Tensor, "B C T D"]:
        """What the vision tower makes of each camera's picture, as `count` tokens."""
        ...

    def image_token_dim(self, policy: Any) -> int:
        """D of `image_tokens`."""
        ...

    def language_features(self, policy: Any, batch: Batch) -> Float[Tensor, "B L"]:
        """The instruction as one vector."""
        ...

    def language_dim(self, policy: Any) -> int:
        """L of `language_features`."""
        ...

    def vision_tower(self, policy: Any) -> nn.Module:
        """The part that turns pictures into features."""
        ...

    def choose_trained(self, policy: Any, part: Part) -> None:
        """Sets `requires_grad` of every parameter, and which modules stay in evaluation mode while the policy trains."""
        ...

    def checkpoint_activations(self, policy: Any, on: bool) -> None:
        """Whether the backward pass computes activations again instead of keeping them; off is what its config says."""
        ...

    def improvement_rate(self, policy: Any) -> float:
        """Peak learning rate where a policy is trained further and the user names none."""
        ...
