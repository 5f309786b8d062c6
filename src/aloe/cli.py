"""The commands by name. What one needs is imported when it is given: PyTorch, LeRobot and transformers take ten seconds."""

import os
import sys
import traceback
from importlib import import_module
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing of ALOE's comes from a hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not take a core from the worlds
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # a log file needs no ten lines a second

COMMANDS: Final = {
    "run": ("aloe.commands:Run", "The whole circle, round after round; --preset quickstart to begin with."),
    "demos": ("aloe.commands:Demos", "Record demonstrations from a scripted expert. Goes on where it stopped."),
    "sft": (
        "aloe.commands:Sft",
        "Clone the demonstrations of a store: a new tiny_vla, or further training of --policy.path.",
    ),
    "collect": (
        "aloe.commands:Collect",
        "Let a policy play under the eyes of a (scripted) human who takes over; record everything.",
    ),
    "critic": (
        "aloe.commands:Critic",
        "Policy evaluation: train the critics on a store under a policy, and write every window's advantage and weight.",
    ),
    "improve": (
        "aloe.commands:Improve",
        "Weighted flow matching: train a policy on a store by the weights that `aloe critic` wrote.",
    ),
    "eval": (
        "aloe.commands:Eval",
        "Measure a policy alone over fixed seeds: success with its 95 % interval, steps, throughput.",
    ),
    "report": (
        "aloe.report.command:Report",
        "A page about a run: success, whether its critics can be trusted, episodes to look at. Or several runs compared.",
    ),
    "rank": (
        "aloe.rank:Rank",
        "Would the critic have picked the best policy version of a finished run? Writes RUN/ranking.json.",
    ),
    "benchmark": (
        "aloe.benchmark.commands:Benchmark",
        "Play a suite: every method on every seed, over all cores. Goes on where it stopped; repeats no finished cell.",
    ),
    "benchmark-report": (
        "aloe.benchmark.commands:BenchmarkReport",
        "Write the tables and plots of suites into the docs, from their parquet files alone.",
    ),
    "data import": (
        "aloe.data.commands:Import",
        "Append the episodes of a LeRobot v3 dataset to a store, their labels resolved once. Goes on where it stopped.",
    ),
    "data info": (
        "aloe.data.commands:Info",
        "What a store holds: sources, episodes, hours, success and takeovers by policy version, cameras, tasks.",
    ),
    "data label": (
        "aloe.data.commands:LabelEpisode",
        "Say after the fact how an episode ended, or who acted. The data stay as they are; --undo takes it back.",
    ),
    "data show": (
        "aloe.data.commands:Show",
        "A contact sheet of an episode: pictures along time, who acted, reward and actions beneath.",
    ),
    "data verify": (
        "aloe.data.commands:Verify",
        "Compare every file with its checksum and name what is damaged. Exit code 1 if something is.",
    ),
    "data compact": (
        "aloe.data.commands:Compact",
        "Merge the many small files of a store into few large ones. What was there before goes to quarantine/.",
    ),
}
"""Name -> where the dataclass of its options is, and what it is for: how the docstring there begins."""


def main() -> None:
    """Entry point of `aloe`. A user's mistake is one line on stderr and exit code 2."""
    arguments = sys.argv[1:]
    words = 2 if arguments[:1] == ["data"] else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        _print_commands(arguments)
        return
    try:
        _give(name, arguments[words:])
    except KeyboardInterrupt:
        print("aloe: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _give(name: str, arguments: list[str]) -> None:
    # Before the `try`: a fault of the installation is no mistake of the user's, and keeps its traceback.
    from safetensors import SafetensorError

    from aloe.options import parse
    from aloe.rollout.wire import WorkerError

    command = find_command(name)
    try:
        if name == "run":  # its defaults are a preset's
            from aloe.commands import run_command

            run_command(arguments)
        else:
            parse(command, name, arguments).main()
    except WorkerError as error:  # with the worker's own account, which takes several lines
        print(f"aloe: {error}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, SafetensorError) as error:
        if isinstance(error, ValueError) and not _is_raised_by_aloe(error):
            traceback.print_exc()  # a fault, presumably; after hours this is all that is left to find it by
        message = " ".join(str(error).split())
        if "No space left" in message:
            message += "; free some space and give the same command again: it goes on from here"
        print(f"aloe: {message}", file=sys.stderr)
        sys.exit(2)


def _is_raised_by_aloe(error: Exception) -> bool:
    """Whether our own code says what is wrong, rather than a library that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] == "aloe"


def find_command(name: str) -> Any:
    """The dataclass of a command's options, imported now."""
    module, attribute = COMMANDS[name][0].split(":")
    return getattr(import_module(module), attribute)


def _print_commands(arguments: list[str]) -> None:
    group = "data " if arguments[:1] == ["data"] else ""
    print(f"usage: aloe {group}COMMAND [options]      (aloe {group}COMMAND --help lists the options)\n")
    for name, (_, purpose) in COMMANDS.items():
        if name.startswith(group):
            print(f"  {name.removeprefix(group):<16} {purpose}")
    asked = arguments[1:] if group else arguments
    if asked and asked[0] not in ("-h", "--help"):
        unknown = " ".join(arguments[: len(arguments) - len(asked) + 1])
        print(f"aloe: unknown command {unknown!r}", file=sys.stderr)
        sys.exit(2)
