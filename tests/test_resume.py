"""A run that is killed anywhere and started again ends with the same bytes as one that was never killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aloe.experience.windows import Windows
from aloe.policies.bundle import PolicyBundle
from aloe.policies.recipe import ActorConfig
from aloe.policies.train import ActorRows, PolicyRows, train_actor
from aloe.training import generator_for
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.fit import CriticData, CriticState, FitConfig, fit_critic

KILLS = [
    # stage, what the process is about to do when it is killed, how often it may do it before
    (
        "demos: the second episode's files are there, but are not counted yet",
        "rename",
        "*/experience/meta/info.json",
        1,
    ),
    ("demos: recorded, not yet marked as done", "rename", "*/rounds/000/demos.done.json", 0),
    ("sft: between two checkpoints", "rename", "*/rounds/000/sft.checkpoint.safetensors", 1),
    ("sft: trained and logged, nothing written", "rename", "*/rounds/000/optimizer.safetensors", 0),
    ("sft: half of the policy's folder", "open", "*/rounds/000/pretrained_model.partial/policy_pre*.json", 0),
    ("eval: the second recorded episode is not counted yet", "rename", "*/000/fresh.partial/meta/info.json", 1),
    ("eval: recorded, not in place", "rename", "*/rounds/000/fresh", 0),
    ("eval: recorded, what is known of the episodes is not", "rename", "*/rounds/000/fresh.json", 0),
    ("eval: measured and logged, not marked", "rename", "*/rounds/000/eval.done.json", 0),
    ("after the round: before the summary", "rename", "*/summary.json", 0),
    ("collect: in the second episode", "rename", "*/experience/meta/info.json", 1),
    ("sample: sampled, not in place", "rename", "*/cache/samples/001.npy", 0),
    ("critic: while features are encoded", "rename", "*/cache/features/*/index.json", 0),
    ("critic: between two checkpoints", "rename", "*/rounds/001/critic.checkpoint.safetensors", 1),
    ("critic: trained and logged, nothing written", "rename", "*/rounds/001/critic.safetensors", 0),
    ("advantages: half the file", "rename", "*/rounds/001/advantages.parquet", 0),
    ("advantages: written and logged, not marked", "rename", "*/rounds/001/advantages.done.json", 0),
    ("trust: while features of fresh episodes are encoded", "rename", "*/cache/features/*/index.json", 0),
    ("trust: sampled, not in place", "rename", "*/cache/fresh/000.npy", 0),
    ("trust: judged, nothing written", "rename", "*/rounds/001/trust.json", 0),
    ("trust: written and logged, not marked", "rename", "*/rounds/001/trust.done.json", 0),
    ("improve: between two checkpoints", "rename", "*/rounds/001/improve.checkpoint.safetensors", 1),
    ("improve: the policy stands beside its place", "rename", "*/rounds/001/pretrained_model", 0),
    ("improve: written, not marked", "rename", "*/rounds/001/improve.done.json", 0),
    ("eval: of the last round", "rename", "*/rounds/002/eval.done.json", 0),
    ("at the very end: before the last summary", "rename", "*/summary.json", 0),
]


def aloe_dies(arguments: list[str], event: str, pattern: str, spared: int) -> None:
    """`aloe run`, killed when it is about to rename a file to `pattern` (or to open it for writing)."""
    from aloe.cli import main

    left = [spared]

    def watch(name: str, details: tuple) -> None:
        if name == "os.rename" and event == "rename":
            path = os.fspath(details[1])
        elif name == "open" and event == "open" and isinstance(details[0], str | Path) and details[1] in ("w", "wb"):
            path = os.fspath(details[0])
        else:
            return
        if fnmatch(path, pattern):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(watch)
    sys.argv = ["aloe", *arguments]
    main()


def serve() -> None:
    """For every line of stdin forks a process that does `aloe_dies`, and prints its exit code."""
    from aloe import cli, commands  # noqa: F401 - once for all: starting Python twenty times would take longer than all the runs

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            said = os.open(order.pop("said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            code = 1
            try:
                aloe_dies(**order)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


Fork = Callable[..., int]


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Iterator[Fork]:
    """Runs `aloe` in a process of its own, which may be killed on the way; returns its exit code."""
    said = tmp_path_factory.mktemp("said") / "output.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = [sys.executable, __file__]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(*arguments: str, event: str = "rename", pattern: str = "", spared: int = 0) -> int:
            order = {"arguments": arguments, "event": event, "pattern": pattern, "spared": spared, "said": str(said)}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            assert code in (0, -signal.SIGKILL), said.read_text()
            return code

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run, by the command that a user would type."""
    root = tmp_path_factory.mktemp("whole") / "run"
    command = [str(Path(sys.executable).with_name("aloe")), "run", "--preset", "tiny", "--output-dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return root


def results(root: Path) -> dict[str, object]:
    """All that a run has found out: relative path -> bytes, or the content without what a clock decides."""
    exact = (
        *("rounds/*/*.safetensors", "rounds/*/pretrained_model/*", "cache/samples/*", "experience/data/*/*"),
        *("rounds/*/fresh/data/*/*", "rounds/*/fresh.json", "rounds/*/trust.json"),
    )
    content: dict[str, object] = {
        str(path.relative_to(root)): path.read_bytes() for pattern in exact for path in root.glob(pattern)
    }
    content["metrics.jsonl"] = (root / "metrics.jsonl").read_text()
    for path in root.glob("rounds/*/advantages.parquet"):
        content[str(path.relative_to(root))] = pd.read_parquet(path).to_csv()
    summary = json.loads((root / "summary.json").read_text())
    for row in summary["rounds"]:
        row["seconds"] = sorted(row["seconds"])  # which stages, not how long
    content["summary.json"] = summary
    return content


def assert_equal_results(left: dict[str, object], right: dict[str, object]) -> None:
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_bytes(whole, fork, tmp_path):
    arguments = ["run", "--preset", "tiny", "--output-dir", str(tmp_path / "run")]
    for what, event, pattern, spared in KILLS:
        code = fork(*arguments, event=event, pattern=pattern, spared=spared)
        assert code == -signal.SIGKILL, f"the run ended without ever coming to this point: {what}"
    assert fork(*arguments) == 0
    assert_equal_results(results(tmp_path / "run"), results(whole))
    left_over = [
        str(p) for p in (tmp_path / "run").rglob("*") if p.name.endswith((".partial", ".checkpoint.safetensors"))
    ]
    assert left_over == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(whole, fork, tmp_path):
    for name, seed in (("same", "0"), ("other", "1")):
        arguments = ["run", "--preset", "tiny", "--rounds", "0", "--seed", seed]
        assert fork(*arguments, "--output-dir", str(tmp_path / name)) == 0
    first, same, other = results(whole), results(tmp_path / "same"), results(tmp_path / "other")
    learnt = [name for name in same if name.startswith(("rounds/000", "experience/data")) and name.endswith(("s", "t"))]
    assert "rounds/000/pretrained_model/model.safetensors" in learnt
    assert "experience/data/chunk-000/file-000.parquet" in learnt
    assert [name for name in learnt if same[name] != first[name]] == []
    for name in ("rounds/000/pretrained_model/model.safetensors", "experience/data/chunk-000/file-000.parquet"):
        assert other[name] != first[name]
    assert other["metrics.jsonl"] != same["metrics.jsonl"]


class Killed(Exception):  # noqa: N818 - stands for a signal
    """What the log raises where a kill would come."""


def die_at(step: int):
    def log(at: int, values: dict[str, float]) -> None:
        if at == step:
            raise Killed

    return log


def state_bytes(state: dict) -> dict[str, bytes]:
    """A nested state dict, flat and in bytes."""
    flat: dict[str, bytes] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": content for name, content in state_bytes(value).items()}
        elif isinstance(value, torch.Tensor):
            flat[str(key)] = value.numpy().tobytes()
    return flat


def small_policy() -> PolicyBundle:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy

    torch.manual_seed(0)
    config = TinyVLAConfig(
        device="cpu",
        push_to_hub=False,
        chunk_size=3,
        n_action_steps=1,
        vision_width=4,
        keypoints=2,
        width=16,
        depth=1,
        image_shift=2,
        input_features={
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 16, 16)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )
    stats = {name: {"mean": torch.zeros(2), "std": torch.ones(2)} for name in ("observation.state", "action")}
    pre, post = make_pre_post_processors(config, dataset_stats=stats)
    return PolicyBundle(policy=TinyVLAPolicy(config), preprocessor=pre, postprocessor=post)


def actor_problem(bundle: PolicyBundle, frames: int = 10) -> tuple[PolicyRows, ActorRows]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (frames, 16, 16, 3), np.uint8)
    state, action = rng.standard_normal((2, frames, 2)).astype(np.float32)
    wanted = np.arange(frames)[:, None] + np.arange(3)
    chunks = (np.minimum(wanted, frames - 1), wanted >= frames)
    rows = PolicyRows.of(bundle, state, action, chunks, ["push"] * frames, lambda rows: {"top": pictures[rows]})
    return rows, ActorRows(rows=np.arange(frames), weight=rng.random(frames).astype(np.float32))


def test_actor_training_of_2_steps_and_a_resume_to_4_equals_4_straight(tmp_path):
    config = ActorConfig(steps=4, batch_size=4, save_every=2)
    trained = []
    for killed in (False, True):
        bundle = small_policy()
        rows, actor = actor_problem(bundle)
        checkpoint = tmp_path / f"{killed}.safetensors"
        if killed:  # the log is called after the last step's descent, which is thereby lost
            with pytest.raises(Killed):
                train_actor(bundle, rows, actor, config, (0, "sft"), checkpoint=checkpoint, log=die_at(3))
            bundle = small_policy()
        optimizer = train_actor(bundle, rows, actor, config, (0, "sft"), checkpoint=checkpoint)
        trained.append(state_bytes(bundle.policy.state_dict()) | state_bytes(optimizer.state_dict()))
    assert trained[0] == trained[1]
    assert trained[0] != state_bytes(small_policy().policy.state_dict())


def critic_problem(frames: int = 12, horizon: int = 3, samples: int = 2) -> CriticData:
    """One fragment of `frames` steps, which fails at its end."""
    rng = np.random.default_rng(0)
    wanted = np.arange(frames)[:, None] + np.arange(horizon)
    ends = wanted[:, -1] >= frames - 1
    observed = Observations(
        features=torch.from_numpy(rng.standard_normal((frames, 1, 6)).astype(np.float32)),
        state=torch.from_numpy(rng.standard_normal((frames, 2)).astype(np.float32)),
        language=torch.from_numpy(rng.standard_normal((frames, 8)).astype(np.float32)),
    )
    windows = Windows(
        frames=np.minimum(wanted, frames - 1),
        is_pad=wanted >= frames,
        reward=np.where(wanted < frames, -1 / frames, 0).astype(np.float32),
        terminated=ends,
        next_frame=np.minimum(np.arange(frames) + horizon, frames - 1),
        fragment=np.zeros(frames, np.int64),
        fragment_success=np.zeros(frames, bool),
        ended=np.ones(frames, bool),
        failed=np.ones(frames, bool),
        monte_carlo=-np.linspace(1, 0, frames, dtype=np.float32),
        has_target=np.ones(frames, bool),
        return_range=(-2.0, 0.0),
    )

    def observations(rows: np.ndarray) -> Observations:
        picked = torch.from_numpy(rows)
        return Observations(
            features=observed.features[picked], state=observed.state[picked], language=observed.language[picked]
        )

    return CriticData(
        windows=windows,
        observations=observations,
        action=torch.from_numpy(rng.standard_normal((frames, 2)).astype(np.float32)),
        samples=rng.standard_normal((frames, samples, horizon, 2)).astype(np.float32),
    )


@pytest.mark.parametrize("bootstrap", ["policy", "in-sample"])
def test_critic_training_of_2_steps_and_a_resume_to_4_equals_4_straight(tmp_path, bootstrap):
    config = FitConfig(steps=4, batch_size=4, save_every=2, bootstrap=bootstrap)
    data = critic_problem()
    size = CriticConfig(critics=2, width=8, layers=1, heads=2)
    shape = ObservationShape(cameras=1, feature_dim=6, state_dim=2, language_dim=8, action_dim=2, horizon=3)

    def fresh() -> CriticState:
        torch.manual_seed(generator_for("critic").initial_seed())
        value = ChunkCritic(size, replace(shape, horizon=0)) if bootstrap == "in-sample" else None
        return CriticState(ChunkCritic(size, shape), config, value)

    trained = []
    for killed in (False, True):
        state, checkpoint = fresh(), tmp_path / f"{killed}.safetensors"
        if killed:
            with pytest.raises(Killed):
                fit_critic(state, data, config, 0.99, (0, "critic"), checkpoint=checkpoint, log=die_at(3))
            state = fresh()
        fit_critic(state, data, config, 0.99, (0, "critic"), checkpoint=checkpoint)
        parts = {**state.modules(), **state.optimizers()}
        trained.append(state_bytes({name: part.state_dict() for name, part in parts.items()}))
    assert trained[0] == trained[1]
    assert {name.split("/")[0] for name in trained[0]} >= {"critic", "target", "optimizer"}


if __name__ == "__main__":
    serve()
