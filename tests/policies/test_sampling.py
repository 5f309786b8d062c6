"""Chunks of all frames: what decides them, and that a stopped attempt is gone on with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aloe.policies import sampling
from aloe.policies.bundle import PolicyBundle
from aloe.policies.sampling import sample_all_chunks
from aloe.policies.train import PolicyRows
from aloe.training import generator_for

FRAMES = 10  # shards of 4: frames 0 to 3, 4 to 7, and 8 and 9


def rows_of(bundle: PolicyBundle) -> PolicyRows:
    rng = np.random.default_rng(0)
    pictures = {camera: rng.integers(0, 256, (FRAMES, 16, 16, 3), np.uint8) for camera in ("top", "wrist")}
    state, action = (rng.standard_normal((FRAMES, dim)).astype(np.float32) for dim in (5, 3))
    chunks = (np.zeros((FRAMES, 4), np.int64), np.zeros((FRAMES, 4), bool))  # which nothing is trained on
    return PolicyRows.of(
        bundle,
        state,
        action,
        chunks,
        ["push"] * FRAMES,
        lambda rows: {camera: p[rows] for camera, p in pictures.items()},
    )


def drawn(bundle: PolicyBundle, out: Path, seed: int = 0, batch_size: int = 4) -> np.ndarray:
    sample_all_chunks(bundle, rows_of(bundle), FRAMES, 2, (seed, "sample"), out, batch_size, size=4)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return np.load(out)


def test_chunks_of_all_frames_depend_on_frame_and_key_alone(bundle: PolicyBundle, tmp_path: Path) -> None:
    first, again, other = (drawn(bundle, tmp_path / f"{n}" / "chunks.npy", seed) for n, seed in enumerate((0, 0, 1)))
    assert (first.shape, first.dtype) == ((FRAMES, 2, 4, 3), np.float32)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    noise = torch.randn(2, 2, 4, 3, generator=generator_for(0, "sample", 2))  # the third shard: frames 8 and 9
    single = bundle.policy.predict_action_chunk(rows_of(bundle).batch(np.array([8, 9])), noise=noise[:, 1])
    np.testing.assert_allclose(first[8:, 1], single.numpy(), rtol=1e-5, atol=1e-6)


def test_small_batches_sample_the_same_chunks(bundle: PolicyBundle, tmp_path: Path) -> None:
    whole, small = drawn(bundle, tmp_path / "a" / "c.npy"), drawn(bundle, tmp_path / "b" / "c.npy", batch_size=3)
    np.testing.assert_allclose(small, whole, rtol=1e-5, atol=1e-6)


@pytest.fixture
def shards_drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards that are drawn from here on; the third draw is interrupted."""
    seen: list[int] = []
    original = sampling.sample_shard

    def draw(bundle, data, shard, *more):
        seen.append(shard)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(bundle, data, shard, *more)

    monkeypatch.setattr(sampling, "sample_shard", draw)
    return seen


def test_interrupted_sampling_goes_on_with_the_next_shard(make, tmp_path: Path, shards_drawn: list[int]) -> None:
    out = tmp_path / "cut" / "chunks.npy"
    with pytest.raises(KeyboardInterrupt):
        drawn(make(), out)
    assert not out.exists()
    resumed = drawn(make(), out)
    assert shards_drawn == [0, 1, 2, 2]
    np.testing.assert_array_equal(resumed, drawn(make(), tmp_path / "whole" / "chunks.npy"))


def test_shards_of_other_weights_are_drawn_anew(make, tmp_path: Path, shards_drawn: list[int]) -> None:
    out = tmp_path / "cut" / "chunks.npy"
    with pytest.raises(KeyboardInterrupt):
        drawn(make(), out)
    other = drawn(make(seed=1), out)
    assert shards_drawn == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(other, drawn(make(seed=1), tmp_path / "whole" / "chunks.npy"))
