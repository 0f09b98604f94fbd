"""Rankings of a data set, whatever its rows look like, and what was left out and why.

Owns telling formats apart row by row, K-way rows (NeMo RL's shape, which is our own), which rankings
teach nothing, and repetitions. Pairs are in `pairs`, the labelling tools' exports in `argilla` and
`label_studio`, other formats to write in `writers`. Writing to disk belongs to `runs`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from crestline.data.argilla import argilla_in
from crestline.data.argilla_records import is_argilla
from crestline.data.chat import as_chat, column, completion_of, missing, prompt_of, wrong
from crestline.data.columns import (
    NO_KEYS,
    Found,
    Keys,
    dense,
    prompt_name,
    ranking_of,
    said_of,
    unused_of,
)
from crestline.data.label_studio import is_label_studio, label_studio_in
from crestline.data.pairs import EXPECTED, pair_in
from crestline.data.parsers import Row
from crestline.data.rows import read_rows
from crestline.data.splits import canonical_prompt
from crestline.types import BadInput, Ranking

Uninformative = Literal["too few ranked", "all tied", "same text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """How many rows of a file, or answers within rows, were left out, and why.

    num_too_few_ranked: fewer than two completions are ranked. num_all_tied: all ranks are equal.
    num_same_text: every pair with different ranks has the same text. num_diverging: the two
    dialogues part before their last answers, or do not end with one. num_unanswered: nobody has
    answered. num_withdrawn: drafts, and what annotators discarded or cancelled. num_duplicates:
    the same annotator said the same before. num_repeated: not left out, since nobody is named and
    it may be another person's answer, but it repeats an earlier one.
    """

    num_too_few_ranked: int = 0
    num_all_tied: int = 0
    num_same_text: int = 0
    num_diverging: int = 0
    num_unanswered: int = 0
    num_withdrawn: int = 0
    num_duplicates: int = 0
    num_repeated: int = 0

    @property
    def num_rows(self) -> int:
        """All that was left out."""
        return sum(count for name, count in asdict(self).items() if name != "num_repeated")

    def __str__(self) -> str:
        reasons = (
            (self.num_too_few_ranked, "with fewer than two ranked"),
            (self.num_all_tied, "all tied"),
            (self.num_same_text, "between equal texts"),
            (self.num_diverging, "whose dialogues part too early"),
            (self.num_unanswered, "that nobody answered"),
            (self.num_withdrawn, "drafted, discarded or cancelled"),
            (self.num_duplicates, "said before by the same annotator"),
        )
        told = ", ".join(f"{count} {text}" for count, text in reasons if count) or "none"
        kept = (
            f"; kept: {self.num_repeated} that repeat an earlier one" if self.num_repeated else ""
        )
        return told + kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a data set gave. unused: how many rows hold a column that nobody read, by its name."""

    rankings: list[Ranking]
    skipped: Skipped
    unused: dict[str, int]
    num_rows: int


def read_rankings(source: str, *, split: str = "train", keep_all: bool = False) -> list[Ranking]:
    """Rankings of a data set; `read_rankings_and_skipped` also counts what was left out.

    source, split: as in `read_rows`. keep_all: as in `read_all_rankings`.
    Raises: BadInput naming file, line and column; also where no usable ranking is left.
    """
    return read_all_rankings(source, split=split, keep_all=keep_all).rankings


def read_rankings_and_skipped(
    source: str, *, split: str = "train", keep_all: bool = False
) -> tuple[list[Ranking], Skipped]:
    """Rankings of a data set, and how many were left out and why; as `read_all_rankings`."""
    reading = read_all_rankings(source, split=split, keep_all=keep_all)
    return reading.rankings, reading.skipped


def read_all_rankings(
    source: str, *, split: str = "train", keep_all: bool = False, keys: Keys = NO_KEYS
) -> Reading:
    """Rankings of a data set, with account of everything else in it.

    Formats, told row by row: K-way rankings (`completions: [{rank, completion}]` with a prompt);
    pairs (`chosen` and `rejected`, with or without a prompt, as texts, chats or hh-rlhf
    transcripts); records of Argilla; tasks of Label Studio. One record may give several rankings.
    `annotator`, `answered_by`, `margin` and `source` (or `subset`, `data_source`) are kept; vote
    counts are not looked at. Ranks: 0 or more, lower is better, null is "not ranked"; kept as they
    stand. Empty completions are legal.
    source, split: as in `read_rows`. keep_all: True keeps what teaches nothing, and repetitions.
    keys: names of columns that the file calls otherwise.
    Raises: BadInput naming file, line and column; also where no usable ranking is left.
    """
    rankings: list[Ranking] = []
    count: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    seen: set[bytes] = set()
    rows = read_rows(source, split=split)
    for row in rows:
        found = _found_in(row, keys)
        unused.update(found.unused)
        for answer in found.answers:
            why_not = answer if isinstance(answer, str) else uninformative(answer)
            if isinstance(answer, str) or (why_not is not None and not keep_all):
                count[f"num_{why_not}".replace(" ", "_")] += 1
                continue
            is_known = _is_known(answer, seen)
            if is_known and answer.annotator and not keep_all:
                count["num_duplicates"] += 1
                continue
            count["num_repeated"] += is_known
            rankings.append(answer)
    skipped = Skipped(**count)
    if not rankings:
        raise BadInput(f"{source}: no usable ranking ({skipped}); give rankings with a preference")
    return Reading(rankings=rankings, skipped=skipped, unused=dict(unused), num_rows=len(rows))


def _is_known(ranking: Ranking, seen: set[bytes]) -> bool:
    """Whether the same was said before, in whatever order it was shown; remembers it."""
    told = sorted(
        (text, -1 if rank is None else rank)
        for text, rank in zip(ranking.completions, dense(ranking.ranks), strict=True)
    )
    said = [ranking.annotator, ranking.answered_by, ranking.source, ranking.margin]
    content = json.dumps([canonical_prompt(ranking.prompt), told, said])
    digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
    is_known = digest in seen
    seen.add(digest)
    return is_known


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


def _found_in(row: Row, keys: Keys) -> Found:
    """What a row gives, by the format that it is in."""
    if keys.chosen or keys.rejected:
        return pair_in(row, keys)
    if is_argilla(row):
        return argilla_in(row, keys)
    if is_label_studio(row):
        return label_studio_in(row, keys)
    filled = {name for name in ("completions", "chosen", "rejected") if name in row.values}
    filled = {name for name in filled if row.values[name] is not None} or filled
    if "completions" in filled:
        return _k_way_in(row, keys)
    if filled:
        return pair_in(row, keys)
    raise missing(row, "completions", EXPECTED)


def _k_way_in(row: Row, keys: Keys) -> Found:
    name = prompt_name(row, keys) or "prompt"
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
    ranking = ranking_of(row, keys, prompt=prompt, completions=texts, ranks=ranks)
    return Found((ranking,), unused_of(row.values, ("completions", name, keys.source), row))


def _rank(row: Row, place: str, value: Any) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise wrong(row, place, value, "a whole number, 0 is best, or null for not ranked")
    return int(value)


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
        **said_of(ranking, without=("annotator", "answered_by")),
    }
