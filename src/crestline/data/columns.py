"""What any row of rankings may carry besides texts and ranks: who said it, where from, by how much.

Owns the names that these columns and a prompt go by, and what reading one row yields. Knows nothing
of files and of single formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crestline.data.chat import column, text_of, wrong
from crestline.data.parsers import Row
from crestline.types import BadInput, PromptText, Ranking

PROMPT_NAMES = ("prompt", "context", "context_messages", "input", "instruction", "question")
"""Columns that may hold the prompt; `prompt` goes before the others where it is not empty."""

SOURCE_NAMES = ("source", "subset", "data_source")
SAID_NAMES = ("annotator", "answered_by", "margin", *SOURCE_NAMES)

Reason = Literal["diverging", "unanswered", "withdrawn"]
"""Why a row, or one answer of a row, gives no ranking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Names that a user gives where a file has its own; empty where nothing was given.

    prompt, chosen, rejected, source: columns (of a labelling tool: fields). question: which answers
    of a labelling tool count. buckets: Label Studio's buckets, best first.
    """

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    source: str = ""
    question: str = ""
    buckets: tuple[str, ...] = ()


NO_KEYS = Keys()


@dataclass(frozen=True, slots=True)
class Found:
    """What one row gave: each answer as a ranking or the reason why not, and columns that nobody read."""

    answers: tuple[Ranking | Reason, ...]
    unused: tuple[str, ...] = ()


def prompt_name(row: Row, keys: Keys) -> str | None:
    """The column that holds the prompt; None where there is none.

    Raises: BadInput where several may, or where the named one is not there.
    """
    if keys.prompt:
        column(row, keys.prompt, "the column of --prompt_key")
        return keys.prompt
    if row.values.get("prompt") not in (None, ""):
        return "prompt"
    others = [name for name in PROMPT_NAMES[1:] if row.values.get(name) not in (None, "")]
    if len(others) > 1:
        raise BadInput(
            f"{row.where}: {' and '.join(others)} may be the prompt; "
            "rename one to prompt, or say which: crestline convert --prompt_key"
        )
    if others:
        return others[0]
    return "prompt" if "prompt" in row.values else None


def ranking_of(
    row: Row,
    keys: Keys,
    *,
    prompt: PromptText,
    completions: Sequence[str],
    ranks: Sequence[int | None],
    annotator: str | None = None,
) -> Ranking:
    """A ranking with what the row's other columns say of it.

    annotator: who, where the row's column does not tell.
    Raises: BadInput for a margin that is no finite number, or not beside two completions.
    """
    return Ranking(
        prompt=prompt,
        completions=tuple(completions),
        ranks=tuple(ranks),
        annotator=name_in(row, "annotator") if annotator is None else annotator,
        answered_by=name_in(row, "answered_by"),
        margin=margin_in(row, len(completions)),
        source=source_in(row, keys),
        where=row.where,
    )


def name_in(row: Row, name: str) -> str:
    """A column that names somebody or something; empty where it is absent or null."""
    value = row.values.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # a table with a missing number has no integers
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return text_of(row, name, value)


def source_in(row: Row, keys: Keys) -> str:
    """The data set that a row says it came from."""
    if keys.source:
        column(row, keys.source, "the column of --source_key")
        return name_in(row, keys.source)
    return next((found for name in SOURCE_NAMES if (found := name_in(row, name))), "")


def margin_in(row: Row, num_completions: int) -> float | None:
    """How much the better one is better; None where the row says nothing."""
    value = row.values.get("margin")
    if value is None or value == "":
        return None
    expected = "a finite number, or null"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong(row, "margin", value, expected)
    try:
        margin = float(value)
    except (ValueError, OverflowError) as error:
        raise wrong(row, "margin", value, expected) from error
    if not math.isfinite(margin):
        raise wrong(row, "margin", value, expected)
    if num_completions != 2:
        raise BadInput(
            f"{row.where}: margin stands beside {num_completions} completions; only a pair has one"
        )
    return margin


def unused_of(values: Iterable[str], used: Iterable[str | None], row: Row) -> tuple[str, ...]:
    """The names that hold something which nobody read."""
    known = {*used, *SAID_NAMES}
    return tuple(
        str(name) for name in values if name not in known and row.values.get(name) not in (None, "")
    )


def dense(values: Sequence[float | None]) -> tuple[int | None, ...]:
    """Ranks 0, 1, 2 … of values of which lower is better; None stays None.

    >>> dense([3, None, 1, 3])
    (1, None, 0, 1)
    """
    order = sorted({value for value in values if value is not None})
    return tuple(None if value is None else order.index(value) for value in values)


def said_of(ranking: Ranking, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The columns that say something of a ranking, those left out that would be empty."""
    said = {
        "annotator": ranking.annotator,
        "answered_by": ranking.answered_by,
        "source": ranking.source,
        "margin": ranking.margin,
    }
    return {n: v for n, v in said.items() if n not in set(without) and v not in ("", None)}
