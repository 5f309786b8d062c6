"""All cameras of an episode side by side in one small video that every browser plays and that can be sought exactly."""

import io
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8
from numpy import ndarray

WIDEST: Final = 320
"""Pixels of the longer side of a camera; larger pictures are made smaller."""
SMALLEST: Final = 160
"""Smaller pictures are enlarged by a whole factor: H.264 keeps colours at half the resolution."""
ABREAST: Final = 3
"""Cameras in a row."""
LONGEST: Final = 600
"""Pictures of a video at most, where its maker has no reason for fewer."""
FASTEST: Final = 20
"""Pictures a second at most; of a faster episode every second step is shown, or every fourth, and so on."""
GROUP: Final = 12
"""Pictures from one that needs no other to the next: a seek decodes at most so many."""


@dataclass(frozen=True)
class Film:
    """An episode as a video."""

    mp4: bytes
    size: tuple[int, int]
    """(h, w) of the whole."""
    every: int
    """Steps a picture."""
    places: list[tuple[str, int, int]]
    """Camera, and the left upper corner of its picture, (x, y)."""


def film(
    decode: Callable[[int, int], Mapping[str, UInt8[ndarray, "N h w 3"]]],
    steps: int,
    fps: int,
    most_bytes: int,
    most_pictures: int,
) -> Film:
    """One episode as a video.

    most_bytes: the quality is lowered until the video is about as small. most_pictures: at most so many steps are shown.
    decode: given n and so many pixels of the longer side that are enough, the pictures of every n-th step.

    Raises:
        OSError: it could not be encoded.
    """
    every = max(math.ceil(steps / most_pictures), math.ceil(fps / FASTEST))
    if every > 1:  # LeRobot's videos have a key picture at every second step: half the decoding
        every += every % 2
    pictures, shown = decode(every, WIDEST), math.ceil(steps / every)
    sizes = {camera: _scaled(*images.shape[1:3]) for camera, images in pictures.items()}
    places, whole = _arranged(sizes)
    rate = Fraction(fps, every)
    file = io.BytesIO()
    logging.getLogger("libav").setLevel(logging.WARNING)
    with av.open(file, "w", format="mp4") as container:
        bits = int(8 * most_bytes * rate / shown * 0.9)  # the rest is the container's
        options = {"preset": "superfast", "profile": "baseline", "crf": "23", "g": str(GROUP), "bf": "0"}
        # Without a look ahead the video of noise became larger than allowed.
        ahead = f"rc-lookahead={GROUP}:mbtree=1:log-level=none"
        options |= {"maxrate": str(bits), "bufsize": str(bits), "x264-params": ahead}
        stream = container.add_stream("libx264", rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.codec_context.thread_count = 1  # episodes are encoded beside each other
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", whole
        canvas = np.zeros((*whole, 3), np.uint8)
        for index in range(shown):
            for camera, x, y in places:
                h, w = sizes[camera]
                canvas[y : y + h, x : x + w] = _resized(pictures[camera][index], h, w)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
        container.mux(stream.encode())
    return Film(file.getvalue(), whole, every, places)


def _scaled(h: int, w: int) -> tuple[int, int]:
    """Even numbers of pixels, as H.264 wants them."""
    longer = max(h, w)
    factor = WIDEST / longer if longer > WIDEST else math.ceil(SMALLEST / longer)
    return max(2, 2 * round(h * factor / 2)), max(2, 2 * round(w * factor / 2))


def _arranged(sizes: Mapping[str, tuple[int, int]]) -> tuple[list[tuple[str, int, int]], tuple[int, int]]:
    """Rows of at most `ABREAST` pictures; where each begins, and the size of the whole."""
    places, width, y = [], 0, 0
    names = list(sizes)
    for start in range(0, len(names), ABREAST):
        row, x = names[start : start + ABREAST], 0
        for name in row:
            places.append((name, x, y))
            x += sizes[name][1]
        width, y = max(width, x), y + max(sizes[name][0] for name in row)
    return places, (y, width)


def _resized(picture: UInt8[ndarray, "h w 3"], h: int, w: int) -> UInt8[ndarray, "H W 3"]:
    if picture.shape == (h, w, 3):
        return picture
    how = "POINT" if h > picture.shape[0] else "FAST_BILINEAR"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(width=w, height=h, interpolation=how).to_ndarray()
