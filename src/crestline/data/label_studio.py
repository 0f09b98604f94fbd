"""Label Studio's tasks to rankings and back: the Pairwise and the Ranker tag, JSON and JSON-MIN.

Owns what a result of these tags says of the task's texts. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crestline.data.chat import prompt_of, text_of, wrong
from crestline.data.columns import (
    SAID_NAMES,
    Found,
    Keys,
    Reason,
    dense,
    name_in,
    prompt_name,
    ranking_of,
    said_of,
    unused_of,
)
from crestline.data.parsers import Row
from crestline.types import BadInput, Ranking

_SIDES = re.compile(r"(.*?)[\s_.-]?(1|2|a|b|left|right)", re.IGNORECASE)
_FIRST = ("1", "a", "left")
_UNSORTED = "_"
"""The bucket of items that the annotator left where they were."""


def is_label_studio(row: Row) -> bool:
    """Whether a row is a task with annotations, in JSON or JSON-MIN."""
    values = row.values
    if isinstance(values.get("data"), dict) and _annotations_name(row):
        return True
    return "annotation_id" in values and any(_is_result(value) for value in values.values())


def _annotations_name(row: Row) -> str:
    """`annotations`, or what they were called before version 1: `completions`."""
    if isinstance(row.values.get("annotations"), list | tuple):
        return "annotations"
    older = row.values.get("completions")
    if not isinstance(older, list | tuple):
        return ""
    are_annotations = all(isinstance(item, dict) and "result" in item for item in older)
    return "completions" if are_annotations else ""


def _is_result(value: Any) -> bool:
    """Whether a column of JSON-MIN is the result of one of the two tags."""
    if not isinstance(value, list | tuple) or len(value) != 1 or not isinstance(value[0], dict):
        return False
    return bool({"selected", "ranker"} & value[0].keys())


def label_studio_in(row: Row, keys: Keys) -> Found:
    """The rankings of one task, one for each annotation; predictions are no annotations.

    Pairwise: the selected side is better. Ranker: best first; in several buckets the items of one
    are tied, and the order of the buckets is told by numbers at the end of their names, or given.
    Items left unsorted are not ranked.
    Raises: BadInput with the place.
    """
    if isinstance(row.values.get("data"), dict):
        data = row.values["data"]
        annotations = row.values[_annotations_name(row)]
    else:
        controls = {name: value for name, value in row.values.items() if _is_result(value)}
        minor = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
        data = {n: v for n, v in row.values.items() if n not in (*controls, *minor)}
        result = [{"from_name": name, "value": value[0]} for name, value in controls.items()]
        annotations = [{"completed_by": row.values.get("annotator"), "result": result}]
    task = Row(data, row.where)
    found: list[Ranking | Reason] = []
    used: set[str] = set()
    for index, annotation in enumerate(annotations):
        place = f"annotations[{index}]"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise wrong(row, place, annotation, "an object with a list 'result'")
        control = _control(row, place, annotation["result"], keys)
        if annotation.get("was_cancelled"):
            found.append("withdrawn")
        elif control is None:
            found.append("unanswered")
        else:
            ranking, names = _ranking(task, place, control, annotation, keys)
            found.append(ranking)
            used |= names
    unused = unused_of(data, {*used, keys.source}, task) if used else ()
    return Found(tuple(found) or ("unanswered",), unused)


def _control(row: Row, place: str, result: Sequence[Any], keys: Keys) -> dict[str, Any] | None:
    """The result of the Pairwise or Ranker tag; None if the annotator gave none."""
    found = []
    for index, item in enumerate(result):
        value = item.get("value") if isinstance(item, dict) else None
        if isinstance(item, dict) and item.get("type") == "relation":
            continue
        if not isinstance(value, dict):
            raise wrong(row, f"{place}.result[{index}]", item, "an object with a value")
        named = str(item.get("from_name", ""))
        if _ranks(item) and keys.question in named:
            found.append(item)
    if len(found) > 1:
        names = ", ".join(str(item.get("from_name")) for item in found)
        raise BadInput(
            f"{row.where}: {place} has several rankings: {names}; "
            "say which: crestline convert --question"
        )
    return found[0] if found else None


def _ranks(item: Mapping[str, Any]) -> bool:
    """Whether a result is of one of the two tags; by its type where it says one: in a table all have all keys."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind.lower() in ("pairwise", "ranker")
    return bool({"selected", "ranker"} & item["value"].keys())


def _ranking(
    task: Row, place: str, control: Mapping[str, Any], annotation: Mapping[str, Any], keys: Keys
) -> tuple[Ranking, set[str]]:
    """The ranking of one annotation, and the columns of the task that it was made of."""
    value = control["value"]
    if value.get("ranker") is not None:
        name, items = _items(task)
        texts = [text_of(task, f"{name}[{i}]", _body(item)) for i, item in enumerate(items)]
        ids = [str(item["id"]) for item in items]
        ranks = _ranker_ranks(task, f"{place} ranker", value["ranker"], ids, keys)
        used = {name}
    else:
        left, right = _sides(task, control.get("to_name"))
        texts = [text_of(task, name, task.values[name]) for name in (left, right)]
        ranks = _pairwise_ranks(task, f"{place} selected", value.get("selected"))
        used = {left, right}
    rest = {n: v for n, v in task.values.items() if n not in used and isinstance(v, str | list)}
    prompt = _prompt_name(Row(rest, task.where), keys)
    who = _annotator(task, annotation.get("completed_by"))
    ranking = ranking_of(
        task,
        keys,
        prompt=prompt_of(task, prompt, task.values[prompt]) if prompt else "",
        completions=texts,
        ranks=ranks,
        annotator=who,
    )
    return ranking, {*used, prompt}


def _prompt_name(rest: Row, keys: Keys) -> str:
    """The column of the prompt: by name, else the only text that is left; empty if none is."""
    name = prompt_name(rest, keys)
    if name is not None:
        return name
    names = [n for n, v in rest.values.items() if isinstance(v, str) and n not in SAID_NAMES]
    if len(names) > 1:
        raise BadInput(
            f"{rest.where}: which column is the prompt: {', '.join(names[:6])}? "
            "Say it: crestline convert --prompt_key"
        )
    return names[0] if names else ""


def _annotator(task: Row, value: Any) -> str:
    """The number of a user, or of the exports that show more, the address."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None:
        return name_in(task, "annotator")
    return name_in(Row({"completed_by": value}, task.where), "completed_by")


def _pairwise_ranks(task: Row, place: str, selected: Any) -> list[int | None]:
    if selected in ("left", "right"):
        return [0, 1] if selected == "left" else [1, 0]
    if selected in (None, "none"):
        return [None, None]
    raise wrong(task, place, selected, "left or right")


def _sides(task: Row, to_name: Any) -> tuple[str, str]:
    """The columns that were compared: those that the tag names, else answer1 and answer2 and the like."""
    named = str(to_name or "").split(",")
    if len(named) == 2 and all(name in task.values for name in named):
        return named[0], named[1]
    texts = [n for n, v in task.values.items() if isinstance(v, str) and n not in SAID_NAMES]
    stems: dict[str, list[str]] = {}
    for name in texts:
        if found := _SIDES.fullmatch(name):
            stems.setdefault(found.group(1).lower(), []).append(name)
    pairs = [names for names in stems.values() if len(names) == 2]
    if len(pairs) != 1:
        raise BadInput(
            f"{task.where}: which two texts were compared? Found: {', '.join(texts) or 'none'}; "
            "name them answer1 and answer2"
        )
    ends = [_SIDES.fullmatch(name) for name in pairs[0]]
    is_first = [end is not None and end.group(2).lower() in _FIRST for end in ends]
    left, right = pairs[0] if is_first[0] else pairs[0][::-1]
    return left, right


def _items(task: Row) -> tuple[str, list[dict[str, Any]]]:
    """The column of the List tag and its items."""
    found = {
        name: value
        for name, value in task.values.items()
        if isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "id" in item for item in value)
    }
    if len(found) != 1:
        raise BadInput(
            f"{task.where}: found {len(found)} lists of items with ids, expected one: "
            '[{"id": ..., "body": "..."}, ...]'
        )
    name, items = next(iter(found.items()))
    if len(items) < 2:
        raise wrong(task, name, items, "at least two items")
    if len({str(item["id"]) for item in items}) < len(items):
        raise BadInput(f"{task.where}: {name} has an id twice; give every item its own")
    return name, items


def _body(item: Mapping[str, Any]) -> Any:
    """The text of an item; some lists have titles alone."""
    return next(
        (item[name] for name in ("body", "html", "title") if item.get(name) is not None), None
    )


def _ranker_ranks(
    task: Row, place: str, value: Any, ids: Sequence[str], keys: Keys
) -> list[int | None]:
    tiers = _tiers(task, place, value, keys)
    placed = [name for tier in tiers for name in tier]
    for name in placed:
        if name not in ids:
            raise BadInput(f"{task.where}: {place}: no item has the id {name!r}")
    if len(set(placed)) < len(placed):
        raise BadInput(f"{task.where}: {place} has an item twice")
    rank = {name: number for number, tier in enumerate(tiers) for name in tier}
    return list(dense([rank.get(name) for name in ids]))


def _tiers(task: Row, place: str, value: Any, keys: Keys) -> list[list[str]]:
    """Ids of items, best tier first."""
    if isinstance(value, list | tuple):
        return [[str(name)] for name in value]
    if isinstance(value, dict):  # tables have every bucket in every row
        value = {name: ids for name, ids in value.items() if ids is not None}
    if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
        raise wrong(task, place, value, "a list of ids, or lists of ids by bucket")
    buckets = {n: [str(i) for i in ids] for n, ids in value.items() if n != _UNSORTED}
    if len(buckets) == 1:
        return [[name] for ids in buckets.values() for name in ids]
    filled = [name for name, ids in buckets.items() if ids]
    if len(filled) <= 1:
        return [buckets[name] for name in filled]
    if keys.buckets:
        for name in filled:
            if name not in keys.buckets:
                raise BadInput(f"{task.where}: {place}: --buckets does not name {name!r}")
        return [buckets[name] for name in keys.buckets if name in filled]
    numbers = {name: re.search(r"(\d+)$", name) for name in filled}
    order = {name: int(found.group(1)) for name, found in numbers.items() if found}
    if len(set(order.values())) < len(filled):
        raise BadInput(
            f"{task.where}: {place}: which bucket is better: {', '.join(filled)}? "
            "Say it, best first: crestline convert --buckets"
        )
    return [buckets[name] for name in sorted(filled, key=lambda name: order[name])]


def label_studio_rows(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Tasks with annotations that `label_studio_in` reads back; nothing is lost but gaps in ranks.

    Pairwise tasks (answer1, answer2) where every ranking is a pair with a preference, else Ranker
    tasks (items): a list from best to worst, or where some are tied or not ranked, buckets rank_1,
    rank_2 …, best first, and "_" for what is not ranked.
    """
    is_pairwise = all(dense(ranking.ranks) in ((0, 1), (1, 0)) for ranking in rankings)
    return [
        _task(number, ranking, is_pairwise=is_pairwise)
        for number, ranking in enumerate(rankings, 1)
    ]


def _task(number: int, ranking: Ranking, *, is_pairwise: bool) -> dict[str, Any]:
    ranks = dense(ranking.ranks)
    data: dict[str, Any] = {"prompt": ranking.prompt}
    if is_pairwise:
        data |= {"answer1": ranking.completions[0], "answer2": ranking.completions[1]}
        value: dict[str, Any] = {"selected": "left" if ranks[0] == 0 else "right"}
        tag = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise"}
    else:
        ids = [f"completion_{index}" for index in range(1, len(ranks) + 1)]
        data["items"] = [
            {"id": name, "title": f"Completion {index}", "body": text}
            for index, (name, text) in enumerate(zip(ids, ranking.completions, strict=True), 1)
        ]
        value = {"ranker": _ranker_value(ids, ranks)}
        tag = {"from_name": "rank", "to_name": "answers", "type": "ranker"}
    annotation: dict[str, Any] = {
        "result": [{**tag, "id": f"r{number}", "value": value}],
        "was_cancelled": False,
    }
    is_number = re.fullmatch(r"0|[1-9][0-9]{0,17}", ranking.annotator) is not None
    if is_number:
        annotation["completed_by"] = int(ranking.annotator)
    data |= said_of(ranking, without=["annotator"] if is_number else [])
    return {"id": number, "data": data, "annotations": [annotation], "predictions": []}


def _ranker_value(
    ids: Sequence[str], ranks: Sequence[int | None]
) -> list[str] | dict[str, list[str]]:
    ranked = sorted({rank for rank in ranks if rank is not None})
    if len(ranked) == len(ids):
        return sorted(ids, key=lambda name: ranks[ids.index(name)] or 0)
    placed = list(zip(ids, ranks, strict=True))
    buckets = {f"rank_{rank + 1}": [n for n, r in placed if r == rank] for rank in (0, 1, *ranked)}
    return {_UNSORTED: [name for name, rank in placed if rank is None], **buckets}
