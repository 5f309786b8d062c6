"""Batches of a mixture: shares that are exact in expectation, and a function of seed and step alone."""

import numpy as np
import pytest
import torch

from aloe.training import BatchDraw, Shares, generator_for

PART = np.repeat([0, 1, 2], [10, 30, 60])
ROWS = np.arange(100)


def drawn(ratio: tuple[float | None, ...], rows: np.ndarray = ROWS, count: int = 40_000) -> np.ndarray:
    return BatchDraw(rows, Shares(part=PART, ratio=ratio))(count, generator_for(0, "draw"))


def shares_of(rows: np.ndarray) -> list[float]:
    return (np.bincount(PART[rows], minlength=3) / len(rows)).tolist()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((0.5, 0.2, 0.3), [0.5, 0.2, 0.3]),
        # The rest, 0.5, in proportion to 30 and 60 windows: 1/6 and 1/3.
        ((0.5, None, None), [0.5, 1 / 6, 1 / 3]),
        ((None, 0.9, None), [0.1 * 10 / 70, 0.9, 0.1 * 60 / 70]),
        ((None, None, None), [0.1, 0.3, 0.6]),
    ],
)
def test_roots_have_their_shares(ratio: tuple[float | None, ...], expected: list[float]) -> None:
    # 40,000 draws: a share has a standard deviation of at most 0.0025; four of them.
    np.testing.assert_allclose(shares_of(drawn(ratio)), expected, atol=0.01)


@pytest.mark.parametrize(
    ("ratio", "expected"), [((1.0, None, None), [1, 0, 0]), ((0.0, None, 0.0), [0, 1, 0]), ((0.0, 0.0, 1.0), [0, 0, 1])]
)
def test_ratios_of_nothing_and_of_everything_are_exact(ratio: tuple[float | None, ...], expected: list[float]) -> None:
    assert shares_of(drawn(ratio)) == expected


def test_windows_of_a_root_are_drawn_alike() -> None:
    rows = drawn((0.5, 0.5, 0.0))
    counts = np.bincount(rows, minlength=100)
    # 20,000 draws over 10 windows and over 30: 2000 and 667 each, with standard deviations of 42 and 25.
    np.testing.assert_allclose(counts[:10], 2000, atol=200)
    np.testing.assert_allclose(counts[10:40], 667, atol=130)
    assert not counts[40:].any()


def test_only_windows_that_take_part_are_drawn() -> None:
    taking_part = np.array([3, 5, 15, 99])
    rows = drawn((0.5, 0.25, 0.25), taking_part)
    assert set(rows.tolist()) == set(taking_part.tolist())
    np.testing.assert_allclose(shares_of(rows), [0.5, 0.25, 0.25], atol=0.01)


def test_root_without_windows_leaves_its_share_to_the_others() -> None:
    """As the rollouts do while demonstrations are cloned."""
    rows = drawn((0.5, 0.3, None), np.arange(40))
    np.testing.assert_allclose(shares_of(rows), [0.5 / 0.8, 0.3 / 0.8, 0], atol=0.01)
    with pytest.raises(
        ValueError, match=r"roots or sources without a share of the batch; raise --experience\.NAME\.ratio or --sources"
    ):
        drawn((0.0, None, None), np.arange(10))


def test_batch_is_a_function_of_seed_and_step() -> None:
    draw = BatchDraw(ROWS, Shares(part=PART, ratio=(0.5, 0.3, None)))
    first = draw(64, generator_for(7, "critic", 3))
    draw(64, generator_for(7, "critic", 4))
    again = BatchDraw(ROWS, Shares(part=PART, ratio=(0.5, 0.3, None)))(64, generator_for(7, "critic", 3))
    np.testing.assert_array_equal(first, again)


def test_without_ratios_windows_are_drawn_as_without_a_mixture() -> None:
    expected = torch.randint(100, (64,), generator=generator_for(0, 0)).numpy()
    for shares in (None, Shares(part=PART, ratio=(None, None, None))):
        np.testing.assert_array_equal(BatchDraw(ROWS, shares)(64, generator_for(0, 0)), expected)
