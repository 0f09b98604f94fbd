"""Rows to rankings and back: K-way rankings, preference pairs, dialogues in the way of hh-rlhf.

Owns the formats of rankings and which rankings teach nothing. Writing to disk belongs to `runs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from crestline.data.chat import (
    as_chat,
    column,
    completion_of,
    is_transcript,
    messages_of,
    missing,
    prompt_of,
    shared_prompt,
    text_of,
    transcript_messages,
    wrong,
)
from crestline.data.parsers import Row
from crestline.data.rows import read_rows
from crestline.types import BadInput, Ranking

Uninformative = Literal["too few ranked", "all tied", "same text"]
EXPECTED = (
    "'completions' with 'context' or 'prompt', or 'chosen' and 'rejected' with or without 'prompt'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """How many rows of a file were left out, and why.

    num_too_few_ranked: fewer than two completions are ranked. num_all_tied: all ranks are equal.
    num_same_text: every pair with different ranks has the same text. num_diverging: the two
    dialogues part before their last answers, or do not end with one.
    """

    num_too_few_ranked: int = 0
    num_all_tied: int = 0
    num_same_text: int = 0
    num_diverging: int = 0

    @property
    def num_rows(self) -> int:
        """All rows left out."""
        return self.num_too_few_ranked + self.num_all_tied + self.num_same_text + self.num_diverging

    def __str__(self) -> str:
        reasons = (
            (self.num_too_few_ranked, "with fewer than two ranked"),
            (self.num_all_tied, "all tied"),
            (self.num_same_text, "between equal texts"),
            (self.num_diverging, "whose dialogues part too early"),
        )
        return ", ".join(f"{count} {text}" for count, text in reasons if count) or "none"


def read_rankings(source: str, *, split: str = "train", keep_all: bool = False) -> list[Ranking]:
    """Rankings of a data set; `read_rankings_and_skipped` also counts the rows left out.

    source, split: as in `read_rows`. keep_all: True keeps all-tied and unranked rows too.
    Raises: BadInput naming file, line and column; also where no usable ranking is left.
    """
    return read_rankings_and_skipped(source, split=split, keep_all=keep_all)[0]


def read_rankings_and_skipped(
    source: str, *, split: str = "train", keep_all: bool = False
) -> tuple[list[Ranking], Skipped]:
    """Rankings of a data set, and how many rows were left out and why.

    Formats, told row by row: `completions: [{rank, completion}]` with `context` or `prompt`;
    `chosen` and `rejected` with `prompt`; `chosen` and `rejected` alone, as chat messages, as
    dialogues in the way of hh-rlhf (the prompt is what both share) or as plain texts (the prompt
    is empty). `tie: true` makes a pair's ranks equal; `annotator` and `answered_by` are kept;
    columns of vote counts are not looked at. Ranks: 0 or more, lower is better, null is "not
    ranked"; kept as they stand. Empty completions are legal.
    source, split: as in `read_rows`. keep_all: True leaves out only dialogues that part too early.
    Raises: BadInput naming file, line and column; also where no usable ranking is left.
    """
    rankings: list[Ranking] = []
    count = {"too few ranked": 0, "all tied": 0, "same text": 0, "diverging": 0}
    for row in read_rows(source, split=split):
        ranking = _ranking(row)
        if ranking is None:
            count["diverging"] += 1
            continue
        why_not = uninformative(ranking)
        if why_not is None or keep_all:
            rankings.append(ranking)
        else:
            count[why_not] += 1
    skipped = Skipped(
        num_too_few_ranked=count["too few ranked"],
        num_all_tied=count["all tied"],
        num_same_text=count["same text"],
        num_diverging=count["diverging"],
    )
    if not rankings:
        raise BadInput(f"{source}: no usable ranking ({skipped}); give rankings with a preference")
    return rankings, skipped


def uninformative(ranking: Ranking) -> Uninformative | None:
    """Why a ranking prefers nothing to anything, or None where it does.

    >>> uninformative(Ranking(prompt="", completions=("a", "b"), ranks=(0, 0)))
    'all tied'
    """
    ranked = [
        (rank, text)
        for rank, text in zip(ranking.ranks, ranking.completions, strict=True)
        if rank is not None
    ]
    if len(ranked) < 2:
        return "too few ranked"
    if len({rank for rank, _ in ranked}) == 1:
        return "all tied"
    if len({text for _, text in ranked}) == 1:
        return "same text"
    return None


def _ranking(row: Row) -> Ranking | None:
    if "completions" in row.values:
        return _k_way(row)
    if "chosen" in row.values or "rejected" in row.values:
        return _pair(row)
    raise missing(row, "completions", EXPECTED)


def _k_way(row: Row) -> Ranking:
    name = "context" if row.values.get("context") is not None else "prompt"
    prompt = prompt_of(row, name, column(row, name, EXPECTED))
    entries = row.values["completions"]
    if not isinstance(entries, list | tuple) or len(entries) < 2:
        raise wrong(row, "completions", entries, "a list of at least two {rank, completion}")
    texts: list[str] = []
    ranks: list[int | None] = []
    for index, entry in enumerate(entries):
        place = f"completions[{index}]"
        if not isinstance(entry, dict) or not {"rank", "completion"} <= entry.keys():
            raise wrong(row, place, entry, "an object with rank and completion")
        ranks.append(_rank(row, f"{place}.rank", entry["rank"]))
        texts.append(completion_of(row, f"{place}.completion", entry["completion"]))
        if not isinstance(entry["completion"], str):
            prompt = as_chat(prompt)
    return Ranking(
        prompt=prompt,
        completions=tuple(texts),
        ranks=tuple(ranks),
        annotator=_name(row, "annotator"),
        answered_by=_name(row, "answered_by"),
        where=row.where,
    )


def _rank(row: Row, place: str, value: Any) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise wrong(row, place, value, "a whole number, 0 is best, or null for not ranked")
    return int(value)


def _name(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(row, name, value)


def _pair(row: Row) -> Ranking | None:
    chosen, rejected = column(row, "chosen", EXPECTED), column(row, "rejected", EXPECTED)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise wrong(row, "rejected", rejected, "the same kind as chosen: both texts or both chats")
    if row.values.get("prompt", "") != "" and not _is_whole_dialogue(chosen):
        prompt = prompt_of(row, "prompt", row.values["prompt"])
        if not isinstance(chosen, str):
            prompt = as_chat(prompt)
        texts = (completion_of(row, "chosen", chosen), completion_of(row, "rejected", rejected))
    elif is_transcript(chosen) and is_transcript(rejected):
        split = shared_prompt(
            transcript_messages(text_of(row, "chosen", chosen)),
            transcript_messages(text_of(row, "rejected", rejected)),
        )
        if split is None:
            return None
        prompt, texts = split[0], split[1:]
    elif isinstance(chosen, str):
        prompt = ""
        texts = (text_of(row, "chosen", chosen), text_of(row, "rejected", rejected))
    else:
        split = shared_prompt(
            messages_of(row, "chosen", chosen), messages_of(row, "rejected", rejected)
        )
        if split is None:
            return None
        prompt, texts = split[0], split[1:]
    return Ranking(
        prompt=prompt,
        completions=texts,
        ranks=(0, 0 if _tie(row) else 1),
        annotator=_name(row, "annotator"),
        answered_by=_name(row, "answered_by"),
        where=row.where,
    )


def _is_whole_dialogue(chosen: Any) -> bool:
    """Whether `chosen` repeats the prompt: chat messages with the user's among them."""
    if not isinstance(chosen, list | tuple):
        return False
    return any(isinstance(message, dict) and message.get("role") == "user" for message in chosen)


def _tie(row: Row) -> bool:
    value = row.values.get("tie")
    if value is None or value == "":
        return False
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (True, "true", "1"):
        return True
    if word in (False, "false", "0"):
        return False
    raise wrong(row, "tie", value, "true or false")


def rankings_as_rows(rankings: Iterable[Ranking]) -> list[dict[str, Any]]:
    """Rows of rankings.jsonl (NeMo RL's shape) that `read_rankings(keep_all=True)` reads back.

    >>> rankings_as_rows([Ranking(prompt="p", completions=("a", "b"), ranks=(1, 0))])[0]["prompt"]
    'p'
    """
    return [_as_row(ranking) for ranking in rankings]


def _as_row(ranking: Ranking) -> dict[str, Any]:
    chat = not isinstance(ranking.prompt, str)
    completions = [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}] if chat else text}
        for rank, text in zip(ranking.ranks, ranking.completions, strict=True)
    ]
    return {
        "context" if chat else "prompt": ranking.prompt,
        "completions": completions,
        "annotator": ranking.annotator,
        "answered_by": ranking.answered_by,
    }
