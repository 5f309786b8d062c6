"""One round on recorded data for each family of VLAs, tiny and with random weights: critic, improve, save, and back."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.policies.factory import get_policy_class
from safetensors import safe_open
from safetensors.torch import load_file

from aloe import cli, stages
from aloe.experience.cache import Cache, FrameCache
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig
from aloe.policies import lerobot
from aloe.policies.bundle import PolicyBundle, Tower, observe
from aloe.policies.flow import chunk_shape, sample_chunks
from aloe.types import NO_POLICY, Episode, Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations
from aloe.value.play import BestOfPlayer

sys.path.insert(0, str(Path(__file__).parent / "policies"))
import vlas

CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
BRIEF = ["--steps", 4, "--batch-size", 4, "--window.horizon", 6]
CRITIC = ["--critic.critics", 2, "--critic.width", 16, "--critic.layers", 1, "--critic.heads", 2]


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def episode(seed: int, steps: int, source: Source, success: bool) -> Episode:
    rng, last = np.random.default_rng(seed), np.arange(steps) == steps - 1
    return Episode(
        task=("stack the cubes", "open the drawer")[seed % 2],
        seed=seed,
        images={c: rng.integers(0, 255, (steps, h, w, 3), np.uint8) for c, (h, w) in CAMERAS.items()},
        state=rng.standard_normal((steps, 5)).astype(np.float32),
        action=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        proposed_action=np.full((steps, 3), np.nan, np.float32),
        source=np.full(steps, source),
        policy_version=np.full(steps, NO_POLICY if source == Source.DEMO else 0),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=last,
        truncated=np.zeros(steps, bool),
        success=last & success,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ExperienceStore:
    made = ExperienceStore.create(
        tmp_path_factory.mktemp("data") / "store", cameras=CAMERAS, state_dim=5, action_dim=3, fps=10
    )
    for seed, (steps, source, success) in enumerate(
        [(12, Source.DEMO, True), (15, Source.DEMO, True), (14, Source.POLICY, False), (11, Source.POLICY, True)]
    ):
        made.append(episode(seed, steps, source, success))
    made.close()
    return made


@pytest.fixture(scope="module", params=vlas.FAMILIES)
def checkpoint(
    request: pytest.FixtureRequest, store: ExperienceStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    frames = store.columns()
    stats = {
        key: {
            "mean": torch.from_numpy(rows.mean(0)),
            "std": torch.from_numpy(rows.std(0)),
            "min": torch.from_numpy(rows.min(0)),
            "max": torch.from_numpy(rows.max(0)),
            "q01": torch.from_numpy(np.quantile(rows, 0.01, 0).astype(np.float32)),
            "q99": torch.from_numpy(np.quantile(rows, 0.99, 0).astype(np.float32)),
        }
        for key, rows in (("observation.state", frames.state), ("action", frames.action))
    }
    with vlas.small_models():
        yield vlas.tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param), CAMERAS, stats)


def test_recorded_data_make_a_better_checkpoint_that_lerobot_loads(
    checkpoint: Path, store: ExperienceStore, tmp_path: Path
) -> None:
    source = ["--policy.path", checkpoint, "--dataset.root", store.root]
    more = ["--aloe.samples", 2, "--critic.image-tokens", 4]
    aloe("critic", *source, "--output-dir", tmp_path / "critic", *BRIEF, *CRITIC, *more)
    table = pd.read_parquet(tmp_path / "critic/advantages.parquet")
    assert len(table) == store.num_frames
    assert np.isfinite(table["advantage"]).all()
    advantages = ["--advantages", tmp_path / "critic/advantages.parquet"]
    aloe("improve", *source, *advantages, "--output-dir", tmp_path / "improved", *BRIEF[:4])
    before, after = PolicyBundle.load(checkpoint), PolicyBundle.load(tmp_path / "improved/pretrained_model")
    changed = [
        name for name, value in before.policy.state_dict().items() if (after.policy.state_dict()[name] != value).any()
    ]
    assert changed
    # LeRobot's own loading, without anything of ours: the same chunk for the same noise, to the bit.
    kind = after.policy.name
    theirs = get_policy_class(kind).from_pretrained(tmp_path / "improved/pretrained_model").eval()
    frames = store.columns()
    seen = observe(
        after,
        {camera: pictures[:1] for camera, pictures in store.pictures(0).items()},
        frames.state[:1],
        [frames.tasks[frames.task_index[0]]],
    )
    noise = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs.predict_action_chunk(dict(seen), noise=noise)
    torch.testing.assert_close(sample_chunks(after.policy, seen, noise[:, None])[:, 0], expected, rtol=0, atol=0)


class Uncached:
    """Instead of the feature cache: pictures are read from the store and encoded whenever critics ask for them."""

    def __init__(self, cache: object, key: str, frames: FrameCache, shape: tuple[int, ...]) -> None:
        self.store = frames.store

    def update(self, encode: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
        self.encode = encode

    def gather(self, rows: np.ndarray) -> np.ndarray:
        starts = np.cumsum([0, *self.store.lengths])
        episode = np.searchsorted(starts, rows, "right") - 1
        seen = [self.store.pictures(e) for e in episode.tolist()]
        step = (rows - starts[episode]).tolist()
        return self.encode({c: np.stack([p[c][t] for p, t in zip(seen, step, strict=True)]) for c in CAMERAS})


def test_critics_of_the_cache_are_those_without_one_and_train_without_pictures_and_vla(
    checkpoint: Path, store: ExperienceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "critic",
        "--policy.path",
        checkpoint,
        "--dataset.root",
        store.root,
        *BRIEF,
        *CRITIC,
        "--aloe.samples",
        2,
    ]
    command += ["--critic.image-tokens", 4]
    fit = stages.critic_stage

    def blindfold(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((FrameCache, "gather"), (ExperienceStore, "pictures"), (lerobot, "_encoder")):
                patch.setattr(owner, name, lambda *_: pytest.fail("critic training looked at pictures or at the VLA"))
            fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "critic_stage", blindfold)
        aloe(*command, "--output-dir", tmp_path / "cached")
    monkeypatch.setattr(stages.critic, "FeatureCache", Uncached)
    aloe(*command, "--output-dir", tmp_path / "uncached")
    assert not list((tmp_path / "uncached/cache").rglob("features*"))
    cached, uncached = (load_file(tmp_path / name / "critic.safetensors") for name in ("cached", "uncached"))
    assert cached.keys() == uncached.keys()
    for name, value in cached.items():
        # The tower sees other batches: equal but for the last bits, of which float16 makes 1 in 2048 now and then.
        torch.testing.assert_close(uncached[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_critics_see_at_play_what_they_saw_in_training(
    checkpoint: Path, store: ExperienceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = PolicyBundle.load(checkpoint)
    tower = Tower(bundle=bundle, image_tokens=4)
    inputs = stages.EvaluationInputs.of(store, bundle, tower, Cache(root=tmp_path), WindowConfig(horizon=6), 15.0)
    FrameCache(inputs.cache, store).update()
    rows = np.array([3, 15])  # the fourth of an episode and the fourth of the next, which has the other task
    learnt = stages.critic.observation_source(inputs)(rows)

    seen: list[Observations] = []
    judge = ChunkCritic.of_samples
    monkeypatch.setattr(ChunkCritic, "of_samples", lambda self, o, chunks: seen.append(o) or judge(self, o, chunks))
    critic = ChunkCritic(CriticConfig(critics=1, width=16, layers=1, heads=2), stages.observation_shape(tower, 6))
    pictures = [store.pictures(episode) for episode in (0, 1)]
    player = BestOfPlayer(bundle=bundle, critic=critic, tower=tower, samples=2, aggregation="min")
    player(
        {camera: np.stack([p[camera][3] for p in pictures]) for camera in CAMERAS},
        inputs.frames.state[rows],
        [inputs.frames.tasks[i] for i in inputs.frames.task_index[rows]],
        np.zeros((2, *player.noise_shape), np.float32),
    )
    (played,) = seen
    assert not torch.equal(learnt.language[0], learnt.language[1])
    torch.testing.assert_close(played.language, learnt.language)
    torch.testing.assert_close(played.state, learnt.state)
    torch.testing.assert_close(played.features, learnt.features.float(), rtol=1e-2, atol=1e-2)  # kept as float16


def test_critic_judges_fewer_actions_than_the_policy_predicts(
    checkpoint: Path,
    store: ExperienceStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    source = ["--policy.path", checkpoint, "--dataset.root", store.root]  # which predicts chunks of 6
    brief = ["--steps", 2, "--batch-size", 4, "--window.horizon", 4]
    aloe("critic", *source, "--output-dir", tmp_path / "critic", *brief, *CRITIC, "--aloe.samples", 2)
    with safe_open(tmp_path / "critic/critic.safetensors", framework="pt") as critic:
        # Readouts of 2 critics, state, words, a token of each of 2 cameras, and the 4 actions.
        assert critic.get_tensor("critic/position").shape[0] == 2 + 1 + 1 + 2 + 4
    trained = []
    original = stages.actor.train_actor
    monkeypatch.setattr(stages.actor, "train_actor", lambda *a, **k: trained.append(a[1]) or original(*a, **k))
    advantages = ["--advantages", tmp_path / "critic/advantages.parquet"]
    aloe("improve", *source, *advantages, "--output-dir", tmp_path / "improved", *brief[:4])
    (data,) = trained
    # The first episode has 12 steps: from step 8 on there are 4 actions left of the 6 that the policy predicts.
    assert data.chunk[8].tolist() == [8, 9, 10, 11, 11, 11]
    assert data.is_pad[8].tolist() == [False] * 4 + [True] * 2
    assert chunk_shape(PolicyBundle.load(tmp_path / "improved/pretrained_model").policy) == (6, 3)
    with pytest.raises(SystemExit):
        aloe("critic", *source, "--output-dir", tmp_path / "long", "--window.horizon", 7)
    assert "chunks of 6 actions, windows hold 7; give --window.horizon 6 or less" in capsys.readouterr().err


def test_guidance_that_the_policy_does_not_know_is_refused_before_the_run_begins(
    checkpoint: Path, store: ExperienceStore, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = ["--policy.path", checkpoint, "--experience.robot.root", store.root, "--offline", "--window.horizon", 6]
    with pytest.raises(SystemExit):
        aloe("run", *source, "--method", "recap", "--recap.guidance", 1.5, "--output-dir", tmp_path / "run")
    assert "knows no classifier-free guidance; give --recap.guidance 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
