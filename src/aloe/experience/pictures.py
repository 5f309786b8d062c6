"""The pictures of one episode on their way into a store, compressed as they come.

A video is, byte for byte, what LeRobot's `StreamingVideoEncoder` makes of the same pictures. That one is not used: it drops
pictures while its queue is full, calls a video that was cut short a success, and takes four times as long, most of it
for statistics. Here nothing is queued: `add` returns when the encoder has taken the pictures.
"""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.compute_stats import DEFAULT_QUANTILES, auto_downsample_height_width
from lerobot.datasets.utils import DatasetInfo
from numpy import ndarray
from PIL import Image

from aloe.experience.commit import STAGING
from aloe.experience.schema import IMAGES, cameras_of, check_pictures

os.environ.setdefault("SVT_LOG", "1")  # the video encoder tells its settings for every episode otherwise

_PNG_LEVEL: Final = 1  # zlib's default, 6, takes twice as long and saves a seventh


class Pictures:
    """One episode's pictures, of all cameras: mp4 files in a folder of their own, or PNG in memory.

    Where they are videos, memory does not grow with the episode's length. When it is closed (or its `with` block left), the
    folder is removed with all that was not moved away.
    """

    def __init__(self, root: Path, info: DatasetInfo) -> None:
        """root, info: of the store. Raises OSError."""
        self.encoder = RGBEncoderConfig()
        self.steps = 0
        self.cells: dict[str, list[bytes]] = {}
        """Column -> PNG of every step, for the columns that are no videos."""
        self._sizes = cameras_of(info.features)
        self._folder = tempfile.TemporaryDirectory(prefix=STAGING, dir=root)
        self._counts: dict[str, _Counts] = {}
        self._videos: dict[str, _Video] = {}
        try:
            for camera, size in self._sizes.items():
                key = IMAGES + camera
                self._counts[key] = _Counts()
                if info.features[key]["dtype"] == "video":
                    self._videos[key] = _Video(self.folder / f"{camera}.mp4", info.fps, size, self.encoder)
                else:
                    self.cells[key] = []
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, pictures: Mapping[str, UInt8[ndarray, "h w 3"]]) -> None:
        """One step's pictures, by camera; they may be overwritten afterwards.

        Raises:
            ValueError: they are not of the store's cameras, or of another size or type; nothing was taken.
            OSError: they could not be written.
        """
        check_pictures(pictures, self._sizes)
        for key, counts in self._counts.items():
            picture = pictures[key.removeprefix(IMAGES)]
            counts.add(picture)
            if key in self._videos:
                self._videos[key].add(picture)
            else:
                self.cells[key].append(_png(picture))
        self.steps += 1

    def finish(self) -> dict[str, Path]:
        """Column -> its video, complete. Raises OSError where one is not."""
        for video in self._videos.values():
            video.finish()
        return {key: video.path for key, video in self._videos.items()}

    def stats(self) -> dict[str, dict[str, ndarray]]:
        """LeRobot's statistics of each column, in [0, 1]."""
        return {key: counts.stats(self.steps) for key, counts in self._counts.items()}

    def close(self) -> None:
        for video in self._videos.values():
            video.stop()
        self._folder.cleanup()


class _Video:
    """One mp4, with LeRobot's settings."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int], encoder: RGBEncoderConfig) -> None:
        logging.getLogger("libav").setLevel(logging.WARNING)
        self.path, self._tick, self._pictures = path, Fraction(1, fps), 0
        try:
            self._container = av.open(str(path), "w")
            options = encoder.get_codec_options(as_strings=True)
            stream = self._container.add_stream(encoder.vcodec, fps, options=options)
        except av.FFmpegError as error:
            raise _failed(path, error) from error
        assert isinstance(stream, VideoStream)
        stream.pix_fmt, stream.time_base = encoder.pix_fmt, self._tick
        stream.height, stream.width = size
        self._stream = stream

    def add(self, picture: UInt8[ndarray, "h w 3"]) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self._pictures, self._tick
        try:
            with contextlib.nullcontext() if self._pictures else _same_priority():
                self._container.mux(self._stream.encode(frame))  # the first opens the encoder
        except av.FFmpegError as error:
            raise _failed(self.path, error) from error
        self._pictures += 1

    def finish(self) -> None:
        """Write what the encoder still has, and count the pictures: closing a file says nothing of a full disk."""
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            with av.open(str(self.path)) as container:
                found = sum(packet.size > 0 for packet in container.demux(video=0))
        except av.FFmpegError as error:
            raise _failed(self.path, error) from error
        if found != self._pictures:
            raise OSError(f"the video of camera {self.path.stem!r} ends after {found} of {self._pictures} pictures")

    def stop(self) -> None:
        """End it, whatever becomes of the file: complete, or nobody wants it."""
        with contextlib.suppress(av.FFmpegError):
            self._container.close()


class _Counts:
    """How often each value occurs in each channel, which is all that the statistics of uint8 take. LeRobot samples the
    steps; here all count, and of large pictures the pixels that it looks at."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, picture: UInt8[ndarray, "h w 3"]) -> None:
        for counts, channel in zip(self._counts, auto_downsample_height_width(picture.transpose(2, 0, 1)), strict=True):
            counts += np.bincount(channel.ravel(), minlength=256)

    def stats(self, steps: int) -> dict[str, ndarray]:
        """Each of shape (3, 1, 1) and in [0, 1]; `count` (1,) counts pictures, as LeRobot does."""
        values, totals = np.arange(256) / 255, self._counts.sum(1)
        mean = self._counts @ values / totals
        std = np.sqrt(np.maximum(self._counts @ values**2 / totals - mean**2, 0))
        below = self._counts.cumsum(1) / totals[:, None]
        stats = {"min": values[(below > 0).argmax(1)], "max": values[(below >= 1).argmax(1)], "mean": mean, "std": std}
        stats |= {f"q{int(q * 100):02d}": values[(below >= q).argmax(1)] for q in DEFAULT_QUANTILES}
        return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([steps])}


@contextlib.contextmanager
def _same_priority() -> Iterator[None]:
    """SVT-AV1, opened by root, raises the calling thread and its own to the highest real-time priority. They would go
    before a robot's loop, and what the process starts later inherits it: two that wait busily stop two cores for good."""
    policy, parameters, threads = os.sched_getscheduler(0), os.sched_getparam(0), set(_threads())
    try:
        yield
    finally:
        if (os.sched_getscheduler(0), os.sched_getparam(0)) != (policy, parameters):
            for thread in {0, *_threads()} - threads:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.sched_setscheduler(thread, policy, parameters)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _failed(video: Path, error: av.FFmpegError) -> OSError:
    return OSError(error.errno, f"camera {video.stem!r} could not be encoded: {error.strerror}")


def _png(picture: UInt8[ndarray, "h w 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
