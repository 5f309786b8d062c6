"""SFT: clone the demonstrations.

    L = E over demonstrations of || (noise - a) - v_theta(a_t, s, l) ||^2

Supervised fine-tuning of a flow-matching policy (Lipman et al. 2023; pi0, Black et al. 2024) on the fragments that a
demonstrator brought to success. No critic, no weights. It makes the first policy of every run, and as a method of its own
it is the baseline that learns nothing from experience.
"""

import numpy as np

from aloe.experience.store import Frames
from aloe.experience.windows import Windows
from aloe.policies.train import ActorRows
from aloe.types import Source


def actor_rows(frames: Frames, windows: Windows) -> ActorRows:
    """Every window of the successful demonstrations, with weight 1."""
    rows = np.flatnonzero((frames.source == Source.DEMO) & windows.fragment_success)
    return ActorRows(rows=rows, weight=np.ones(len(windows), np.float32))
