"""What evaluation does to a Meta-World scene and training never sees: disturbances, unseen starts, other colours."""

from typing import Any, Final

import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float32
from numpy import ndarray

_FREE_JOINT: Final = 0
"""MuJoCo's mjJNT_FREE: a body that hangs on nothing."""
_MOMENT: Final = (0.05, 0.2)
"""A disturbance comes at a step drawn uniformly from this part of the time."""
_OPEN_STEPS: Final = 2
"""Steps for which an opened gripper stays open: 0.1 s at 50 ms a step, enough to drop what it holds."""
_PUSH_STEPS: Final = 3
"""Steps for which the arm is pushed, at its full speed: up to 12 cm at 50 ms a step."""
_SHIFT: Final = (0.02, 0.05)
"""How far a loose object is moved on the table, in metres."""
_UNSEEN_SHARE: Final = 0.25
"""Share of its width by which the range of the start positions grows on either side."""
_NARROW: Final = 0.01
"""Ranges of start positions up to this width, in metres, are Meta-World's constants: they do not grow."""


class Disturbance:
    """The one disturbance of an episode: what, when and where to is drawn at the reset.

    Where the task has a loose object, either the object is moved or the grasp opened. An object that is held when it
    is to be moved is let go instead; a grasp that is to be opened is waited for, if need be to the end. Where nothing is
    loose, the arm is pushed.
    """

    def __init__(self, sim: Any, task: str, max_steps: int, rng: np.random.Generator) -> None:
        self._sim, self._rng = sim, rng
        self._moment = int(rng.uniform(*_MOMENT) * max_steps)
        self._moves = rng.random() < 0.5
        direction = rng.standard_normal(3)
        self._push = direction / np.linalg.norm(direction)
        loose = np.flatnonzero(sim.model.jnt_type == _FREE_JOINT)
        matters = len(loose) > 0 and not task.startswith("reach-")  # whose puck is of no use
        self._joint: int | None = int(loose[0]) if matters else None
        self.at: int | None = None
        """Step, counted from the reset, in which the disturbance began; None: not yet."""

    def disturb(self, step: int, action: Float32[ndarray, "A"]) -> Float32[ndarray, "A"]:
        """What is really executed in this step in place of the action; may move the object. Called at every step."""
        if self.at is None and step >= self._moment:
            self._begin(step)
        if self.at is None:
            return action
        elapsed, action = step - self.at, action.copy()
        if self._joint is None and elapsed < _PUSH_STEPS:
            action[:3] = self._push
        elif self._joint is not None and not self._moves and elapsed < _OPEN_STEPS:
            action[3] = -1.0
        return action

    def _begin(self, step: int) -> None:
        if self._joint is None:
            self.at = step
            return
        held = self._is_held()
        self._moves = self._moves and not held and self._move(self._joint)
        if self._moves or held:
            self.at = step

    def _move(self, joint: int) -> bool:
        """Puts the object elsewhere on the table; False where everywhere near is something in the way."""
        sim, data = self._sim, self._sim.data
        place = slice(sim.model.jnt_qposadr[joint], sim.model.jnt_qposadr[joint] + 2)
        qpos, qvel, depth = data.qpos.copy(), data.qvel.copy(), self._depth()
        for _ in range(20):
            angle, radius = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(*_SHIFT)
            moved, still = qpos.copy(), qvel.copy()
            moved[place] += radius * np.array([np.cos(angle), np.sin(angle)])
            still[sim.model.jnt_dofadr[joint] :][:6] = 0.0
            sim.set_state(moved, still)
            if self._depth() <= depth + 0.002:
                return True
        sim.set_state(qpos, qvel)
        return False

    def _depth(self) -> float:
        """How deep the object is in anything else, in metres."""
        mine = self._object_geoms()
        contacts = self._sim.data.contact
        touching = mine[contacts.geom1] != mine[contacts.geom2]
        return float(-contacts.dist[touching].min(initial=0.0))

    def _is_held(self) -> bool:
        """Whether both fingers touch the object."""
        model, contacts, mine = self._sim.model, self._sim.data.contact, self._object_geoms()
        others = np.where(mine[contacts.geom1], contacts.geom2, contacts.geom1)
        bodies = model.geom_bodyid[others[mine[contacts.geom1] != mine[contacts.geom2]]]
        sides = [[model.body(f"{side}{part}").id for part in ("claw", "pad")] for side in ("left", "right")]
        return all(np.isin(bodies, side).any() for side in sides)

    def _object_geoms(self) -> ndarray:
        """Which geoms of the model are the loose object's."""
        model = self._sim.model
        return model.body_rootid[model.geom_bodyid] == model.jnt_bodyid[self._joint]


def start_outside(sim: Any) -> None:
    """Makes every reset of the simulator draw a start position outside the range of training, but near it.

    Raises:
        ValueError: the task has no range that could be left.
    """
    low, high = sim._random_reset_space.low, sim._random_reset_space.high
    wide = high - low > _NARROW
    if not wide.any():
        raise ValueError("this task always starts in the same place: there are no unseen starts; choose another")
    margin = np.where(wide, _UNSEEN_SHARE * (high - low), 0.0)
    lowest, highest = low - margin, high + margin
    if len(low) % 3 == 0:  # positions: not beyond what the hand can reach, unless training is there already
        positions = len(low) // 3
        lowest = np.minimum(low, np.maximum(lowest, np.tile(sim.hand_low, positions)))
        highest = np.maximum(high, np.minimum(highest, np.tile(sim.hand_high, positions)))

    def draw() -> ndarray:
        while True:
            drawn = sim.np_random.uniform(lowest, highest)
            if (wide & ((drawn < low) | (drawn > high))).any():
                return drawn

    sim._get_state_rand_vec = draw
    # What is seen of the goal is clipped to its range.
    growth = _UNSEEN_SHARE * (sim.goal_space.high - sim.goal_space.low)
    sim.goal_space = Box(sim.goal_space.low - growth, sim.goal_space.high + growth, dtype=np.float64)
    vars(sim).pop("sawyer_observation_space", None)


class Colours:
    """The colours of a scene, which each episode mixes anew, half and half, with others."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._materials, self._geoms = model.mat_rgba.copy(), model.geom_rgba.copy()

    def change(self, rng: np.random.Generator) -> None:
        """Tints every material and every geom from its own colour; transparency stays."""
        for original, present in ((self._materials, self._model.mat_rgba), (self._geoms, self._model.geom_rgba)):
            present[:, :3] = 0.5 * original[:, :3] + 0.5 * rng.random((len(original), 3))
