"""The pictures of an episode out of a video, front to back, with PyAV; of a video that somebody else made, too."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Float64, UInt8
from numpy import ndarray


def decode_video(
    path: Path, times: Sequence[float], fps: int, size: tuple[int, int], nth: int = 1
) -> UInt8[ndarray, "T h w 3"]:
    """The pictures of an episode out of an mp4, of each every n-th row and column: (T, H / n, W / n, 3), rounded up.
    Anything but an mp4 (a play list, say, which names other files) is refused.

    times: in the video, in seconds.

    Raises:
        ValueError: it cannot be read, has pictures of another size, or none within half a step of one of the times.
    """
    try:
        with path.open("rb") as file:
            if file.read(8)[4:] != b"ftyp":
                raise ValueError("it is no mp4")
        with av.open(str(path), format="mp4") as container:
            video = container.streams.video[0]
            if video.codec_context is None:
                raise ValueError("of an unknown codec")
            found = (video.codec_context.height, video.codec_context.width)
            if found != size:
                raise ValueError(f"it has {found} pixels, {size} are declared")
            pictures = _at(container, np.array(times), 0.5 / fps, size, nth)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; copy the dataset anew") from error
    except (av.FFmpegError, ValueError, IndexError, OSError, OverflowError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be decoded: {reason}") from error
    return pictures


def _at(
    container: InputContainer, times: Float64[ndarray, "T"], tolerance: float, size: tuple[int, int], nth: int
) -> UInt8[ndarray, "T h w 3"]:
    """The picture that is nearest to each time. As LeRobot's `decode_video_frames_pyav`, of which a third of the time went
    into turning pictures to channels first, and back again here."""
    video = container.streams.video[0]
    assert video.time_base is not None
    tick = float(video.time_base)
    packets = _packets(container, round(times.min() / tick) - 1, (times.max() + tolerance) / tick)
    stamps = np.array([packet.pts for packet in packets if not packet.is_discard])
    wanted: dict[int, list[int]] = {}
    for row, time in enumerate(times):
        apart = np.abs(stamps * tick - time)
        if not len(apart) or apart.min() >= tolerance:
            raise ValueError(f"there is no picture at {time:.3f} s, nor within {tolerance:.3f} s of it")
        wanted.setdefault(int(stamps[apart.argmin()]), []).append(row)
    if video.codec_context.codec.canonical_name == "av1":  # key pictures of H.264 and H.265 do not always start anew
        packets = _needed(packets, wanted)
    h, w = (-(-pixels // nth) for pixels in size)
    pictures = np.empty((len(times), h, w, 3), np.uint8)
    for packet in (*packets, None):  # None: what the decoder still holds back
        for frame in video.codec_context.decode(packet):
            if frame.pts in wanted:
                # Slicing would take longer.
                shown = frame if nth == 1 else frame.reformat(width=w, height=h, interpolation="POINT")
                pictures[wanted.pop(frame.pts)] = shown.to_ndarray(format="rgb24")
    if wanted:
        raise ValueError(f"the picture at {min(wanted) * tick:.3f} s is missing")
    return pictures


def _packets(container: InputContainer, first: int, last: float) -> list[av.Packet]:
    """What is stored from the key picture before one time stamp up to another."""
    video, packets, earlier = container.streams.video[0], [], first
    while True:
        container.seek(earlier, stream=video)
        before, packets = packets, []
        for packet in container.demux(video):
            if packet.dts is None:  # the end
                continue
            if packet.dts > last:  # all that follow are shown later still
                break
            packets.append(packet)
        began = packets[0] if packets else None
        # Some pictures are stored after their group's key picture, and shown before it.
        if began is None or (began.pts or 0) <= first + 1 or (before and before[0].dts == began.dts):
            return packets
        earlier = (began.dts or 0) - 1


def _needed(packets: Sequence[av.Packet], wanted: Mapping[int, object]) -> list[av.Packet]:
    """The groups, from one key picture to the next, that hold pictures of these time stamps."""
    groups: list[list[av.Packet]] = []
    for packet in packets:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    return [packet for group in groups if any(packet.pts in wanted for packet in group) for packet in group]
