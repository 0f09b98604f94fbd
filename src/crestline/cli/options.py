"""The flags of a verb, told from the records that they fill: names, types, defaults and help.

Owns which flag stands for which field. Knows nothing of argument lists and files.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, is_dataclass, replace
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from crestline.runs.settings import hints_of, members_of, name_of


@dataclass(frozen=True, kw_only=True)
class Option:
    """One flag.

    flag: its name, which is also its key in a YAML file. path: the field names that lead to its
    value in `part`, one of the verb's records. members: the kinds of a union that have the field;
    empty if it is in none. is_set_by_run: the run itself decides it.
    """

    flag: str
    part: str
    path: tuple[str, ...]
    hint: Any
    default: Any
    help: str
    group: str
    members: tuple[str, ...] = ()
    is_set_by_run: bool = False

    @property
    def value_name(self) -> str:
        """What the value looks like: N, NUMBER, TEXT, the choices; empty for a switch."""
        hint = self.hint
        if get_origin(hint) is Literal:
            return "|".join(map(str, get_args(hint)))
        if get_origin(hint) in (Union, UnionType):
            if members := members_of(hint):
                return "|".join(name_of(member) for member in members)
            hint = next(kind for kind in get_args(hint) if kind is not NoneType)
        return {bool: "", int: "N", float: "NUMBER"}.get(hint, "TEXT")


def options_of(
    part: str, config: Any, *, dotted: Collection[str] = (), hidden: Collection[str] = ()
) -> list[Option]:
    """The flags that fill a record, in the order of its fields.

    part: the record's name among those of the verb. config: a record that holds the defaults.
    dotted: fields whose flags begin with their name and a dot; other nested records give their
    fields flags without a prefix. hidden: flags of fields that the verb itself sets.
    """
    found: list[Option] = []
    for option in _walk(part, config, (), "", frozenset(dotted), first_sentence(type(config))):
        same = next((other for other in found if other.path == option.path), None)
        if same is None:
            found.append(option)
        else:  # the same field in another member of a union
            index = found.index(same)
            found[index] = _joined(same, option)
    return [_hidden(option) if option.flag in hidden else option for option in found]


def _walk(
    part: str, config: Any, path: tuple[str, ...], prefix: str, dotted: frozenset[str], group: str
) -> Iterator[Option]:
    helps = field_docstrings(type(config))
    for name, hint in hints_of(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value) and not isinstance(value, type):
            below = f"{prefix}{name}." if name in dotted else prefix
            heading = f"{name}: {first_sentence(type(value))}"
            if members_of(hint):
                heading = group if prefix else name
                yield from _union(
                    part, hint, value, (*path, name), prefix, heading, helps.get(name, "")
                )
            else:
                group_below = heading if name in dotted or not prefix else group
                yield from _walk(part, value, (*path, name), below, dotted, group_below)
            continue
        # the name of a nested record is given by the record's own: --world pelican
        flag = path[-1] if path and name == "name" else name
        yield Option(
            flag=prefix + flag,
            part=part,
            path=(*path, name),
            hint=hint,
            default=value,
            help=helps.get(name, ""),
            group=group,
        )


def _union(
    part: str,
    hint: Any,
    value: Any,
    path: tuple[str, ...],
    prefix: str,
    group: str,
    help_text: str,
) -> Iterator[Option]:
    """The flag that chooses a member, and the flags of every member."""
    yield Option(
        flag=prefix + path[-1],
        part=part,
        path=(*path, "name"),
        hint=hint,
        default=name_of(type(value)),
        help=help_text or f"Which {path[-1]}; its own settings are below.",
        group=group,
    )
    for member in members_of(hint):
        chosen = value if type(value) is member else member()
        for option in _walk(part, chosen, path, prefix, frozenset(), group):
            yield _of_member(option, name_of(member))


def _of_member(option: Option, name: str) -> Option:
    return replace(option, members=(name,), help=f"{name}: {option.help}")


def _joined(first: Option, second: Option) -> Option:
    """One flag of two members; what is the same for both is told once."""
    names, _, text = first.help.partition(": ")
    name, _, other = second.help.partition(": ")
    told = f"{names}, {name}: {text}" if text == other else f"{first.help} {second.help}"
    return replace(first, members=first.members + second.members, help=told)


def _hidden(option: Option) -> Option:
    return replace(option, is_set_by_run=True)


def first_sentence(config_type: type) -> str:
    """The first line of a record's docstring."""
    return (inspect.getdoc(config_type) or "").splitlines()[0]


def field_docstrings(config_type: type) -> dict[str, str]:
    """The text under each field of a record, inherited ones too, on one line."""
    found: dict[str, str] = {}
    for kind in reversed(config_type.__mro__):
        if is_dataclass(kind):
            source = inspect.getsource(sys.modules[kind.__module__])
            for statement in ast.parse(source).body:
                if isinstance(statement, ast.ClassDef) and statement.name == kind.__name__:
                    found |= _docstrings(statement.body)
    return found


def _docstrings(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for above, below in pairwise(body):
        if (
            isinstance(above, ast.AnnAssign)
            and isinstance(above.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[above.target.id] = " ".join(str(below.value.value).split())
    return found
