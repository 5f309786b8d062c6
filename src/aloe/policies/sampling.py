"""Chunks of the current policy at every frame, drawn once for a whole phase, shard by shard.

A shard is a function of the policy's weights, the store, the key and its own number: a stopped stage goes on where it
stopped, and several processes could each draw some.
"""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from tqdm import tqdm

from aloe.policies.bundle import PolicyBundle
from aloe.policies.flow import chunk_shape, noise_shape, sample_chunks, weights_key
from aloe.policies.train import PolicyRows
from aloe.training import generator_for

SHARD = 256
"""Frames in a shard. The noise of all its chunks is drawn at once: another number means other chunks."""


def sample_shard(
    bundle: PolicyBundle,
    data: PolicyRows,
    shard: int,
    frames: int,
    samples: int,
    key: tuple[int | str, ...],
    batch_size: int = SHARD,
    size: int = SHARD,
) -> Float32[ndarray, "R M H A"]:
    """M normalised chunks at each frame of a shard of the `frames` of a store.

    batch_size: observations that go through the policy at once. It decides memory, and the last bits of the result.
    """
    rows = np.arange(shard * size, min((shard + 1) * size, frames))
    noise = torch.randn(len(rows), samples, *noise_shape(bundle.policy), generator=generator_for(*key, shard))
    parts = range(0, len(rows), batch_size)
    chunks = [
        sample_chunks(bundle.policy, data.batch(rows[i : i + batch_size]), noise[i : i + batch_size]) for i in parts
    ]
    return torch.cat(chunks).numpy()


def sample_all_chunks(
    bundle: PolicyBundle,
    data: PolicyRows,
    frames: int,
    samples: int,
    key: tuple[int | str, ...],
    out: Path,
    batch_size: int = SHARD,
    size: int = SHARD,
) -> None:
    """Writes M chunks at every frame to `out` (.npy, float32, (N, M, H, A), normalised). Shards that an earlier attempt
    with the same weights, key and sizes left beside it are not drawn again."""
    what = [weights_key(bundle.policy), *key, frames, samples, batch_size, size]
    folder = out.with_name(f"{out.name}.shards-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{shard:06d}.npy" for shard in range(-(-frames // size))]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    done = len(paths) - len(missing)
    for shard in tqdm(missing, desc="sample chunks", unit="shard", initial=done, total=len(paths), delay=2):
        content = io.BytesIO()  # numpy itself says nothing of a full disk
        np.save(content, sample_shard(bundle, data, shard, frames, samples, key, batch_size, size))
        partial = folder / f"{shard:06d}.partial"
        partial.write_bytes(content.getbuffer())
        os.replace(partial, paths[shard])
    partial = out.with_name(out.name + ".partial")
    shape = (frames, samples, *chunk_shape(bundle.policy))
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    with partial.open("r+b") as file:  # a disk that fills up under a memory map would kill the process without a word
        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    for shard, path in enumerate(paths):
        array[shard * size : (shard + 1) * size] = np.load(path)
    array.flush()
    os.replace(partial, out)
    for left in out.parent.glob(f"{out.name}.shards-*"):
        shutil.rmtree(left)
