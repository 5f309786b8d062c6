"""Filtered cloning: clone every fragment that ended in success, whoever played it.

    L = E over successful fragments of || (noise - a) - v_theta(a_t, s, l) ||^2

Rejection sampling by outcome, with the human's corrections among the accepted, as in Hi-ORS (2025). No critic and no
weights, but a failed fragment is never imitated.

Where this departs from Hi-ORS: one policy update a round on the whole store, as for all methods here, in place of an
asynchronous learner.
"""

import numpy as np

from aloe.experience.store import Frames
from aloe.experience.windows import Windows
from aloe.policies.train import ActorRows


def actor_rows(frames: Frames, windows: Windows) -> ActorRows:
    """Every window of a fragment that ended in success, or of a human in handing back, with weight 1."""
    rows = np.flatnonzero(windows.fragment_success)
    return ActorRows(rows=rows, weight=np.ones(len(windows), np.float32))
