"""Frozen records from plain mappings and back, strictly: flags, YAML files and config.yaml alike.

Owns which value fits which field and what is said when it does not. Knows nothing of verbs and
files.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from crestline.types import BadInput

T = TypeVar("T")
Where = Callable[[tuple[str, ...]], str]
"""Names the place of a setting, told by its path of field names, in a complaint."""


def build(
    config_type: type[T],
    mapping: Mapping[str, Any],
    where: str | Where = "",
    *,
    base: T | None = None,
) -> T:
    """The record that a mapping describes; fields that it does not name keep their defaults.

    mapping: keys are field names, nested for nested records. What has a name may be given by its
    name alone ("algorithm: grpo"). Texts that are numbers count as numbers: YAML reads 1e-4 as
    text. A top-level key "verb" that no field has is passed over.
    where: the file that it came from, or a function that names the place of a setting.
    base: a record whose values stand in for the defaults.
    Raises: BadInput, one line: unknown keys with the nearest known, wrong types, values out of
    range.
    """
    label = where if callable(where) else _dotted(where)
    if "verb" in mapping and "verb" not in hints_of(config_type):
        mapping = {key: value for key, value in mapping.items() if key != "verb"}
    return _build(config_type, mapping, (), label, base)


def plain(config: Any) -> dict[str, Any]:
    """A record as plain values that `build` reads back; a member of a union carries its name."""
    hints = hints_of(type(config))
    values = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values[field.name] = _plain(value)
        if members_of(hints[field.name]) and is_dataclass(value):
            values[field.name] = {"name": name_of(type(value)), **values[field.name]}
    return values


def defaults_of(config: Any, base: Any = None) -> dict[str, Any]:
    """What each setting of `plain(config)` is where nobody gave it; a run folder of an older version may lack some.

    Of a union's member that is not the default one, its own defaults; its name is that of the default one.
    config: a record whose fields all have defaults. base: a record whose values stand in for these.
    """
    hints = hints_of(type(config))
    base = type(config)() if base is None else base
    values = {}
    for field in fields(config):
        value, start = getattr(config, field.name), getattr(base, field.name)
        if not is_dataclass(value):
            values[field.name] = _plain(start)
            continue
        values[field.name] = defaults_of(value, start if type(start) is type(value) else None)
        if members_of(hints[field.name]):
            values[field.name] = {"name": name_of(type(start)), **values[field.name]}
    return values


def hints_of(config_type: type) -> dict[str, Any]:
    """The resolved types of a record's fields."""
    hints = get_type_hints(config_type)
    return {field.name: hints[field.name] for field in fields(config_type)}


def members_of(hint: Any) -> tuple[type, ...]:
    """The records that a union chooses among; empty for any other type."""
    members = tuple(a for a in get_args(hint) if is_dataclass(a) and isinstance(a, type))
    return members if get_origin(hint) in (Union, UnionType) and len(members) > 1 else ()


def name_of(member: type) -> str:
    """What a member of a union is called in files and flags."""
    return member.__name__.lower()


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" with the known name that is most like this one, or nothing.

    >>> nearest("sed", ["seed", "device"])
    "; did you mean 'seed'?"
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _dotted(where: str) -> Where:
    return lambda path: ": ".join(part for part in (where, ".".join(path)) if part)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _build(
    config_type: type[T], raw: Any, path: tuple[str, ...], label: Where, base: T | None
) -> T:
    hints = hints_of(config_type)
    if isinstance(raw, str) and "name" in hints:
        raw = {"name": raw}
    if not isinstance(raw, Mapping):
        raise BadInput(f"{label(path)}: expected settings, got {_shown(raw)}")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in hints:
            raise BadInput(f"{label((*path, str(key)))}: no such setting{nearest(str(key), hints)}")
        start = getattr(base, key, None) if base is not None else _default(config_type, key)
        values[key] = _value(hints[key], value, (*path, key), label, start)
    for field in fields(config_type):  # type: ignore[arg-type]
        if field.name in values:
            continue
        if base is not None:
            values[field.name] = getattr(base, field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise BadInput(f"{label((*path, field.name))}: missing")
    try:
        return config_type(**values)
    except ValueError as error:
        raise BadInput(_out_of_range(str(error), hints, path, label)) from error


def _out_of_range(said: str, hints: Mapping[str, Any], path: tuple[str, ...], label: Where) -> str:
    """The complaint of a record about its values, which begins with a field's name."""
    name, _, rest = said.partition(" ")
    if name in hints:
        return f"{label((*path, name))} {rest}"
    return f"{label(path)}: {said}" if path else said


def _default(config_type: Any, name: str) -> Any:
    """The default of a field; None if it has none."""
    field = next(field for field in fields(config_type) if field.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _value(hint: Any, raw: Any, path: tuple[str, ...], label: Where, start: Any) -> Any:
    """The raw value as the field's type; start: what a nested record takes its other values from."""
    origin = get_origin(hint)
    if members := members_of(hint):
        return _member(members, raw, path, label, start)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, raw, path, label, start)
    if origin in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if raw is None and len(kinds) < len(get_args(hint)):
            return None
        return _value(kinds[0], raw, path, label, start)
    if origin is Literal:
        choices = get_args(hint)
        if raw not in choices:
            told = ", ".join(map(str, choices))
            raise BadInput(f"{label(path)}: expected one of {told}, got {_shown(raw)}")
        return raw
    if origin is tuple:
        return _tuple(get_args(hint), raw, path, label)
    check = _SCALARS.get(hint)
    if check is None:
        return raw
    expected, convert = check
    try:
        return convert(raw)
    except (ValueError, TypeError):
        raise BadInput(f"{label(path)}: expected {expected}, got {_shown(raw)}") from None


def _member(
    members: Sequence[type], raw: Any, path: tuple[str, ...], label: Where, start: Any
) -> Any:
    """The member of a union that the raw value names, or the default's kind."""
    if isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, Mapping):
        raise BadInput(f"{label(path)}: expected a name or settings, got {_shown(raw)}")
    known = {name_of(member): member for member in members}
    name = raw.get("name", name_of(type(start)) if type(start) in members else "")
    if name not in known:
        told = ", ".join(known)
        raise BadInput(f"{label((*path, 'name'))}: expected one of {told}, got {_shown(name)}")
    rest = {key: value for key, value in raw.items() if key != "name"}
    for key in rest:
        others = [other for other, member in known.items() if key in hints_of(member)]
        if name not in others and others:
            raise BadInput(
                f"{label((*path, key))}: a setting of {' and '.join(others)}, "
                f"but the {path[-1]} is {name}"
            )
    member = known[name]
    return _build(member, rest, path, label, start if type(start) is member else None)


def _tuple(kinds: tuple[Any, ...], raw: Any, path: tuple[str, ...], label: Where) -> Any:
    if not isinstance(raw, list | tuple):
        raise BadInput(f"{label(path)}: expected a list, got {_shown(raw)}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(raw)
    if len(raw) != len(kinds):
        raise BadInput(f"{label(path)}: expected {len(kinds)} values, got {len(raw)}")
    return tuple(
        _value(kind, item, (*path, str(place)), label, None)
        for place, (kind, item) in enumerate(zip(kinds, raw, strict=True))
    )


def _shown(raw: Any) -> str:
    text = "nothing" if raw is None else repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _as_bool(raw: Any) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    value = raw.lower() if isinstance(raw, str) else raw
    return known[value] if isinstance(raw, bool | str) and value in known else _no(raw)


def _as_int(raw: Any) -> int:
    return _no(raw) if isinstance(raw, bool) or not isinstance(raw, int | str) else int(raw)


def _as_float(raw: Any) -> float:
    number = _no(raw) if isinstance(raw, bool) else float(raw)
    return number if math.isfinite(number) else _no(raw)


def _as_text(raw: Any) -> str:
    return raw if isinstance(raw, str) else _no(raw)


def _no(raw: Any) -> Any:
    raise ValueError(raw)


_SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", _as_bool),
    int: ("a whole number", _as_int),
    float: ("a number", _as_float),
    str: ("text (in quotes, if it looks like a number)", _as_text),
}
