"""Argilla's four export shapes, turned into one: fields, metadata and what each person answered.

Nested records (`to_json`) and flat ones (`to_datasets`, the hub) of version 2; version 1's
FeedbackDataset as a data set and as JSON. Owns these shapes; what the answers mean is in `argilla`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crestline.data.chat import wrong
from crestline.data.parsers import Row

NOBODY = str(uuid.UUID(int=0))
"""The user of an answer whose annotator is not named."""

_BOOKKEEPING = ("id", "status", "_server_id", "inserted_at", "updated_at", "external_id")
_Told = Sequence[tuple[Any, Any, Any]]
"""(user, status, value) of each answer to one question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one person said: values by question. is_submitted: False for drafts and discarded ones."""

    user: str
    is_submitted: bool
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One record. fields: what was shown; said: metadata as columns, of flat shapes among the fields."""

    fields: dict[str, Any]
    said: Row
    answers: tuple[Answer, ...]


def is_argilla(row: Row) -> bool:
    """Whether a row has one of Argilla's shapes."""
    if _is_nested(row):
        return True
    return any(name.endswith(".responses") for name in row.values) or bool(_old_questions(row))


def record_in(row: Row) -> Record:
    """The record that a row holds.

    Raises: BadInput with the place where answers are not what Argilla writes.
    """
    values = row.values
    if _is_nested(row):
        said = _metadata(values.get("metadata"))
        answers = _nested_answers(row, values["responses"])
        return Record(values["fields"], Row(said, row.where), answers)
    flat = [name.removesuffix(".responses") for name in values if name.endswith(".responses")]
    if flat:
        fields = _without(values, tuple(f"{q}.{k}" for q in flat for k in ("resp", "sugg")))
        fields = {name: value for name, value in fields.items() if ".suggestion" not in name}
        told = {question: _flat_answers(row, question) for question in flat}
        return Record(fields, Row(fields, row.where), _by_user(told))
    old = _old_questions(row)
    fields = _without(values, tuple(f"{question}-suggestion" for question in old))
    fields = {n: v for n, v in fields.items() if n not in (*old, "metadata")}
    said = _metadata(values.get("metadata"))
    told = {question: _old_answers(row, question) for question in old}
    return Record(fields, Row(said, row.where), _by_user(told))


def _is_nested(row: Row) -> bool:
    return isinstance(row.values.get("fields"), dict) and "responses" in row.values


def _old_questions(row: Row) -> list[str]:
    """Columns of a FeedbackDataset that hold answers: [{user_id, value, status}], or these as lists."""
    return [
        name
        for name, value in row.values.items()
        if f"{name}-suggestion" in row.values
        or _is_old(value)
        or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_old, value)))
    ]


def _is_old(value: Any) -> bool:
    return isinstance(value, dict) and {"user_id", "value", "status"} <= value.keys()


def _without(values: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    """The columns that are no bookkeeping and do not begin so."""
    return {
        name: value
        for name, value in values.items()
        if name not in _BOOKKEEPING and not name.startswith(beginnings)
    }


def _metadata(value: Any) -> dict[str, Any]:
    """Version 1 writes metadata as JSON in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _nested_answers(row: Row, value: Any) -> tuple[Answer, ...]:
    if value is None:
        return ()
    if isinstance(value, dict):  # version 2: by question
        told = {}
        for question, items in value.items():
            _check_answers(row, f"responses.{question}", items)
            told[question] = [(i.get("user_id"), i.get("status"), i["value"]) for i in items or ()]
        return _by_user(told)
    if not isinstance(value, list | tuple):
        raise wrong(row, "responses", value, "answers by question, or a list of them")
    answers = []
    for index, item in enumerate(value):  # version 1: by person
        if not isinstance(item, dict):
            raise wrong(row, f"responses[{index}]", item, "an object with user_id and values")
        given, is_submitted = item.get("values"), _is_submitted(item.get("status"))
        if not isinstance(given, dict) and (is_submitted or given is not None):
            raise wrong(row, f"responses[{index}]", item, "an object with user_id and values")
        said = {q: v.get("value") if isinstance(v, dict) else v for q, v in (given or {}).items()}
        answers.append(Answer(_user(item.get("user_id")), is_submitted, said))
    return tuple(answers)


def _check_answers(row: Row, place: str, items: Any) -> None:
    if items is None:
        return
    if not isinstance(items, list | tuple):
        raise wrong(row, place, items, "a list of {value, user_id}")
    for index, item in enumerate(items):
        if not isinstance(item, dict) or "value" not in item:
            raise wrong(row, f"{place}[{index}]", item, "an object with value and user_id")


def _flat_answers(row: Row, question: str) -> _Told:
    given = row.values[f"{question}.responses"]
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise wrong(row, f"{question}.responses", given, "a list of answers")
    columns = []
    for name in ("users", "status"):
        column = row.values.get(f"{question}.responses.{name}")
        column = [None] * len(given) if column is None else column
        if not isinstance(column, list | tuple) or len(column) != len(given):
            raise wrong(row, f"{question}.responses.{name}", column, f"a list of {len(given)}")
        columns.append(column)
    return list(zip(*columns, given, strict=True))


def _old_answers(row: Row, question: str) -> _Told:
    value = row.values[question]
    if isinstance(value, dict):
        lists = [value.get(name) for name in ("user_id", "status", "value")]
        if (
            not all(isinstance(part, list | tuple) for part in lists)
            or len({len(part) for part in lists if part is not None}) != 1
        ):
            raise wrong(row, question, value, "lists user_id, value and status of one length")
        return list(zip(*(part or () for part in lists), strict=True))
    _check_answers(row, question, value)
    return [(item.get("user_id"), item.get("status"), item["value"]) for item in value or ()]


def _by_user(told: Mapping[str, _Told]) -> tuple[Answer, ...]:
    """Answers to several questions, put together by person; nobody's by their place in the list."""
    people: dict[str | int, Answer] = {}
    for question, answers in told.items():
        for index, (user, status, value) in enumerate(answers):
            name = _user(user)
            answer = Answer(name, _is_submitted(status), {})
            people.setdefault(name or index, answer).values[question] = value
    return tuple(people.values())


def _user(value: Any) -> str:
    return "" if value is None or str(value) in (NOBODY, "None") else str(value)


def _is_submitted(status: Any) -> bool:
    """Exports without a status cannot tell drafts: all their answers count as submitted."""
    return status is None or status == "submitted"
