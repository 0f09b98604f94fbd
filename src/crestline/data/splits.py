"""Which side of a split a prompt or a text falls on, told by its hash alone.

Adding, removing or shuffling rows moves nothing from one side to another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from crestline.types import BadInput, PromptText, Ranking

Item = TypeVar("Item")


def canonical_prompt(prompt: PromptText) -> str:
    """One text per prompt: equal prompts have equal texts, and plain text never equals a chat."""
    if isinstance(prompt, str):
        return "text:" + prompt
    return "chat:" + json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def side_of(text: str, fractions: Mapping[str, float], seed: int) -> str:
    """The side that a text falls on, by the hash of (seed, text).

    fractions: share of each side, in [0, 1], summing to 1; the order matters.
    Raises: BadInput for other fractions.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) < 0 or not abs(total - 1) < 1e-9:
        raise BadInput(f"split fractions {dict(fractions)} must be 0 or more and sum to 1")
    content = f"{seed}\n{text}".encode("utf-8", "surrogatepass")
    position = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
    reached = 0.0
    last = ""
    for name, fraction in fractions.items():
        reached += fraction
        if fraction > 0:
            last = name
            if position < reached:
                return name
    return last


def split_by_prompt(
    items: Iterable[Item],
    prompt_of: Callable[[Item], PromptText],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, list[Item]]:
    """Items by side, in their order, such that one prompt never stands on two sides.

    fractions: share of the prompts per side, summing to 1; a small side may come out empty.
    Raises: BadInput for other fractions.

    >>> split_by_prompt(["a", "b", "a"], str, {"train": 1.0, "test": 0.0}, seed=0)
    {'train': ['a', 'b', 'a'], 'test': []}
    """
    sides: dict[str, list[Item]] = {name: [] for name in fractions}
    for item in items:
        sides[side_of(canonical_prompt(prompt_of(item)), fractions, seed)].append(item)
    return sides


def split_by_text(
    rankings: Iterable[Ranking], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, list[Ranking]], int]:
    """Rankings by side, such that one completion text never stands on two sides.

    For rankings without a prompt. Each text falls on a side; a ranking whose texts fall on
    different sides is dropped. So pairs at 0.9 / 0.1 keep about 0.81 / 0.01 of the rankings:
    choose the fractions by that.
    fractions: share of the texts per side, summing to 1.
    Returns: the rankings per side, and how many were dropped.
    Raises: BadInput for other fractions.
    """
    sides: dict[str, list[Ranking]] = {name: [] for name in fractions}
    num_dropped = 0
    for ranking in rankings:
        names = {side_of(text, fractions, seed) for text in ranking.completions}
        if len(names) == 1:
            sides[names.pop()].append(ranking)
        else:
            num_dropped += 1
    return sides, num_dropped


def split_by_prompt_or_text(
    rankings: Sequence[Ranking], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, list[Ranking]], int]:
    """Rankings by side, in their order: by prompt those that have one, by text the others.

    Returns: the rankings per side, and how many were dropped, by `split_by_text`.
    Raises: BadInput for other fractions.
    """
    prompted = [ranking for ranking in rankings if ranking.prompt]
    by_prompt = split_by_prompt(prompted, lambda ranking: ranking.prompt, fractions, seed)
    others = [ranking for ranking in rankings if not ranking.prompt]
    by_text, num_dropped = split_by_text(others, fractions, seed)
    place = {id(ranking): number for number, ranking in enumerate(rankings)}
    sides = {
        name: sorted(by_prompt[name] + by_text[name], key=lambda ranking: place[id(ranking)])
        for name in fractions
    }
    return sides, num_dropped
