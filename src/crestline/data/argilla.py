"""Argilla's records to rankings and back: ranking, label and rating questions.

Owns what an answer says of which field. The shapes of exports are in `argilla_records`; files are
not known here.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crestline.data.argilla_records import NOBODY, Answer, Record, record_in
from crestline.data.chat import as_chat, completion_of, prompt_of, text_of, wrong
from crestline.data.columns import (
    SAID_NAMES,
    Found,
    Keys,
    Reason,
    dense,
    prompt_name,
    ranking_of,
    said_of,
    unused_of,
)
from crestline.data.parsers import Row
from crestline.types import BadInput, PromptText, Ranking

_INDEX = re.compile(r"(.+?)(?:[\s_.-]?(\d+)|[\s_.-]([A-Za-z]))")
_BEST = ("best", "prefer", "chosen", "choose", "winner", "better", "choice")
_TIES = ("tie", "tied", "equal", "same", "draw", "both", "bothgood", "bothbad", "neither", "none")
_UNDECIDED = ("unsure", "skip", "unclear", "cannottell", "canttell", "dontknow", "idontknow")

_Ranks = dict[str, int | None]
"""Rank by field; its keys are the fields that hold the completions."""


def argilla_in(row: Row, keys: Keys) -> Found:
    """The rankings of one record, one for each submitted answer.

    A ranking question goes before a label question that names the best completion, and that before
    ratings, one question for each completion, higher is better. Models' suggestions do not count.
    Raises: BadInput with the place, also where several questions or fields could be meant.
    """
    record = record_in(row)
    found: list[Ranking | Reason] = []
    used: set[str] = set()
    for answer in record.answers:
        if answer.is_submitted:
            ranks, questions = _ranks(record, answer, keys)
            prompt, name = _prompt(record, ranks, keys)
            found.append(_ranking(record, prompt, ranks, answer, keys))
            used |= {*questions, *ranks, name}
        else:
            found.append("withdrawn")
    if not used:
        return Found(tuple(found) or ("unanswered",))
    unused = unused_of(record.fields, used, Row(record.fields, row.where))
    unused += tuple(sorted({q for answer in record.answers for q in answer.values} - used))
    if record.said.values is not record.fields:
        unused += unused_of(record.said.values, [keys.source], record.said)
    return Found(tuple(found), unused)


def _ranking(
    record: Record, prompt: PromptText, ranks: _Ranks, answer: Answer, keys: Keys
) -> Ranking:
    values = [record.fields[field] for field in ranks]
    texts = [completion_of(record.said, n, v) for n, v in zip(ranks, values, strict=True)]
    if any(not isinstance(value, str) for value in values):
        prompt = as_chat(prompt)
    is_named = record.said.values.get("annotator") is not None
    user = None if is_named else text_of(record.said, "user_id", answer.user)
    return ranking_of(
        record.said,
        keys,
        prompt=prompt,
        completions=texts,
        ranks=list(ranks.values()),
        annotator=user,
    )


def _prompt(record: Record, ranks: _Ranks, keys: Keys) -> tuple[PromptText, str]:
    """The prompt and its field: by name, else the only text that is no completion; else none."""
    where = record.said.where
    rest = Row({n: v for n, v in record.fields.items() if n not in ranks and _is_text(v)}, where)
    name = prompt_name(rest, keys)
    if name is None:
        names = [name for name in rest.values if name not in SAID_NAMES]
        if len(names) > 1:
            raise BadInput(
                f"{where}: which field is the prompt: {', '.join(names[:6])}? "
                "Say it: crestline convert --prompt_key"
            )
        if not names:
            return "", ""
        name = names[0]
    return prompt_of(rest, name, rest.values[name]), name


def _is_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(item, dict) for item in value)
    return isinstance(value, str)


def _ranks(record: Record, answer: Answer, keys: Keys) -> tuple[_Ranks, list[str]]:
    """Ranks of an answer, and the questions that gave them."""
    row, fields = record.said, {n: v for n, v in record.fields.items() if v is not None}
    values = {q: v for q, v in answer.values.items() if keys.question in q and v is not None}
    orders = {q: order for q, v in values.items() if (order := _order(row, q, v)) is not None}
    orders = {q: o for q, o in orders.items() if all(_match(n, record.fields) for n in o)}
    orders = {q: order for q, order in orders.items() if order} or orders
    if question := _only(row, orders, "rankings"):
        return _by_order(row, question, orders[question], fields), [question]
    names = _numbered(row, fields)
    best = {q: found for q, v in values.items() if (found := _best_of(q, v, names)) is not None}
    if question := _only(row, best, "the best"):
        return dict(zip(names, best[question], strict=True)), [question]
    ratings = [_rating(row, name, values) for name in names]
    if any(ratings):
        rated = [-values[question] if question else None for question in ratings]
        ranks = dict(zip(names, dense(rated), strict=True))
        return ranks, [question for question in ratings if question]
    raise BadInput(
        f"{row.where}: no answer ranks the completions; questions answered: "
        f"{', '.join(values) or 'none'}; fields: {', '.join(fields) or 'none'}"
    )


def _only(row: Row, found: Iterable[str], kind: str) -> str:
    """The only question; empty if there is none."""
    names = list(found)
    if len(names) > 1:
        raise BadInput(
            f"{row.where}: several questions give {kind}: {', '.join(names)}; "
            "say which: crestline convert --question"
        )
    return names[0] if names else ""


def _order(row: Row, question: str, value: Any) -> dict[str, int | None] | None:
    """Rank by option of a ranking question's answer; None if the answer is of another kind.

    Shapes: names from best to worst; [{rank, value}]; {rank: [...], value: [...]}.
    """
    if isinstance(value, dict) and isinstance(value.get("value"), list | tuple):
        names, ranks = list(value["value"]), value.get("rank")
        ranks = [None] * len(names) if ranks is None else ranks
        if not isinstance(ranks, list | tuple) or len(ranks) != len(names):
            raise wrong(row, f"{question}.rank", ranks, f"a list of {len(names)}")
    elif isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value):
        if not all("value" in item for item in value):
            return None
        names, ranks = [item["value"] for item in value], [item.get("rank") for item in value]
    elif isinstance(value, list | tuple):
        names, ranks = list(value), [None] * len(value)
    else:
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    if len(set(names)) < len(names):
        raise BadInput(f"{row.where}: {question} names a completion twice: {', '.join(names[:8])}")
    for index, rank in enumerate(ranks):
        whole = isinstance(rank, int) or (isinstance(rank, float) and rank.is_integer())
        if rank is not None and (isinstance(rank, bool) or not whole):
            raise wrong(row, f"{question}[{index}].rank", rank, "a whole number, or null")
    is_listed = all(rank is None for rank in ranks)
    return dict(zip(names, range(len(names)) if is_listed else ranks, strict=True))


def _by_order(
    row: Row, question: str, order: Mapping[str, int | None], fields: Mapping[str, Any]
) -> _Ranks:
    """Ranks of the fields that an order names, and None for others of the same kind."""
    named = {_match(name, fields): rank for name, rank in order.items()}
    if len(named) < len(order) and None not in named:
        raise BadInput(f"{row.where}: {question} names a field twice: {', '.join(order)}")
    kinds = {_stem(name) for name in named or _numbered(row, fields) if name}
    names = [n for n in fields if n in named or (_stem(n) in kinds and _stem(n) != n)]
    if len(names) < 2:
        raise BadInput(f"{row.where}: {question} ranks fewer than two completions that are there")
    return dict(zip(names, dense([named.get(name) for name in names]), strict=True))


def _best_of(question: str, value: Any, names: Sequence[str]) -> list[int | None] | None:
    """Ranks where an answer names the best completion or a tie; None if it does neither."""
    if not names or isinstance(value, bool) or not isinstance(value, str | int):
        return None
    is_asked = any(word in question.lower() for word in _BEST)
    named = [name for name in names if _bare(name) == _bare(value)]
    best = named[0] if named else _match(str(value), names) if is_asked else None
    if best:
        return [int(name != best) for name in names]
    if is_asked and _bare(value) in _TIES:
        return [0] * len(names)
    return [None] * len(names) if is_asked and _bare(value) in _UNDECIDED else None


def _rating(row: Row, name: str, values: Mapping[str, Any]) -> str:
    """The question that rates a completion: it bears the completion's name, else its number."""
    rated = [
        question
        for question, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value
    ]
    more = r"\d" if name[-1:].isdigit() else r"[^\W_]"
    alone = re.compile(rf"(?<![^\W_]){re.escape(name)}(?!{more})")
    whole = [question for question in rated if alone.search(question)]
    words = {question: re.split(r"[^0-9a-z]+", question.lower()) for question in rated}
    return _only(row, whole or [q for q in rated if _mark(name) in words[q]], f"ratings of {name}")


def _numbered(row: Row, fields: Mapping[str, Any]) -> list[str]:
    """The fields that differ in a number or letter at their end: response_1, response_2; not all numbers."""
    groups: dict[str, list[str]] = {}
    for name in fields:
        if _stem(name) != name:
            groups.setdefault(_stem(name), []).append(name)
    groups = {
        stem: names
        for stem, names in groups.items()
        if len(names) > 1 and any(_is_text(fields[name]) for name in names)
    }
    if len(groups) > 1:
        found = "; ".join(", ".join(names[:3]) for names in groups.values())
        raise BadInput(f"{row.where}: which fields are the completions: {found}? Rename the others")
    return next(iter(groups.values()), [])


def _stem(name: str) -> str:
    """A name without the number or letter at its end.

    >>> _stem("response_1"), _stem("generations-0"), _stem("response b"), _stem("prompt")
    ('response', 'generations', 'response', 'prompt')
    """
    found = _INDEX.fullmatch(name)
    return found.group(1) if found else name


def _mark(name: str) -> str:
    """The number or letter at a name's end, in lower case.

    >>> _mark("response_1"), _mark("generations-0"), _mark("response B")
    ('1', '0', 'b')
    """
    found = _INDEX.fullmatch(name)
    return (found.group(2) or found.group(3)).lower() if found else ""


def _bare(name: str | int) -> str:
    return re.sub(r"[\W_]+", "", str(name)).lower()


def _match(name: str, fields: Iterable[str]) -> str | None:
    """The field that an option names: by name, in other spelling, or by its number or letter."""
    names = list(fields)
    if name in names:
        return name
    for key in (_bare, _mark):
        same = [field for field in names if _bare(name) and key(field) == _bare(name)]
        if len(same) == 1:
            return same[0]
    return None


def argilla_rows(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Nested records of version 2 that `argilla_in` reads back; nothing is lost but gaps in ranks.

    The question `ranking` orders the fields completion_1, completion_2 …: names from best to
    worst; if a ranking of the list has ties, ranks stand beside the names, as on Argilla's server.
    Annotators that are no UUID get one made of their name, which is kept in the metadata.
    """
    has_ties = any(
        len(set(told)) < len(told)
        for told in ([rank for rank in r.ranks if rank is not None] for r in rankings)
    )
    return [_row(index, ranking, has_ties) for index, ranking in enumerate(rankings)]


def _row(index: int, ranking: Ranking, has_ties: bool) -> dict[str, Any]:
    names = [f"completion_{number}" for number in range(1, len(ranking.completions) + 1)]
    ranks = dense(ranking.ranks)
    told = sorted((rank, i) for i, rank in enumerate(ranks) if rank is not None)
    value = [{"rank": rank + 1, "value": names[i]} if has_ties else names[i] for rank, i in told]
    user = _user_id(ranking.annotator)
    is_told = user in (ranking.annotator, NOBODY)
    said = said_of(ranking, without=["annotator"] if is_told else [])
    return {
        "id": str(index),
        "fields": {"prompt": ranking.prompt, **dict(zip(names, ranking.completions, strict=True))},
        **({"metadata": said} if said else {}),
        "responses": {"ranking": [{"value": value, "user_id": user, "status": "submitted"}]},
    }


def _user_id(annotator: str) -> str:
    if not annotator:
        return NOBODY
    try:
        if str(uuid.UUID(annotator)) == annotator != NOBODY:
            return annotator
    except ValueError:
        pass
    return str(uuid.uuid5(uuid.NAMESPACE_URL, annotator))
