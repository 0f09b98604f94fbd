"""Rankings to rows of other formats, and what those formats cannot hold.

Owns the formats of pairs on their way out and the account of losses. K-way rows and the labelling
tools' tasks are written where they are read. Writing to disk belongs to `runs`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from crestline.data.argilla import argilla_rows
from crestline.data.chat import as_chat
from crestline.data.columns import NO_KEYS, SAID_NAMES, said_of
from crestline.data.label_studio import label_studio_rows
from crestline.data.pairs import pair_in
from crestline.data.parsers import Row, csv_cell
from crestline.data.rankings import rankings_as_rows
from crestline.types import Message, Ranking

Format = Literal["trl", "nemo", "hh", "argilla", "label-studio", "openrlhf", "rewardbench", "csv"]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What a format could not hold of the rankings written in it.

    num_expanded, num_pairs: rankings of more than two completions, and the pairs they became.
    num_ties: pairs of tied completions, not written. num_not_ranked: completions without a rank,
    not written. num_unwritten: rankings that gave no row at all.
    num_plain_prompts: plain prompts,
    or none, that became a person's message. num_system: system messages that became a person's.
    num_merged: pairs whose prompt has several turns of one side in a row, which became one.
    num_stripped: pairs with white space around a turn, which went. num_unspeakable: pairs whose
    turns the format cannot hold, not written. num_margins: rows whose missing margin became 0.
    """

    num_expanded: int = 0
    num_pairs: int = 0
    num_ties: int = 0
    num_not_ranked: int = 0
    num_unwritten: int = 0
    num_plain_prompts: int = 0
    num_system: int = 0
    num_merged: int = 0
    num_stripped: int = 0
    num_unspeakable: int = 0
    num_margins: int = 0

    def __str__(self) -> str:
        told = (
            (self.num_expanded, f"rankings of more than two written as {self.num_pairs} pairs"),
            (self.num_ties, "ties not written"),
            (self.num_not_ranked, "completions without a rank not written"),
            (self.num_unwritten, "rankings not written at all"),
            (self.num_plain_prompts, "plain prompts written as a person's message"),
            (self.num_system, "system messages written as a person's"),
            (self.num_merged, "pairs whose prompts have turns joined, so that sides alternate"),
            (self.num_stripped, "pairs written without white space around their turns"),
            (self.num_unspeakable, "pairs not written, since the format cannot hold their texts"),
            (self.num_margins, "missing margins written as 0"),
        )
        return ", ".join(f"{count} {text}" for count, text in told if count) or "nothing"


def write_rows(rankings: Sequence[Ranking], form: Format) -> tuple[list[Values], Lost]:
    """Rows of a format that reading gives back as the same rankings, but for what was lost.

    All rows have the same columns. Pairs are written better first; gaps in ranks are not kept,
    except by nemo.
    form: nemo, argilla and label-studio hold everything; csv all of a pair, ties too; the others
    pairs that are not tied; hh and rewardbench chats only.

    >>> rows, lost = write_rows([Ranking(prompt="p", completions=tuple("abc"), ranks=(0, 1, 1))], "trl")
    >>> [(row["chosen"], row["rejected"]) for row in rows], str(lost)
    ([('a', 'b'), ('a', 'c')], '1 rankings of more than two written as 2 pairs, 1 ties not written')
    """
    whole: dict[str, Callable[[Sequence[Ranking]], list[Values]]] = {
        "nemo": rankings_as_rows,
        "argilla": argilla_rows,
        "label-studio": label_studio_rows,
    }
    if form in whole:
        return _same_columns(whole[form](rankings)), Lost()
    count: Counter[str] = Counter()
    rows: list[Values] = []
    for ranking in rankings:
        pairs = _pairs(ranking, form == "csv", count)
        found = [_PAIR_ROWS[form](pair, count) for pair in pairs]
        written = [row for row in found if row is not None]
        rows += written
        count["num_unwritten"] += not written
        if len(ranking.ranks) > 2 and written:
            count["num_expanded"] += 1
            count["num_pairs"] += len(written)
        if form in ("hh", "rewardbench") and written:
            count["num_plain_prompts"] += isinstance(ranking.prompt, str)
            count["num_system"] += sum(m["role"] == "system" for m in as_chat(ranking.prompt))
    if form == "rewardbench":
        rows = [{**row, "id": number} for number, row in enumerate(rows)]
    if form in ("trl", "openrlhf") and any("margin" in row for row in rows):
        count["num_margins"] += sum("margin" not in row for row in rows)
        rows = [{**row, "margin": row.get("margin", 0.0)} for row in rows]
    return _same_columns(rows, "prompt"), Lost(**count)


def _pairs(ranking: Ranking, with_ties: bool, count: Counter[str]) -> list[Ranking]:
    """Every two ranked completions as a ranking of their own, better first."""
    ranked = [
        (rank, text)
        for rank, text in zip(ranking.ranks, ranking.completions, strict=True)
        if rank is not None
    ]
    pairs = []
    for two in combinations(ranked, 2):
        (rank, better), (other, worse) = sorted(two, key=lambda item: item[0])
        if rank == other and not with_ties:
            count["num_ties"] += 1
            continue
        ranks = (0, int(rank != other))
        pairs.append(replace(ranking, completions=(better, worse), ranks=ranks))
    count["num_not_ranked"] += len(ranking.ranks) - len(ranked)
    return pairs


def _trl(pair: Ranking, count: Counter[str]) -> Values:
    """Explicit prompt, except where there is none."""
    row = _openrlhf(pair, count)
    return row if pair.prompt else {name: v for name, v in row.items() if name != "prompt"}


def _openrlhf(pair: Ranking, count: Counter[str]) -> Values:
    texts: Sequence[Any] = pair.completions
    if not isinstance(pair.prompt, str):
        texts = [[_answer(text)] for text in pair.completions]
    return {"prompt": pair.prompt, "chosen": texts[0], "rejected": texts[1], **said_of(pair)}


def _csv(pair: Ranking, count: Counter[str]) -> Values | None:
    """A chat prompt as JSON in its cell; None where a text would be read as a chat."""
    prompt = pair.prompt
    texts = [text for text in (prompt, *pair.completions) if isinstance(text, str)]
    if any(type(csv_cell(text)) is not str for text in texts):
        count["num_unspeakable"] += 1
        return None
    if not isinstance(prompt, str):
        prompt = json.dumps(prompt, ensure_ascii=False)
    tie = "true" if pair.ranks == (0, 0) else "false"
    cells = {"prompt": prompt, "chosen": pair.completions[0], "rejected": pair.completions[1]}
    return {**cells, "tie": tie, **said_of(pair)}


def _rewardbench(pair: Ranking, count: Counter[str]) -> Values | None:
    """Whole dialogues, as RewardBench's own loader reads them: a person and the assistant in turn."""
    chat = as_chat(pair.prompt)
    turns: list[Message] = []
    for message in chat:
        role = message["role"].replace("system", "user")
        content = message["content"]
        if turns and turns[-1]["role"] == role:
            content = f"{turns.pop()['content']}\n\n{content}"
        turns.append({"role": role, "content": content})
    if turns[0]["role"] == "assistant":
        count["num_unspeakable"] += 1
        return None
    count["num_merged"] += len(turns) < len(chat)
    chosen, rejected = ([*turns, _answer(text)] for text in pair.completions)
    return {
        "prompt": turns[-1]["content"],
        "chosen": chosen,
        "rejected": rejected,
        "subset": pair.source,
        "chosen_model": "",
        "rejected_model": "",
        **said_of(pair, without=["source"]),
    }


def _hh(pair: Ranking, count: Counter[str]) -> Values | None:
    """Transcripts; None where reading one would give other turns."""
    chat = as_chat(pair.prompt)
    roles = {"assistant": "Assistant"}
    start = "".join(f"\n\n{roles.get(m['role'], 'Human')}: {m['content']}" for m in chat)
    better, worse = (f"{start}\n\nAssistant: {text}" for text in pair.completions)
    row = {"chosen": better, "rejected": worse, **said_of(pair)}
    spoken = [
        {"role": m["role"].replace("system", "user"), "content": m["content"].strip()} for m in chat
    ]
    texts = tuple(text.strip() for text in pair.completions)
    if pair_in(Row(row, pair.where), NO_KEYS).answers != (
        replace(pair, prompt=spoken, completions=texts),
    ):
        count["num_unspeakable"] += 1
        return None
    is_same = texts == pair.completions and all(m["content"] == m["content"].strip() for m in chat)
    count["num_stripped"] += not is_same
    return row


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


_PAIR_ROWS: dict[str, Callable[[Ranking, Counter[str]], Values | None]] = {
    "trl": _trl,
    "openrlhf": _openrlhf,
    "hh": _hh,
    "rewardbench": _rewardbench,
    "csv": _csv,
}


def _same_columns(rows: Sequence[Values], *more: str) -> list[Values]:
    """The rows, all with the columns that one of them has: readers of tables expect it.

    more: columns besides those that say something of a ranking.
    """
    names = {name for row in rows for name in row} & {*SAID_NAMES, *more}
    empty = {name: None if name == "margin" else "" for name in sorted(names)}
    return [{**row, **{n: v for n, v in empty.items() if n not in row}} for row in rows]


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of the same columns as CSV with a header; None is an empty cell."""
    listed = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(listed[0]) if listed else [])
    writer.writeheader()
    writer.writerows(listed)
    return file.getvalue()
