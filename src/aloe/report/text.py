"""The tables of a run, for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from aloe.report.folder import RunSoFar
from aloe.report.health import critic_health


def round_table(run: RunSoFar) -> Table:
    """Round, episodes so far, human takeovers, success with its 95 % interval, steps to success, wall time."""
    table = Table(title=escape(run.title))
    offline = run.config["offline"]  # nothing is measured there
    success = () if offline else ("success", "95 % interval", "steps to success")
    for name in ("round", "episodes", "takeovers", *success, "wall time"):
        table.add_column(name, justify="right")
    elapsed = 0.0
    for row in run.rounds:
        elapsed += sum(row["seconds"].values())
        table.add_row(
            str(row["round"]),
            *("-" if row[name] is None else str(row[name]) for name in ("episodes", "takeovers")),
            *(() if offline else _success(row)),
            "{}:{:02}".format(*divmod(round(elapsed), 60)),
        )
    return table


def _success(row: Mapping[str, Any]) -> tuple[str, str, str]:
    steps = "-" if row["steps_to_success"] is None else f"{row['steps_to_success']:.0f}"
    if row["success"] is None:
        return "-", "-", steps
    return f"{row['success']:.0%}", f"{row['success_low']:.0%} to {row['success_high']:.0%}", steps


def task_table(run: RunSoFar) -> Table | None:
    """Successes in each task after every round. None where there is one task only."""
    measured = {row["round"]: row["by_task"] for row in run.rounds if row.get("by_task")}
    if not measured:
        return None
    table = Table(title=escape(f"successes in each task of {run.name}"))
    table.add_column("task")
    for index in measured:
        table.add_column(f"round {index}", justify="right")
    for task in next(iter(measured.values())):
        table.add_row(escape(task), *("{} of {}".format(*by_task[task]) for by_task in measured.values()))
    return table


def health_table(run: RunSoFar) -> Table | None:
    """The checks of every round's critic; what warns has an exclamation mark. None where no critic was judged."""
    judged = [health for health in critic_health(run) if health["checks"]]
    if not judged:
        return None
    table = Table(title=escape(f"the critics of {run.name}"))
    for name in ("round", "verdict", *(check["title"] for check in judged[0]["checks"])):
        table.add_column(name, justify="right")
    for health in judged:
        checks = (f"{check['value']}{' !' if check['warning'] else ''}" for check in health["checks"])
        table.add_row(str(health["round"]), health["verdict"], *checks)
    return table


def tables(run: RunSoFar) -> Iterator[Table | str]:
    """All there is to print."""
    if run.unfinished:
        yield run.unfinished
    yield round_table(run)
    for table in (task_table(run), health_table(run)):
        if table is not None:
            yield table
