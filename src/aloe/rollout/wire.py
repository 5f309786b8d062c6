"""What travels between the parent and its workers: JSON for words, safetensors for arrays. No pickle: a
message can carry nothing but data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from numpy import ndarray
from safetensors.numpy import load, save

from aloe.types import Episode

_IMAGES: Final = "images."


class WorkerError(RuntimeError):
    """A worker process failed; the message carries its own account of it."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message, in either direction."""

    kind: str
    """What the receiver is to do with it."""
    fields: dict[str, Any]
    """Whatever JSON can say."""
    arrays: dict[str, ndarray]
    """Arrays by name; each owns its memory."""


def send(
    connection: Connection,
    kind: str,
    fields: Mapping[str, Any] | None = None,
    arrays: Mapping[str, ndarray] | None = None,
) -> None:
    """Sends one message as two frames: the words, then the arrays."""
    connection.send_bytes(json.dumps({"kind": kind, "fields": dict(fields or {})}).encode())
    # safetensors writes strided memory as if it were contiguous, so that views would arrive scrambled.
    connection.send_bytes(save({name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}))


def receive(connection: Connection) -> Message:
    """Waits for one message. Raises `EOFError` or `OSError` when the other side is gone."""
    words = json.loads(connection.recv_bytes())
    return Message(kind=words["kind"], fields=words["fields"], arrays=load(connection.recv_bytes()))


def pack(episode: Episode) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """An episode as the words and the arrays of a message."""
    columns = dict(vars(episode))
    images = columns.pop("images")
    words = {name: columns.pop(name) for name in ("task", "seed", "disturbed_at")} | {"cameras": list(images)}
    return words, columns | {_IMAGES + camera: pictures for camera, pictures in images.items()}


def unpack(message: Message) -> Episode:
    """The episode that a message was packed from."""
    words: dict[str, Any] = dict(message.fields)
    columns: dict[str, Any] = dict(message.arrays)
    # The cameras are listed in words as well: safetensors shuffles its arrays.
    images = {camera: columns.pop(_IMAGES + camera) for camera in words.pop("cameras")}
    return Episode(images=images, **words, **columns)
