"""HG-DAgger: clone the demonstrations and the human's corrections (Kelly et al. 2019).

    L = E over successful demonstrations and corrections of || (noise - a) - v_theta(a_t, s, l) ||^2

No critic, no weights; what the policy did itself is not learnt from. The human decides when to take over.

Where this departs from the paper: the policy goes on from its last version instead of being trained anew each round, as for
all methods here; a correction that failed is left out, as a lab would drop it.
"""

import numpy as np

from aloe.experience.store import Frames
from aloe.experience.windows import Windows
from aloe.policies.train import ActorRows
from aloe.types import Source


def actor_rows(frames: Frames, windows: Windows) -> ActorRows:
    """Every window of the demonstrations and of the human that led to success or to a handing back, with weight 1."""
    rows = np.flatnonzero((frames.source != Source.POLICY) & windows.fragment_success)
    return ActorRows(rows=rows, weight=np.ones(len(windows), np.float32))
