"""Some of a video's pictures: the very same as when all are decoded, whatever they build on."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from aloe.experience.videos import decode_video

STEPS, FPS, SIZE = 60, 10, (64, 96)


def video(path: Path, codec: str, options: dict[str, str]) -> Path:
    """A bright square that goes over a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 100, (*SIZE, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, FPS, options=options)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", SIZE
        for t in range(STEPS):
            picture = noise.copy()
            picture[20:40, t : t + 20] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.pts is not None]


def groups(path: Path) -> tuple[list[int], bool]:
    """Pictures in each group, and whether some are shown before their key picture."""
    packets = packets_of(path)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    stamps = [[p.pts or 0 for p in packets[i:j]] for i, j in zip(keys, [*keys[1:], None], strict=True)]
    return [len(group) for group in stamps], any(min(group) < group[0] for group in stamps)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


OPEN = "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0:log-level=none"


@pytest.mark.parametrize(
    ("codec", "options", "second_group", "is_open"),
    [
        ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}, 2, False),  # as LeRobot writes them
        ("libsvtav1", {"g": "20", "crf": "30", "preset": "12"}, 20, False),
        ("libx264", {"g": "12", "bf": "3"}, 12, False),
        ("libx264", {"x264-params": OPEN}, 12, True),
        ("libx265", {"x265-params": OPEN}, 12, True),
        ("libx264", {"g": "1000"}, None, False),
    ],
)
def test_pictures_are_the_same_whichever_others_are_wanted(
    codec: str, options: dict[str, str], second_group: int | None, is_open: bool, tmp_path: Path
) -> None:
    path = video(tmp_path / "video.mp4", codec, options)
    sizes, found_open = groups(path)
    assert sizes[1:2] == ([] if second_group is None else [second_group])
    assert found_open == is_open
    whole = decoded(path)
    assert len(whole) == STEPS
    for steps in (
        range(STEPS),
        range(0, STEPS, 2),
        range(5, STEPS, 7),
        range(11, 13),
        range(9, 50, 40),
        [30, 10, 10, 59],
    ):
        shown = decode_video(path, [t / FPS for t in steps], FPS, SIZE)
        np.testing.assert_array_equal(shown, whole[list(steps)], err_msg=f"{steps}")
        coarse = decode_video(path, [t / FPS for t in steps], FPS, SIZE, nth=2)
        assert coarse.shape == (len(steps), SIZE[0] // 2, SIZE[1] // 2, 3)


def test_groups_of_which_nothing_is_wanted_are_not_decoded(tmp_path: Path) -> None:
    path = video(tmp_path / "video.mp4", "libsvtav1", {"g": "2", "crf": "30", "preset": "12"})
    whole, damaged = decoded(path), bytearray(path.read_bytes())
    for packet in packets_of(path)[4:6]:  # steps 4 and 5 are a group
        assert packet.pos is not None
        damaged[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(damaged)
    shown = decode_video(path, [t / FPS for t in (0, 3, 6, 9)], FPS, SIZE)
    np.testing.assert_array_equal(shown, whole[[0, 3, 6, 9]])
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_video(path, [0.4], FPS, SIZE)


def test_a_time_without_a_picture_is_named(tmp_path: Path) -> None:
    path = video(tmp_path / "video.mp4", "libx264", {"g": "12"})
    with pytest.raises(ValueError, match=r"no picture at 6\.000 s, nor within 0\.050 s"):  # the last is at 5.9 s
        decode_video(path, [5.8, 5.9, 6.0], FPS, SIZE)


def test_the_nearest_picture_is_taken(tmp_path: Path) -> None:
    path = video(tmp_path / "video.mp4", "libx264", {"g": "12"})
    exact = decode_video(path, [2.0, 2.1], FPS, SIZE)
    np.testing.assert_array_equal(decode_video(path, [2.04, 2.06], FPS, SIZE), exact)
