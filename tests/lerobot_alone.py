"""LeRobot's own commands in a process that cannot import ALOE, with a robot and a human of a few lines. No test itself.

python lerobot_alone.py predict FOLDER SEEN CHUNK
python lerobot_alone.py rollout OPTION...
python lerobot_alone.py eval OPTION...
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class _Missing:
    """As if ALOE and its plugin were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("aloe", "lerobot_policy_tiny_vla"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Missing())
sys.path.insert(0, str(Path(__file__).parent / "policies"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import vlas  # noqa: E402
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # noqa: E402
from lerobot.robots import Robot, RobotConfig  # noqa: E402
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig  # noqa: E402

JOINTS = [f"joint_{k}.pos" for k in range(3)]
EPISODE = ["space", "tab", "tab", "esc"]
"""Keys of the human: pause, correct, done, end of the session."""
AT = [4, 6, 11, 13]
"""At which observation each is pressed."""


class Hand:
    """Presses the keys of LeRobot's DAgger strategy at known moments."""

    press: Callable[[str], None] | None = None
    seen = 0

    @classmethod
    def listen(cls, press: Callable[[str], None], **_: object) -> type["Hand"]:
        cls.press = press
        return cls

    @classmethod
    def stop(cls) -> None:
        cls.press = None

    @classmethod
    def step(cls) -> None:
        cls.seen += 1
        if cls.press is not None and cls.seen in AT:
            cls.press(EPISODE[AT.index(cls.seen)])


class _Device:
    is_connected = is_calibrated = True
    action_features = dict.fromkeys(JOINTS, float)
    feedback_features: dict = {}  # noqa: RUF012

    def nothing(self, *_: object, **__: object) -> None: ...

    connect = calibrate = configure = disconnect = send_feedback = nothing


@RobotConfig.register_subclass("simple")
@dataclass
class SimpleConfig(RobotConfig):
    pass


class Simple(_Device, Robot):
    """Joints that are at once where they are sent, and two cameras."""

    name, config_class = "simple", SimpleConfig
    observation_features = dict.fromkeys(JOINTS, float) | {"top": (48, 64, 3), "wrist": (64, 64, 3)}

    def __init__(self, config: SimpleConfig) -> None:
        super().__init__(config)
        self.at, self.cameras = dict.fromkeys(JOINTS, 0.0), {"top": None, "wrist": None}

    def get_observation(self) -> dict:
        Hand.step()
        shade = int(Hand.seen) % 256
        pictures = {"top": np.full((48, 64, 3), shade, np.uint8), "wrist": np.full((64, 64, 3), shade, np.uint8)}
        return {**self.at, **pictures}

    def send_action(self, action: dict) -> dict:
        self.at = {joint: float(action[joint]) for joint in JOINTS}
        return action


@TeleoperatorConfig.register_subclass("simple_hand")
@dataclass
class SimpleHandConfig(TeleoperatorConfig):
    pass


class SimpleHand(_Device, Teleoperator):
    """A human who always wants the joints at 0.25, 0.5 and 0.75."""

    name, config_class = "simple_hand", SimpleHandConfig

    def get_action(self) -> dict:
        return dict(zip(JOINTS, (0.25, 0.5, 0.75), strict=True))


def predict(folder: str, seen: str, chunk: str) -> None:
    """The chunks that the policy of a folder predicts for a raw observation and noise."""
    config = PreTrainedConfig.from_pretrained(folder)
    with vlas.small_models():
        policy = get_policy_class(config.type).from_pretrained(folder, strict=True).eval()
    here = {"device_processor": {"device": config.device}}  # as LeRobot's commands do
    pre, post = make_pre_post_processors(config, pretrained_path=folder, preprocessor_overrides=here)
    raw = torch.load(seen)
    noise = raw.pop("noise")
    torch.save(post(policy.predict_action_chunk(pre(raw), noise=noise)), chunk)


def rollout() -> None:
    from lerobot.rollout.strategies import dagger
    from lerobot.scripts.lerobot_rollout import rollout

    dagger.create_key_listener = Hand.listen
    rollout()


def evaluate() -> None:
    """Episodes of four steps: a picture takes a tenth of a second without a GPU."""
    from lerobot.envs.metaworld import MetaworldEnv
    from lerobot.scripts.lerobot_eval import eval_main

    original = MetaworldEnv.__init__

    def shorter(self: MetaworldEnv, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)
        self._max_episode_steps = 4

    MetaworldEnv.__init__ = shorter
    with vlas.small_models():
        eval_main()


if __name__ == "__main__":
    command = sys.argv.pop(1)
    sys.modules["lerobot_alone"] = sys.modules["__main__"]  # where LeRobot looks for the robot's class
    for made in (SimpleConfig, SimpleHandConfig, Simple, SimpleHand):
        made.__module__ = "lerobot_alone"
    {"predict": lambda: predict(*sys.argv[1:]), "rollout": rollout, "eval": evaluate}[command]()
    assert not [name for name in sys.modules if name.partition(".")[0] == "aloe"]
