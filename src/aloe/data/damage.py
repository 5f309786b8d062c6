"""What `aloe data verify` says of a store."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aloe.experience.checksums import Damage, survey
from aloe.experience.store import ExperienceStore


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is damaged, and how much was looked at."""

    lines: tuple[str, ...]
    damaged: bool


def verify_store(root: Path) -> Report:
    """Raises ValueError where there is no store, or one that no ALOE has written."""
    try:
        store = ExperienceStore.read(root)
    except (ValueError, OSError) as error:
        return _report_unopened(root, error)
    damage = list(store.verify())
    without = [index for index in range(store.num_episodes) if not _has_checksums(store, index)]
    lines = [*_lines(damage), f"{store.num_episodes} episodes checked: {_count(damage)}"]
    if without:
        lines.append(
            f"{len(without)} have no checksums (episode {_ranges(without)}): all that is known of them is that they can be "
            "read and are complete"
        )
    return Report(lines=tuple(lines), damaged=bool(damage))


def _has_checksums(store: ExperienceStore, index: int) -> bool:
    try:
        return store.has_checksums(index)
    except ValueError:  # they are damaged, which is said of their file
        return True


def _report_unopened(root: Path, error: ValueError | OSError) -> Report:
    """A store that cannot be opened. Where nothing tells that it ever was one, it is the user's mistake."""
    if not (root / "meta").is_dir():
        raise error
    damage, episodes = survey(root)
    if not damage and not episodes:
        raise error
    lines = (*_lines(damage), f"{root} cannot be opened: {error}", f"{episodes} episodes checked: {_count(damage)}")
    return Report(lines=lines, damaged=True)


def _count(damage: list[Damage]) -> str:
    episodes = len({one.episode for one in damage if one.episode is not None})
    own = len({one.path for one in damage if one.episode is None})
    return f"{episodes or 'none'} damaged" + (f", and {own} files of the store as a whole" if own else "")


def _lines(damage: list[Damage]) -> Iterable[str]:
    """A line for each file, which many episodes may share."""
    shared: dict[tuple[str, str], list[int]] = {}
    for one in damage:
        shared.setdefault((one.path, one.problem), []).extend([] if one.episode is None else [one.episode])
    for (path, problem), episodes in shared.items():
        yield f"{path}{f' of episode {_ranges(episodes)}' if episodes else ''} {problem}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
