"""What a round leaves is a plain LeRobot checkpoint: LeRobot's own commands run it where ALOE is not installed, and what
they record is the experience of the next round."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe import cli
from aloe.policies.bundle import PolicyBundle, observe
from aloe.policies.flow import image_batch, sample_chunks

sys.path.insert(0, str(Path(__file__).parent / "policies"))
import vlas

CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
NUMBERS = {"mean": 0.1, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
BRIEF = [
    *("--window.horizon", 6, "--fit.steps", 3, "--fit.batch-size", 4, "--aloe.samples", 2, "--critic.critics", 2),
    *("--critic.width", 16, "--critic.layers", 1, "--critic.heads", 2, "--improve.steps", 2, "--improve.batch-size", 2),
    *("--trust.held-out", 0),
]


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def alone(folder: Path, command: str, *arguments: object) -> str:
    """Runs LeRobot's command in a process of its own, without ALOE; what it said."""
    script = Path(__file__).parent / "lerobot_alone.py"
    ran = subprocess.run(
        [sys.executable, script, command, *map(str, arguments)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_LEROBOT_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout + ran.stderr


def checkpoint(family: str, folder: Path, state: int = 3, action: int = 3) -> Path:
    """Of a policy that was trained for a machine with a GPU, and one with mixed precision."""
    sizes = (("observation.state", state), ("action", action))
    stats = {key: {name: torch.full((size,), value) for name, value in NUMBERS.items()} for key, size in sizes}
    made = vlas.tiny_checkpoint(family, folder, CAMERAS, stats)
    for name in ("config.json", "policy_preprocessor.json"):
        text = (made / name).read_text().replace('"device": "cpu"', '"device": "cuda"')
        (made / name).write_text(text.replace('"use_amp": false', '"use_amp": true'))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", vlas.FAMILIES)
def test_result_gives_bit_equal_chunks_where_aloe_is_not_installed(family: str, tmp_path: Path) -> None:
    with vlas.small_models():
        came = checkpoint(family, tmp_path)
        bundle = PolicyBundle.load(came)
        with torch.no_grad():
            for parameter in bundle.policy.parameters():
                parameter.add_(0.01)
        bundle.save_atomically(tmp_path / "result")
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (came, tmp_path / "result"))
        assert after == before  # a robot with a GPU finds the policy where it was: on the GPU
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (2, *size, 3), np.uint8) for camera, size in CAMERAS.items()}
    state, tasks = rng.standard_normal((2, 3)).astype(np.float32), ["stack the cubes", "open the drawer"]
    noise = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    raw = image_batch(images) | {"observation.state": torch.from_numpy(state), "task": tasks, "noise": noise}
    torch.save(raw, tmp_path / "seen.pt")
    alone(tmp_path, "predict", tmp_path / "result", tmp_path / "seen.pt", tmp_path / "chunk.pt")
    ours = sample_chunks(bundle.policy, observe(bundle, images, state, tasks), noise[:, None])[:, 0]
    assert torch.equal(torch.load(tmp_path / "chunk.pt"), bundle.postprocessor(ours))


@pytest.mark.slow
def test_rollouts_of_lerobot_are_the_next_rounds_experience(tmp_path: Path) -> None:
    """lerobot-rollout plays the result of a round and records; a human takes over; two sessions, two episodes."""
    came = checkpoint("smolvla", tmp_path)
    data = {name: tmp_path / "data" / name for name in ("demos", "dagger")}
    record(data["demos"])
    roots = ["--experience.demos.root", data["demos"], "--experience.demos.outcome", "success"]
    run = ["run", "--policy.path", came, *roots, "--output-dir", tmp_path / "run", *BRIEF]
    aloe(*run)
    for session in range(2):
        alone(
            tmp_path,
            "rollout",
            f"--policy.path={tmp_path / 'run/rounds/001/pretrained_model'}",
            *("--strategy.type=dagger", "--strategy.record_autonomous=true", "--strategy.smooth_handover=false"),
            *("--robot.type=simple", "--teleop.type=simple_hand", "--play_sounds=false", "--fps=10"),
            *("--return_to_initial_position=false", "--dataset.repo_id=lab/rollout_dagger"),
            *(f"--dataset.root={data['dagger']}", "--dataset.single_task=stack the cubes", "--dataset.fps=10"),
            *("--dataset.push_to_hub=false", f"--resume={'true' if session else 'false'}"),
        )
    # The first observation is of the start. A key counts from the next one on: the policy acts on 2 to 4, when the human
    # pauses; corrects from 7 to 11; and ends the session.
    recorded = LeRobotDataset("lab/rollout_dagger", root=data["dagger"])
    taken_over = [bool(row) for row in recorded.hf_dataset["intervention"]]
    assert taken_over == 2 * ([False] * 3 + [True] * 5)
    (tmp_path / "dagger.csv").write_text("episode,outcome\n0,success\n1,failure\n")
    aloe(
        *run,
        *("--experience.dagger.root", data["dagger"], "--experience.dagger.outcomes", tmp_path / "dagger.csv"),
        *("--experience.dagger.policy-version", 1, "--rounds", 2),
    )
    table = pd.read_parquet(tmp_path / "run/rounds/002/advantages.parquet")
    assert len(table) == 19 + 16
    # Two fragments an episode, of the policy and of the human: sources 1 and 2.
    assert table["source"][19:].tolist() == 2 * ([1] * 3 + [2] * 5)
    assert table["policy_version"][19:22].tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smolvla", "pi05"])
def test_result_plays_in_lerobot_eval(family: str, tmp_path: Path) -> None:
    """In LeRobot's own Meta-World, which names its one camera otherwise: an episode of four steps."""
    sizes = (("observation.state", 4), ("action", 4))
    stats = {key: {name: torch.full((size,), value) for name, value in NUMBERS.items()} for key, size in sizes}
    with vlas.small_models():
        came = vlas.tiny_checkpoint(family, tmp_path, {"top": (480, 480)}, stats)
        PolicyBundle.load(came).save_atomically(tmp_path / "result")
    rename = '{"observation.image": "observation.images.top"}'
    alone(
        tmp_path,
        "eval",
        *(f"--policy.path={tmp_path / 'result'}", "--env.type=metaworld", "--env.task=reach-v3"),
        *(f"--rename_map={rename}", "--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"),
        f"--output_dir={tmp_path / 'eval'}",
    )
    assert json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 1


def record(root: Path) -> None:
    """Two demonstrations, with the names that lerobot-rollout gives."""
    rng, joints = np.random.default_rng(0), [f"joint_{k}.pos" for k in range(3)]
    columns = {key: {"dtype": "float32", "shape": (3,), "names": joints} for key in ("observation.state", "action")}
    for camera, size in CAMERAS.items():
        names = ["height", "width", "channels"]
        columns[f"observation.images.{camera}"] = {"dtype": "video", "shape": (*size, 3), "names": names}
    dataset = LeRobotDataset.create("lab/demos", 10, columns, root=root, robot_type="simple")
    for length in (9, 10):
        for _ in range(length):
            dataset.add_frame(
                {
                    "task": "stack the cubes",
                    **{key: rng.uniform(-1, 1, 3).astype(np.float32) for key in ("observation.state", "action")},
                    **{f"observation.images.{c}": rng.integers(0, 255, (*s, 3), np.uint8) for c, s in CAMERAS.items()},
                }
            )
        dataset.save_episode()
    dataset.finalize()
