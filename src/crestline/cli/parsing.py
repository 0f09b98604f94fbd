"""Settings from the command line and from a YAML file, each with the place it was given at.

Owns the grammar of flags and of `--config` files. Which values fit is told by `runs.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from crestline.cli.options import Option
from crestline.runs.files import reading
from crestline.runs.settings import build, nearest
from crestline.types import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """A value that the user gave for a flag, and where: "--seed" or "run.yaml:3: seed"."""

    option: Option
    value: Any
    label: str


def parse_flags(
    arguments: Sequence[str], options: Sequence[Option], positional: str = ""
) -> dict[str, Given]:
    """What the words of a command line give, by flag.

    positional: the flag that a word without a flag stands for, once; empty if there is none.
    Raises: BadInput for unknown flags, missing values and flags given twice.
    """
    known = {option.flag: option for option in options}
    given: dict[str, Given] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            flag, equals, value = word.removeprefix("--").partition("=")
            option = _known(word, flag, known)
            value = value if equals else _value_of(option, words)
        elif positional and positional not in given:
            option, value = known[positional], word
        else:
            raise BadInput(f"unexpected {word!r}: settings are given as --name value")
        if option.flag in given:
            raise BadInput(f"--{option.flag} is given twice")
        given[option.flag] = Given(option, value, f"--{option.flag}")
    return given


def _known(word: str, flag: str, known: Mapping[str, Option]) -> Option:
    if not word.startswith("--") or flag not in known:
        offered = [f"--{name}" for name, option in known.items() if not option.is_set_by_run]
        shown = word.partition("=")[0]
        wanted = "--" + shown.lstrip("-").replace("-", "_")
        ends = [name for name in offered if name.endswith("." + wanted[2:])]
        near = f"; did you mean {' or '.join(ends[:3])}?" if ends else nearest(wanted, offered)
        raise BadInput(f"unknown flag {shown}{near or '; see --help'}")
    if known[flag].is_set_by_run:
        raise BadInput(f"--{flag} is decided by the run itself; see --help for what can be set")
    return known[flag]


def _value_of(option: Option, words: list[str]) -> str:
    """The word behind a flag; a switch needs none."""
    if option.hint is bool:
        return words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
    if not words or words[0].startswith("--"):
        raise BadInput(f"--{option.flag}: expected a value ({option.value_name}), got nothing")
    return words.pop(0)


def parse_yaml(file: str, options: Sequence[Option], verb: str) -> dict[str, Given]:
    """What a settings file gives, by flag: keys are flags, or field names nested as in config.yaml.

    Raises: BadInput naming file and line.
    """
    with reading(file):
        data = Path(file).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{file}:{line}: not UTF-8; save it as UTF-8") from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        leaves = list(_leaves(root, (), loader, file, _groups(options))) if root else []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BadInput(f"{file}:{mark.line + 1 if mark else 1}: broken YAML: {problem}") from error
    keys = {tuple(option.flag.split(".")): option for option in options}
    paths = {option.path: option for option in options}
    given: dict[str, Given] = {}
    for path, value, line in leaves:
        label = f"{file}:{line}: {'.'.join(path)}"
        if path == ("verb",):
            if value != verb:
                raise BadInput(f"{label}: settings of crestline {value}, not of crestline {verb}")
            continue
        option = keys.get(path) or paths.get(path)
        if option is None:
            known = [option.flag for option in options if not option.is_set_by_run]
            raise BadInput(f"{label}: no such setting{nearest('.'.join(path), known)}")
        if option.is_set_by_run and value != option.default:
            raise BadInput(f"{label}: decided by the run itself; remove the line")
        if option.flag in given:
            raise BadInput(f"{label}: given twice")
        given[option.flag] = Given(option, value, label)
    return given


def verb_of(file: str) -> str:
    """The verb that a settings file says it is for, as config.yaml of a stage does; empty where it does not.

    Raises: BadInput if it is no file that can be read, naming it.
    """
    with reading(file):
        data = Path(file).read_bytes()
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError):
        return ""  # told with its line where the settings are read
    return str(found.get("verb", "")) if isinstance(found, dict) else ""


def _groups(options: Sequence[Option]) -> set[tuple[str, ...]]:
    """The keys that may hold settings rather than a value."""
    names = [tuple(option.flag.split(".")) for option in options] + [o.path for o in options]
    return {name[:length] for name in names for length in range(len(name))}


def _leaves(
    node: yaml.Node,
    path: tuple[str, ...],
    loader: yaml.SafeLoader,
    file: str,
    groups: set[tuple[str, ...]],
) -> Iterator[tuple[tuple[str, ...], Any, int]]:
    """(path of keys, value, line) for each setting of a YAML file."""
    line = node.start_mark.line + 1
    if path in groups and isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        for key, value in node.value:
            name = str(_constructed(key, loader, file))
            yield from _leaves(value, (*path, name), loader, file, groups)
    elif not path:
        raise BadInput(f"{file}:{line}: expected settings such as 'seed: 0'")
    else:
        yield path, _constructed(node, loader, file), line


def _constructed(node: yaml.Node, loader: yaml.SafeLoader, file: str) -> Any:
    """What a node says. Raises BadInput for what only looks like a value of YAML, such as the date 2024-13-45."""
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, OverflowError) as error:
        line = node.start_mark.line + 1
        raise BadInput(f"{file}:{line}: {error}; text belongs in quotes") from error


def assemble(part: str, base: T, given: Mapping[str, Given]) -> T:
    """The record `base` with what was given for it.

    Raises: BadInput naming the flag, or the line of the file, whose value does not fit.
    """
    mapping: dict[str, Any] = {}
    labels: dict[tuple[str, ...], str] = {}
    for entry in given.values():
        option = entry.option
        if option.part != part:
            continue
        place = mapping
        for name in option.path[:-1]:
            place = place.setdefault(name, {})
        place[option.path[-1]] = entry.value
        labels[option.path] = entry.label

    def where(path: tuple[str, ...]) -> str:
        return labels.get(path) or f"--{path[-1] if path else part}"

    return build(type(base), mapping, where, base=base)
