"""Meta-World v3 as a robot world: cameras, proprioception, an instruction, success and a time-out.

What the policy may see is what a robot would see: the pictures, the gripper's own position and opening
(4 numbers), and the instruction. The simulator's object state is used only by the scripted expert that
plays the human, and never leaves the world, unless fast studies ask for it in place of the pictures
(`observations="state"`).
"""

import os
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("MUJOCO_GL", "egl")  # headless by default; must precede the import of mujoco

import metaworld.env_dict
import mujoco
from metaworld.policies import ENV_POLICY_MAP

from aloe.worlds._faster import coarsen_meshes, speed_up
from aloe.worlds.perturb import Colours, Disturbance, start_outside

# Of its own experts' gains, at every step. Filtered once, because to filter at each step costs a fifth of the expert.
warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high", module="metaworld")

ACTION_DIM: Final = 4
_GRIPPER: Final = slice(0, 4)
"""Entries of Meta-World's observation (39,): position and opening of the gripper."""
_PRESENT: Final = slice(0, 18)
"""The gripper and up to two objects (position, quaternion) as they are now; 18:36 is the step before."""
_GOAL: Final = slice(36, 39)
_FAUCETS: Final = frozenset({"faucet-open-v3", "faucet-close-v3"})
"""Tasks whose goal follows from the object and the instruction, and would give the instruction away."""
_GOAL_RADIUS: Final = 0.04
"""Of a goal's ball as drawn in scenes that several tasks share, in metres."""
_PUCK_SIZE: Final = (0.02, 0.02, 0.02)
"""Radius (twice) and half height of a puck as drawn there, in metres."""
CAMERAS: Final = ("topview", "corner", "corner2", "corner3", "behindGripper", "gripperPOV")

INSTRUCTIONS: Final[dict[str, str]] = {
    "assembly-v3": "put the ring onto the peg",
    "basketball-v3": "dunk the ball into the basket",
    "bin-picking-v3": "move the cube from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button down from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "push the button in",
    "button-press-wall-v3": "push in the button behind the wall",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer the nail into the wall",
    "hand-insert-v3": "insert the gripper into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole from the side",
    "peg-unplug-side-v3": "unplug the peg from the side",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "pick-place-wall-v3": "pick up the puck and place it behind the wall",
    "plate-slide-back-side-v3": "slide the plate back sideways out of the cabinet",
    "plate-slide-back-v3": "slide the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "push the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach the goal behind the wall",
    "shelf-place-v3": "place the puck on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "stick-push-v3": "grasp the stick and push the box with it",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """One Meta-World task as a robot would meet it, or several."""

    task: str = "button-press-topdown-v3"
    """Name of the task, with its version: any of Meta-World's 50."""
    also: tuple[str, ...] = ()
    """More tasks, told apart by their instruction: episodes take turns. What else would tell them apart in a scene that
    they share (how goals and pucks look, where the faucet stands) is the same for all."""
    observations: Literal["pictures", "state"] = "pictures"
    """What the policy sees besides its gripper: the cameras' pictures, or the simulator's object state in
    `observation.state` and no picture at all, for fast studies (nothing is rendered)."""
    cameras: tuple[str, ...] = ("topview", "behindGripper")
    """Cameras of the scene; each becomes `observation.images.<camera>`. Unused with state observations."""
    image_size: int = 64
    """Height and width of every picture, in pixels."""
    goal_in_state: bool = True
    """Whether state observations end with the goal's position (3 numbers, in metres). Beside other tasks a faucet's
    goal is zero: it would say whether to open or to close."""
    max_steps: int = 60
    """Environment steps until time-out."""
    action_repeat: int = 4
    """Simulator steps (of 12.5 ms) for which one action is held; one environment step is this many."""
    perturbation: Literal["none", "disturbance", "unseen"] = "none"
    """For evaluation, never for training. disturbance: once in an episode a loose object is moved or let go, or the arm
    pushed. unseen: starts outside the range of training, and other colours."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in INSTRUCTIONS:
                near = get_close_matches(task, INSTRUCTIONS, n=3, cutoff=0.4)
                raise ValueError(
                    f"unknown Meta-World task {task!r}; "
                    + (f"did you mean {', '.join(near)}?" if near else "names look like peg-insert-side-v3")
                )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"a task is named twice in {self.tasks}; once is enough")
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"unknown camera {camera!r}; Meta-World has {', '.join(CAMERAS)}")
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"a camera is named twice in {self.cameras}; once is enough")
        if self.observations not in ("pictures", "state"):
            raise ValueError(f"observations are pictures or state, not {self.observations!r}")
        if self.perturbation not in ("none", "disturbance", "unseen"):
            raise ValueError(f"a perturbation is none, disturbance or unseen, not {self.perturbation!r}")
        if not self.cameras and self.observations == "pictures":
            raise ValueError("at least one camera is needed, or observations='state': the policy sees pictures")
        if self.image_size < 16 or self.max_steps < 1 or self.action_repeat < 1:
            raise ValueError("image_size must be at least 16; max_steps and action_repeat at least 1")

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, *self.also)

    @property
    def instructions(self) -> tuple[str, ...]:
        """One for each of `tasks`."""
        return tuple(INSTRUCTIONS[task] for task in self.tasks)

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera -> (h, w) of the pictures that there are: none with state observations."""
        size = (self.image_size, self.image_size)
        return dict.fromkeys(self.cameras, size) if self.observations == "pictures" else {}

    @property
    def state_dim(self) -> int:
        """Numbers in `observation.state`: 4 beside pictures; else 18, or 21 with the goal."""
        if self.observations == "pictures":
            return 4
        return 21 if self.goal_in_state else 18

    @property
    def fps(self) -> int:
        """Environment steps a second of simulated time, rounded (the simulator runs at 80 Hz)."""
        return max(1, round(80 / self.action_repeat))


class MetaWorld(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """A Gymnasium environment with LeRobot's observation keys.

    Observations: `observation.state` float32 (gripper x, y, z in metres, opening in 0..1; with state
    observations also two objects' positions and quaternions, zero where there is none, and the goal) and, where
    asked for, `observation.images.<camera>` (h, w, 3) uint8. Actions: (4,) float32 in [-1, 1] (gripper
    displacement x, y, z, and grip). `terminated` means success, `truncated` a time-out; the reward is -1 a
    step and 0 at success.

    Pictures cost far more than physics, so `step` returns none; `pictures()` renders the present state.
    """

    def __init__(self, config: MetaWorldConfig) -> None:
        self.config = config
        self._scenes: dict[int, _Scene] = {}
        self._enter(0)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        spaces: dict[str, gymnasium.Space[Any]] = {
            "observation.state": gymnasium.spaces.Box(-np.inf, np.inf, (config.state_dim,), np.float32)
        }
        for camera, (h, w) in config.camera_sizes.items():
            spaces[f"observation.images.{camera}"] = gymnasium.spaces.Box(0, 255, (h, w, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new episode; `options={"task": i}` plays the i-th of `config.tasks`, by default the first."""
        super().reset(seed=seed)
        row = (options or {}).get("task", 0)
        self._enter(row)
        sim = self._scene.sim
        if seed is not None:
            sim.seed(seed)
        sim.reset()
        self._sim_observation = _seen_now(sim)
        chance = self.np_random.spawn(1)[0]  # Meta-World seeds its own generator alike: the same numbers
        if self._scene.colours is not None:
            self._scene.colours.change(chance)
        self._disturbance: Disturbance | None = None
        if self.config.perturbation == "disturbance":
            self._disturbance = Disturbance(sim, self._scene.task, self.config.max_steps, chance)
        self._steps = self._played = 0
        self._progress = 0.0
        return self._state(), {"success": False, "task": self.config.instructions[row]}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self._disturbance is not None:
            action = self._disturbance.disturb(self._played, action)
        success = False
        for _ in range(self.config.action_repeat):
            self._sim_observation, _, _, _, info = self._scene.sim.step(np.clip(action, -1.0, 1.0))
            success = bool(info["success"])
            if success:
                break
        self._steps += 1
        self._played += 1
        self._progress = float(info["unscaled_reward"])
        timeout = self._steps >= self.config.max_steps and not success
        return self._state(), 0.0 if success else -1.0, success, timeout, {"success": success}

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Renders every camera: `observation.images.<camera>` (h, w, 3) uint8. Nothing with state observations."""
        scene, pictures = self._scene, {}
        for camera, (size, _) in self.config.camera_sizes.items():
            renderer = scene.renderer = scene.renderer or _fast_renderer(scene.sim.model, size)
            renderer.update_scene(scene.sim.data, camera=camera)
            if scene.puck is not None:
                _draw_as_every_puck(renderer.scene, scene.puck)
            pictures[f"observation.images.{camera}"] = renderer.render()
        return pictures

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that this task's scene really has: `CAMERAS`, which needs no scene, must agree."""
        model = self._scene.sim.model
        return tuple(model.camera(i).name for i in range(model.ncam))

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert, who sees the simulator's full state, would do now: (4,) in [-1, 1].

        Meta-World's scripts count on a gripper that is open, as at a reset, and where they do not hold anything several
        command a grip of 0, which leaves it as it is. After a policy has closed it they would never grasp anything again;
        so 0 becomes -1, to open it.
        """
        action = self._scene.expert.get_action(self._sim_observation)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        if action[3] == 0.0:
            action[3] = -1.0
        return action

    def progress(self) -> float:
        """Meta-World's shaped reward, 0 to 10: how far the task has come. For the scripted human and for
        evaluation only."""
        return self._progress

    @property
    def disturbed_at(self) -> int | None:
        """Step of the episode in which its disturbance began; None: there was none (yet). For evaluation only."""
        return None if self._disturbance is None else self._disturbance.at

    def restart_clock(self) -> None:
        """Gives `max_steps` steps from here: a human who takes over has the full time again."""
        self._steps = 0

    def close(self) -> None:
        for scene in self._scenes.values():
            if scene.renderer is not None:
                scene.renderer.close()
                scene.renderer = None

    def _enter(self, row: int) -> None:
        """Makes the scene of the row-th task, if this is its first episode, the present one."""
        if row not in self._scenes:
            self._scenes[row] = _Scene(self.config, row)
        self._scene = self._scenes[row]

    def _state(self) -> dict[str, Any]:
        seen = self._sim_observation
        if self.config.observations == "pictures":
            state = seen[_GRIPPER]
        elif self.config.goal_in_state:
            goal = np.zeros(3) if self.config.also and self._scene.task in _FAUCETS else seen[_GOAL]
            state = np.concatenate((seen[_PRESENT], goal))
        else:
            state = seen[_PRESENT]
        return {"observation.state": state.astype(np.float32)}


class _Scene:
    """The simulator of one task, and what belongs to it."""

    def __init__(self, config: MetaWorldConfig, row: int) -> None:
        task = config.tasks[row]
        sim: Any = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task]()
        # These two flags are how Meta-World itself makes its goal-observable, freshly randomised variants.
        sim._freeze_rand_vec = False
        sim.seeded_rand_vec = True
        sim._partially_observable = False
        vars(sim).pop("sawyer_observation_space", None)  # cached with the goal clipped to zero
        sim._set_task_called = True
        sim.max_path_length = 10**9  # the world owns the time-out
        speed_up(sim)
        self.puck: int | None = None
        """The geom of a puck in a scene that several tasks may share."""
        if config.also:
            _hide_which_task(sim, task)
            self.puck = _mark_puck(sim.model)
        self.colours: Colours | None = None
        if config.perturbation == "unseen":
            start_outside(sim)
            self.colours = Colours(sim.model)
        self.task, self.sim = task, sim
        self.expert = ENV_POLICY_MAP[task]()
        self.renderer: mujoco.Renderer | None = None


def _hide_which_task(sim: Any, task: str) -> None:
    """Takes out of a scene what would name its task where the words should: in the pictures goals look the same in all
    tasks, and faucets, which turn up in the same places, have none.

    What the words speak of has to be seen, too. Of Meta-World's own goals, balls of 0.5 to 2 cm radius, a policy hardly
    learns from pictures of 64 px where they are (`benchmarks/goal.py`).
    """
    for i in range(sim.model.nsite):
        site = sim.model.site(i)
        if site.name.startswith("goal"):
            site.rgba[:] = (0.0, 0.8, 0.0, 0.0 if task in _FAUCETS else 1.0)
            site.size[:] = _GOAL_RADIUS
    if task in _FAUCETS:
        sim._random_reset_space.low[0], sim._random_reset_space.high[0] = -0.05, 0.05  # faucet-open's own range


def _mark_puck(model: Any) -> int | None:
    """Paints the puck, dark red on a brown table, yellow: its geom; None: there is none."""
    shapes: Any = mujoco.mjtGeom  # pyright: ignore[reportAttributeAccessIssue] - missing in mujoco's stubs
    for i in range(model.ngeom):
        if model.geom(i).name == "objGeom" and model.geom_type[i] == shapes.mjGEOM_CYLINDER:
            model.geom_matid[i], model.geom_rgba[i] = -1, (1.0, 0.9, 0.0, 1.0)
            return i
    return None


def _draw_as_every_puck(scene: Any, puck: int) -> None:
    """In the picture alone: a puck of another size (reach-wall's) would name its task."""
    kinds: Any = mujoco.mjtObj  # pyright: ignore[reportAttributeAccessIssue] - missing in mujoco's stubs
    for geom in scene.geoms[: scene.ngeom]:
        if geom.objtype == kinds.mjOBJ_GEOM and geom.objid == puck:
            geom.size[:] = _PUCK_SIZE


def _seen_now(sim: Any) -> NDArray[np.float64]:
    """The first observation of an episode, of its own scene.

    Meta-World's resets move bodies without telling MuJoCo, so that in many tasks (faucets, the box of peg-insert-side)
    the first observation, and picture, has them where they stood before; from the first step on all is right.
    """
    sim.set_state(sim.data.qpos, sim.data.qvel)
    sim._prev_obs = sim._get_curr_obs_combined_no_goal()
    return sim._get_obs()


def _fast_renderer(model: Any, size: int) -> mujoco.Renderer:
    """A renderer without shadows, reflections, multisampling and the finest faces: 40 times as fast on a CPU."""
    backend = mujoco.GLContext.__module__
    if os.environ["MUJOCO_GL"] == "egl" and not backend.endswith("egl"):  # it would abort the whole process
        raise RuntimeError(
            f"mujoco was imported before aloe.worlds and chose {backend}, which needs a display; "
            "set MUJOCO_GL=egl in the environment, or import aloe.worlds.metaworld first"
        )
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    coarsen_meshes(model, size)
    renderer = mujoco.Renderer(model, size, size)
    flags: Any = mujoco.mjtRndFlag  # pyright: ignore[reportAttributeAccessIssue] - missing in mujoco's stubs
    for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_HAZE, flags.mjRND_SKYBOX):
        renderer.scene.flags[flag] = 0
    return renderer
