"""A round of a real VLA stage by stage: time, memory and arithmetic; and the naive way, on the same data in the same run.

    .venv/bin/python benchmarks/vla_round.py --policy smolvla --size tiny
    .venv/bin/python benchmarks/vla_round.py --policy pi05 --size full          # on a GPU

Random weights: nothing is downloaded. The naive way reads every batch through LeRobot's loader, encodes its pictures and
draws the policy's chunks, one after the other, in every critic step. Its critic step is the very same function.

FLOP are those of the model, counted by torch on two windows, without what activation checkpointing computes again. The
peak they are compared with is the card's in dense bfloat16; of a CPU, or a card that is not in the list, what a large
matrix product reaches there. Memory is what a stage takes beside the weights at its peak.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import tyro
from _common import machine, print_row
from _measure import Cost, Meter, peak
from _vlas import ACTION, CAMERA, CAMERAS, CHUNK, STATE, Family, Size, random_vla
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe import stages
from aloe.experience.cache import Cache, FrameCache
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig
from aloe.policies.bundle import PolicyBundle, Tower
from aloe.policies.flow import noise_shape
from aloe.policies.memory import GIB
from aloe.policies.recipe import ActorConfig, Train, recipe
from aloe.policies.sampling import sample_shard
from aloe.policies.train import ActorRows, PolicyRows, actor_losses, descend
from aloe.policies.trainable import trainable
from aloe.stages import EvaluationInputs
from aloe.training import Device
from aloe.types import NO_POLICY, Episode, Source
from aloe.value.critic import CriticConfig, Observations
from aloe.value.fit import CriticData, FitConfig, critic_step

CARD = 24  # GiB, of which one is the driver's
GOALS = {"critic": 20, "sample": 3}  # times faster than naive
LEARNS: dict[Train, str] = {"lora": "LoRA", "expert": "action expert", "all": "everything"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    policy: Family = "smolvla"
    size: Size = "tiny"
    device: Device = "auto"
    windows: int = 600
    """N: steps in the store, one window each."""
    episode: int = 60
    """T: steps of each episode."""
    samples: int = 8
    """M: chunks at each frame."""
    sample_batch: int = 32
    """Observations that are encoded, or at which chunks are drawn, at once."""
    critic_batch: int = 256
    actor_batch: int = 16
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the actor's step; by default bfloat16 on a GPU, where it is faster."""
    checkpointing: bool = False
    """Of activations, in the actor's step."""
    seconds: float = 5
    """How long to measure each row."""
    naive: bool = True
    """Whether to measure the naive way, too."""
    threads: int = 1
    """Threads of torch."""


def make_store(root: Path, config: Config) -> ExperienceStore:
    """Videos of noise that moves, two cameras; every other episode fails, the first two are demonstrations."""
    cameras = dict.fromkeys(CAMERAS, CAMERA[config.size])
    store = ExperienceStore.create(root, cameras=cameras, state_dim=STATE, action_dim=ACTION, fps=30, video=True)
    rng, steps = np.random.default_rng(0), config.episode
    last = np.arange(steps) == steps - 1
    h, w = CAMERA[config.size]
    still = rng.integers(0, 255, (h, w, 3), np.uint8)
    for index in range(-(-config.windows // steps)):
        demo = index < 2
        success = demo or index % 2 == 0
        moving = np.stack([np.roll(still, (t * h // steps, index * w // 7), (0, 1)) for t in range(steps)])
        episode = Episode(
            task="stack the cubes",
            seed=index,
            images=dict.fromkeys(cameras, moving),
            state=rng.standard_normal((steps, STATE)).astype(np.float32),
            action=rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32),
            proposed_action=np.full((steps, ACTION), np.nan, np.float32),
            source=np.full(steps, Source.DEMO if demo else Source.POLICY, np.int64),
            policy_version=np.full(steps, NO_POLICY if demo else 0, np.int64),
            reward=np.where(last & success, 0, -1).astype(np.float32),
            terminated=last,
            truncated=np.zeros(steps, bool),
            success=last & success,
        )
        store.append(episode)
    return store


class Naive:
    """What critics need of a frame, made anew whenever it is asked for: loaded, encoded, and sampled one by one."""

    def __init__(self, root: Path, inputs: EvaluationInputs, cached: CriticData) -> None:
        self._dataset = LeRobotDataset(root.name, root=root)
        self._inputs, self._language = inputs, cached.observations(np.zeros(1, np.int64)).language
        self.shape = cached.samples.shape
        self._last: tuple[bytes, dict] = (b"", {})

    def load(self, rows: np.ndarray) -> dict:
        """A preprocessed batch; the last one is kept, since a step asks for pictures and for chunks of the same rows."""
        if self._last[0] != rows.tobytes():
            batch = torch.utils.data.default_collate([self._dataset[int(row)] for row in rows])
            self._last = rows.tobytes(), self._inputs.bundle.preprocessor(batch)
        return self._last[1]

    def observations(self, frames: np.ndarray) -> Observations:
        batch, tower = self.load(frames), self._inputs.tower
        pictures = {
            camera: (255 * batch[f"observation.images.{camera}"].permute(0, 2, 3, 1)).round().byte().numpy()
            for camera in self._inputs.store.cameras
        }
        return Observations(
            features=tower.encode(pictures),
            state=batch["observation.state"].cpu(),
            language=self._language.expand(len(frames), -1),
        )

    def __getitem__(self, at: tuple[np.ndarray, slice | np.ndarray]) -> np.ndarray:
        """Chunks at these rows: for a slice that many, one policy call after the other; else one for each row."""
        rows, which = at
        count = which.stop if isinstance(which, slice) else 1
        batch = {key: value for key, value in self.load(rows).items() if key != "action"}
        chunks = np.stack([one_by_one(self._inputs.bundle, batch) for _ in range(count)], 1)
        return (chunks if isinstance(which, slice) else chunks[:, 0])[..., : self.shape[2], :]


def one_by_one(bundle: PolicyBundle, batch: dict) -> np.ndarray:
    """A chunk for each observation, by LeRobot's own call."""
    noise = torch.randn(len(batch["observation.state"]), *noise_shape(bundle.policy))
    device = next(bundle.policy.parameters()).device
    seen = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return bundle.policy.predict_action_chunk(seen, noise=noise.to(device)).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every measurement needs."""

    config: Config
    meter: Meter
    inputs: EvaluationInputs
    folder: Path

    @property
    def bundle(self) -> PolicyBundle:
        return self.inputs.bundle

    def pictures(self) -> FrameCache:
        pictures = FrameCache(self.inputs.cache, self.inputs.store)
        pictures.update()
        return pictures

    def rows(self) -> PolicyRows:
        return stages.policy_rows(self.bundle, self.inputs.frames, self.pictures())

    def row(self, what: str, windows: int, cost: Cost, naive: Cost | None = None, goal: int | None = None) -> None:
        """A line of the table. windows: in each run of what was measured."""
        each = cost.seconds / windows
        use = f"{cost.flop / windows / each / self.meter.peak:.0%}" if cost.flop else ""
        slower = "" if naive is None else f"{1000 * naive.seconds / windows:.2f}"
        times = "" if naive is None else f"{naive.seconds / cost.seconds:.1f}"
        wanted = "" if naive is None or goal is None else f" (goal {goal})"
        size = f"{cost.bytes / GIB:.2f}" if cost.bytes else ""
        print_row(
            [what, windows, f"{1000 * cost.seconds:.1f}", f"{1000 * each:.2f}", size, use, slower, times + wanted]
        )

        self.meter.seconds[what] = each, None if naive is None else naive.seconds / windows

    def phase(self) -> None:
        """What a whole phase of policy evaluation takes, with all that the cached steps need beforehand."""
        spent, fit, count = self.meter.seconds, FitConfig(), len(self.inputs.frames)
        (encode, _), (sample, _), (step, naive) = (spent[what] for what in list(spent)[:3])
        seen = fit.steps * fit.batch_size
        cached = count * (encode + sample) + seen * step
        line = f"\nPolicy evaluation on {count} windows, {fit.steps} steps of {fit.batch_size}: {cached:.0f} s in all"
        print(
            line if naive is None else f"{line}; naive {seen * naive:.0f} s, {seen * naive / cached:.0f} times as long"
        )

    def encode(self) -> None:
        pictures, rows = self.pictures(), np.arange(self.config.sample_batch)
        seen = {camera: pictures.gather(camera, rows) for camera in self.inputs.store.cameras}

        def work(count: int) -> None:
            self.inputs.tower.encode({camera: images[:count] for camera, images in seen.items()})

        self.row("encode features", len(rows), self.meter.cost(work, len(rows)))

    def sample(self) -> None:
        config, data, count = self.config, self.rows(), self.config.sample_batch

        def shared(count: int) -> None:
            sample_shard(self.bundle, data, 0, count, config.samples, (0,), size=count)

        def separate(count: int) -> None:
            batch = data.batch(np.arange(count))
            for _ in range(config.samples):
                one_by_one(self.bundle, batch)

        cost, naive = self.meter.cost(shared, count), None
        if config.naive:
            mine, theirs = self.meter.in_turns([lambda: shared(count), lambda: separate(count)], turns=2)
            cost, naive = replace(cost, seconds=mine / 1000), Cost(seconds=theirs / 1000)
        self.row(f"sample {config.samples} chunks", count, cost, naive, GOALS["sample"])

    def critic(self) -> None:
        config, inputs = self.config, self.inputs
        fit, samples = FitConfig(batch_size=config.critic_batch), self.folder / "samples.npy"
        # Drawing them was timed above; the critics' time does not depend on what the numbers are.
        shape = (len(inputs.frames), config.samples, CHUNK[config.size], ACTION)
        np.save(samples, np.random.default_rng(0).standard_normal(shape, np.float32))
        data = stages.critic_data(inputs, samples, inputs.windows.frames.shape[1])
        shape = stages.observation_shape(inputs.tower, inputs.windows.frames.shape[1])
        state = stages.new_critic(shape, CriticConfig(), fit, (0,), inputs.tower.device)
        usable, generator = np.flatnonzero(inputs.windows.has_target), torch.Generator().manual_seed(0)

        def step(data: CriticData, count: int) -> None:
            batch = usable[torch.randint(len(usable), (count,), generator=generator).numpy()]
            critic_step(state, data, batch, fit, WindowConfig().discount, 1e-4, generator)

        cost = self.meter.cost(partial(step, data), fit.batch_size, state.critic)
        naive = None
        if config.naive:
            lazy = Naive(self.folder / "store", inputs, data)
            slow = replace(data, observations=lazy.observations, samples=lazy)  # pyright: ignore[reportArgumentType]
            naive = self.meter.cost(partial(step, slow), fit.batch_size, state.critic, seconds_only=True)
        self.row("critic step", fit.batch_size, cost, naive, GOALS["critic"])

    def actor(self, train: Train) -> None:
        config, bundle = self.config, self.bundle
        on_gpu = self.meter.device.type == "cuda"
        dtype = ("bfloat16" if on_gpu else "float32") if config.dtype == "auto" else config.dtype
        fit = ActorConfig(batch_size=config.actor_batch, train=train, dtype=dtype, checkpointing=config.checkpointing)
        data = self.rows()
        frames = len(self.inputs.frames)
        actor = ActorRows(rows=np.arange(frames), weight=np.ones(frames, np.float32))
        numbers = recipe(bundle.policy, fit, improving=True)

        def stepper(fit: ActorConfig) -> Callable[[int], None]:
            optimizer, generator = numbers.optimizer(bundle.policy), torch.Generator().manual_seed(0)

            def step(count: int) -> None:
                rows = torch.randint(frames, (count,), generator=generator).numpy()
                losses = actor_losses(bundle, data, actor, rows, fit, generator)
                descend(bundle.policy, optimizer, losses, numbers.clip_norm)

            return step

        with trainable(bundle.policy, replace(fit, checkpointing=False), (0,)):
            flop = self.meter.flop(stepper(fit), 2) / 2 * fit.batch_size
        with trainable(bundle.policy, fit, (0,)):
            less = self.meter.bytes(stepper(fit), fit.batch_size // 2)
            cost = replace(self.meter.cost(stepper(fit), fit.batch_size, flop=False), flop=flop)
        self.row(f"actor step, {LEARNS[train]}", fit.batch_size, cost)
        weights = sum(p.numel() * p.element_size() for p in bundle.policy.parameters())
        window = (cost.bytes - less) / (fit.batch_size - fit.batch_size // 2)
        fixed = weights + cost.bytes - fit.batch_size * window
        self.meter.fits[LEARNS[train]] = (fixed, window)

    def latency(self) -> None:
        """One chunk for one observation, by LeRobot alone: of the policy that came, and of the one that went out."""
        bundle = self.bundle
        self.bundle.policy.save_pretrained(self.folder / "out")
        kind = type(bundle.policy)
        after = kind.from_pretrained(self.folder / "out").to(self.meter.device).eval()
        batch = self.rows().batch(np.arange(1))
        times = self.meter.in_turns(
            [lambda: one_by_one(bundle, batch), lambda: one_by_one(replace(bundle, policy=after), batch)]
        )
        print(f"\nOne chunk by LeRobot alone: {times[0]:.1f} ms before, {times[1]:.1f} ms after the round (medians)")


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True  # as in LeRobot's own commands
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "store", config)
        with random_vla(config.policy, config.size, folder) as bundle:
            bundle.policy.to(device)
            tower, cache = Tower(bundle=bundle, image_tokens=4), Cache(root=folder / "cache")
            inputs = EvaluationInputs.of(
                store, bundle, tower, cache, WindowConfig(horizon=CHUNK[config.size]), config.episode
            )
            meter = Meter(bundle.policy, device, config.seconds)
            bench = Bench(config=config, meter=meter, inputs=inputs, folder=folder)
            count = sum(parameter.numel() for parameter in bundle.policy.parameters())
            print(
                f"{config.policy}, {config.size}: {count / 1e6:.1f} M parameters, {len(CAMERAS)} cameras of "
                f"{CAMERA[config.size][1]} x {CAMERA[config.size][0]}, chunks of {CHUNK[config.size]}, "
                f"{tower.image_tokens} picture tokens a camera\n\n"
                f"{machine()}, {peak(device)[1]}\n"
            )
            columns = ["what", "batch", "ms a run", "s per 1,000 windows", "GiB", "of the peak"]
            columns += ["naive, s per 1,000", "times faster"]
            print_row(columns)
            print_row(["---"] * len(columns))
            bench.encode()
            bench.sample()
            bench.critic()
            for train in LEARNS:
                bench.actor(train)
            bench.phase()
            print()
            for what, (fixed, window) in meter.fits.items():
                room = ((CARD - 1) * GIB - fixed) / window
                batch = f"{int(room)} windows at once" if room >= 1 else "nothing"
                print(f"- {what}: {fixed / GIB:.2f} GiB and {window / GIB:.3f} a window; {CARD} GiB hold {batch}")
            bench.latency()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
