"""A worker process of `aloe.rollout.pool`: one world, which plays whole episodes.

It is started as `python -m aloe.rollout.worker FILE_DESCRIPTOR` and imports no torch, so that many of them
start fast and stay small.
"""

import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from jaxtyping import Float32, UInt8
from numpy import ndarray

from aloe.rollout.collect import play_episode
from aloe.rollout.human import HumanConfig, ScriptedHuman
from aloe.rollout.wire import pack, receive, send
from aloe.types import Episode
from aloe.worlds.metaworld import MetaWorld, MetaWorldConfig


class Abandoned(Exception):  # noqa: N818 - no error: the parent has no more use for this episode
    """The parent wants no more of the episode that is being played."""


def main() -> None:
    """Serves the parent until it hangs up."""
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done, or dead: either way nobody is left to talk to
    except Exception:  # of whatever kind: the parent reports it and stops
        send(connection, "error", {"message": traceback.format_exc()})


def serve(connection: Connection) -> None:
    """Builds the world that the first message describes, then plays what is asked for."""
    fields = receive(connection).fields
    config: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}  # from JSON
    world = MetaWorld(MetaWorldConfig(**config))
    try:
        send(connection, "ready")
        while True:
            order = receive(connection)
            try:
                episode = _play(connection, world, **order.fields)
            except Abandoned:
                continue
            send(connection, "episode", *pack(episode))
    finally:
        world.close()  # else the renderer complains on stderr when the interpreter ends


def _play(
    connection: Connection,
    world: MetaWorld,
    *,
    seed: int,
    task: int,
    has_policy: bool,
    execute: int,
    human: dict[str, Any] | None,
    record: bool,
    policy_version: int,
    demo_noise: float,
) -> Episode:
    def ask(
        decision: int, instruction: str, pictures: dict[str, UInt8[ndarray, "h w 3"]], state: Float32[ndarray, "S"]
    ) -> Float32[ndarray, "H A"]:
        send(connection, "ask", {"decision": decision, "task": instruction}, {**pictures, "state": state})
        answer = receive(connection)
        if answer.kind == "abandon":
            raise Abandoned
        return answer.arrays["chunk"]

    watcher = None
    if human is not None:
        watcher = ScriptedHuman(HumanConfig(**human), max_steps=world.config.max_steps)
    return play_episode(
        world,
        seed=seed,
        task=task,
        ask=ask if has_policy else None,
        execute=execute,
        human=watcher,
        record=record,
        policy_version=policy_version,
        demo_noise=demo_noise,
    )


if __name__ == "__main__":
    main()
