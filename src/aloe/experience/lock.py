"""One process writes a store at a time.

The lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends. The locked file says who
that is; what stands in it without a lock is history. All stores that a process has open share its lock: what two of them
do to each other is found by the count of episodes.
"""

import fcntl
import json
import os
import socket
import weakref
from datetime import datetime
from pathlib import Path
from typing import Final

LOCK_FILE: Final = ".writer.json"


class WriterLock:
    """Held until `release`, until nobody refers to it any more, or until the process ends. Use `acquire`."""

    def __init__(self, root: Path, handle: int) -> None:
        self._root, self._pid, self._identity = root, os.getpid(), _identity(os.fstat(handle))
        self.release = weakref.finalize(self, os.close, handle)

    @classmethod
    def acquire(cls, root: Path) -> "WriterLock":
        """The lock on a store, at once.

        Raises:
            ValueError: another process holds it; says which.
            OSError: the folder cannot be written.
        """
        try:
            handle = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            remedy = "make it writable, or only read it (ExperienceStore.read)"
            raise OSError(error.errno, f"{root} cannot be written ({error.strerror}); {remedy}") from error
        mine = _held.get(_identity(os.fstat(handle)))
        if mine is not None and mine.release.alive:
            os.close(handle)
            return mine
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
        except BlockingIOError as error:
            owner = _owner(handle)
            os.close(handle)
            remedy = "wait until it ends, or only read the store (ExperienceStore.read)"
            raise ValueError(f"{root} is being written by {owner}; {remedy}") from error
        except OSError:
            os.close(handle)
            raise
        lock = cls(root, handle)
        _held[lock._identity] = lock
        return lock

    def check(self) -> None:
        """Raises ValueError in another process than the owner, OSError where the folder is no more the one locked."""
        if os.getpid() != self._pid:
            raise ValueError(f"{self._root} was opened by process {self._pid}; open it again in process {os.getpid()}")
        try:
            same = _identity(os.stat(self._root / LOCK_FILE)) == self._identity
        except FileNotFoundError:
            same = False
        if not same:
            raise FileNotFoundError(f"{self._root} has vanished or was replaced; bring it back and open it again")


_held: weakref.WeakValueDictionary[tuple[int, int], WriterLock] = weakref.WeakValueDictionary()
"""Device and inode of the lock file -> this process's lock."""


def _let_go_after_a_fork() -> None:
    """A forked child shares its parent's lock and would hold it when the parent has died."""
    for lock in list(_held.values()):
        lock.release()
    _held.clear()


os.register_at_fork(after_in_child=_let_go_after_a_fork)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _owner(handle: int) -> str:
    try:
        owner = json.loads(os.pread(handle, 1000, 0))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # it has just begun and not yet written who it is
        return "another process"
