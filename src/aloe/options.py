"""The command line's options: presets, roots by name, and mistakes in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import docstring_parser
import tyro

from aloe.config import PRESETS
from aloe.experience.mixture import RootConfig


def parse(command: Any, name: str, arguments: list[str], default: Any = None) -> Any:
    """The command's options; `default` gives those that are not named. Every other mistake ends the process as tyro does.

    Raises:
        ValueError: a config rejects a value; what tyro would say in a box.
    """
    _let_help_flow(command)
    said, more = io.StringIO(), {} if default is None else {"default": default}
    arguments = _with_renames_together(arguments)
    if any(f.name == "experience" for f in fields(command)) and (roots := _roots_named_in(arguments)):
        if default is not None:
            more = {"default": replace(default, experience=roots)}
        else:
            named = ("experience", dict[str, RootConfig], field(default_factory=lambda: roots))
            words = {"__doc__": command.__doc__}
            command = make_dataclass(
                command.__name__, [named], bases=(command,), namespace=words, frozen=True, kw_only=True
            )
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command, prog=f"aloe {name}", args=arguments, **more)
    except SystemExit:
        text = re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯─]|-{4,}", " ", said.getvalue())  # without colours and the box
        mistake = re.match(
            r"Value error (?:Error parsing )?(.*?) (Argument helptext:|For full helptext)", " ".join(text.split())
        )
        if mistake is None:
            sys.stderr.write(said.getvalue())
            raise
    raise ValueError(f"{mistake[1]}; see aloe {name} --help")


def _let_help_flow(command: type) -> None:
    """Puts each option's docstring, as one line, where tyro looks first: by itself it would break it where the source
    does."""
    for config in _configs_of(command):
        docs = {doc.arg_name: doc.description for doc in docstring_parser.parse_from_object(config).params}
        for option in fields(config):
            if text := docs.get(option.name):
                option.metadata = MappingProxyType({**option.metadata, "help": " ".join(text.split())})


def _configs_of(kind: Any) -> Iterator[Any]:
    """A dataclass, those that it inherits from, and those of its fields."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        for part in get_args(kind):
            yield from _configs_of(part)
        return
    yield from (base for base in kind.__mro__ if is_dataclass(base))
    for part in get_type_hints(kind).values():
        yield from _configs_of(part)


def _roots_named_in(arguments: Sequence[str]) -> dict[str, RootConfig]:
    """The roots whose options may follow: tyro has to know their names beforehand."""
    if {"-h", "--help"} & set(arguments):
        return {"NAME": RootConfig(root=Path("DIR"))}
    names = [match[1] for argument in arguments if (match := re.match(r"--experience\.([\w-]+)\.", argument))]
    return {name: RootConfig(root=tyro.MISSING) for name in dict.fromkeys(names)}


def _with_renames_together(arguments: list[str]) -> list[str]:
    """`--rename.OLD=NEW` (or `--rename.OLD NEW`), as often as it stands there, as the one option that tyro knows."""
    rest, pairs, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--rename."):
            rest.append(argument)
            continue
        old, given, new = argument.removeprefix("--rename.").partition("=")
        if not given and left:
            new = left.pop(0)
        if not old or not new or new.startswith("--"):
            raise ValueError("name both, as in --rename.observation.images.top=observation.images.front")
        pairs += [old, new]
    return [*rest, "--rename", *pairs] if pairs else rest


def take_preset(arguments: list[str]) -> tuple[str, list[str]]:
    """The preset, and the arguments without it. A checkpoint and recorded experience are all that the one called offline
    needs: it is meant where none is named."""
    for index, argument in enumerate(arguments):
        if argument == "--preset" or argument.startswith("--preset="):
            inline = "=" in argument
            name = argument.partition("=")[2] if inline else "".join(arguments[index + 1 : index + 2])
            if name not in PRESETS:
                raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
            return name, arguments[:index] + arguments[index + (1 if inline else 2) :]
    is_offline = all(any(a.startswith(option) for a in arguments) for option in ("--policy.path", "--experience."))
    return "offline" if is_offline else "quickstart", arguments
