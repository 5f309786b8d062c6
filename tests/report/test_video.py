"""The videos of the page: small, even, exact to seek, and of a kind that every browser plays."""

import io
from collections.abc import Callable

import av
import numpy as np
import pytest

from aloe.report.video import GROUP, film


def frames_of(mp4: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(mp4)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def decoding(pictures: dict[str, np.ndarray]) -> Callable[[int, int], dict[str, np.ndarray]]:
    return lambda every, _: {camera: shown[::every] for camera, shown in pictures.items()}


def test_step_t_is_picture_t_and_cameras_stand_side_by_side() -> None:
    left = np.stack([np.full((32, 32, 3), 8 * t, np.uint8) for t in range(30)])
    right = np.stack([np.full((16, 32, 3), 240 - 8 * t, np.uint8) for t in range(30)])
    shown = film(decoding({"top": left, "wrist": right}), 30, fps=10, most_bytes=500_000, most_pictures=600)
    # 32 px are enlarged five times, to 160
    assert shown.size == (160, 320)
    assert shown.every == 1
    assert shown.places == [("top", 0, 0), ("wrist", 160, 0)]
    frames = frames_of(shown.mp4)
    assert len(frames) == 30
    for t, frame in enumerate(frames):
        assert frame[:, :150].mean() == pytest.approx(8 * t, abs=4)
        assert frame[:70, 170:].mean() == pytest.approx(240 - 8 * t, abs=4)


def test_any_browser_plays_it_and_a_seek_decodes_few_pictures() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    shown = film(decoding({"top": pictures}), 40, fps=20, most_bytes=500_000, most_pictures=600)
    with av.open(io.BytesIO(shown.mp4)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert "Baseline" in (stream.codec_context.profile or "")
        assert stream.average_rate == 20
        packets = [packet for packet in container.demux(stream) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[0] == 0
    assert max(np.diff([*keys, len(packets)])) <= GROUP
    assert all(packet.pts == packet.dts for packet in packets)  # no picture waits for a later one


def test_large_pictures_are_made_smaller_and_noise_stays_below_the_limit() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (60, 480, 640, 3), np.uint8)
    shown = film(decoding({"top": pictures}), 60, fps=30, most_bytes=200_000, most_pictures=600)
    assert shown.size == (240, 320)
    assert len(shown.mp4) < 1.2 * 200_000


def test_a_long_episode_shows_every_fourth_step() -> None:
    brightness = np.linspace(0, 250, 1201).astype(np.uint8)
    pictures = np.broadcast_to(brightness[:, None, None, None], (1201, 16, 16, 3))
    shown = film(decoding({"top": pictures}), 1201, fps=30, most_bytes=500_000, most_pictures=600)
    assert shown.every == 4  # 1201 / 600, rounded up to an even number
    frames = frames_of(shown.mp4)
    assert len(frames) == 301
    assert frames[200].mean() == pytest.approx(float(brightness[800]), abs=4)


def test_no_more_pictures_than_wanted_are_shown() -> None:
    pictures = {"top": np.zeros((300, 16, 16, 3), np.uint8)}
    shown = film(decoding(pictures), 300, fps=30, most_bytes=500_000, most_pictures=90)
    assert shown.every == 4  # 300 / 90, rounded up; for 30 pictures a second 2 would have done
    assert len(frames_of(shown.mp4)) == 75


def test_four_cameras_take_two_rows() -> None:
    pictures = {name: np.zeros((3, 160, 160, 3), np.uint8) for name in "abcd"}
    shown = film(decoding(pictures), 3, fps=10, most_bytes=100_000, most_pictures=600)
    assert shown.size == (320, 480)
    assert shown.places == [("a", 0, 0), ("b", 160, 0), ("c", 320, 0), ("d", 0, 160)]
