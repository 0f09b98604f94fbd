"""What of a test set stands in the training set too: same prompts, same completions, prompts alike.

Owns when two texts count as alike, and finding such among many without comparing all. Knows nothing
of scores.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crestline.data.splits import canonical_prompt
from crestline.types import PromptText, Ranking

Kind = Literal["same prompt", "same completion", "similar prompt", "similar completion"]
Ids = NDArray[np.uint64]

MIN_WORDS = 5
"""A completion of fewer words may stand on both sides by chance ("Yes, of course.")."""
NUM_BANDS, ROWS_PER_BAND = 20, 6
"""Texts that share a 0.8 of their word pairs become candidates with probability 0.998, of a half with 0.27."""
MOST_CANDIDATES = 20
"""Of one text in one band; one match is enough."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One text of the test set that training may have seen, and where both stand.

    similarity: share of word pairs in common, 1 for the same text.
    """

    kind: Kind
    test_where: str
    train_where: str
    test_text: str
    train_text: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """What stands on both sides. Each num counts rankings of the test set, one in the first kind it fits.

    num_short_completions: rankings that share only a completion of fewer than MIN_WORDS words; they do not
    count as leaks. leaking: True for each test ranking that leaks, (R,).
    """

    num_test: int
    num_train: int
    num_same_prompt: int
    num_same_completion: int
    num_similar: int
    num_short_completions: int
    leaking: tuple[bool, ...]
    leaks: tuple[Leak, ...]

    @property
    def num_leaking(self) -> int:
        """All test rankings that leak."""
        return sum(self.leaking)


def find_leaks(
    train: Sequence[Ranking], test: Sequence[Ranking], *, threshold: float = 0.8
) -> Leakage:
    """Test rankings whose prompt or completions, or something alike, stand in the training rankings.

    threshold: share of word pairs in common from which two prompts are alike, in (0, 1]; without any
    prompts it is completions that are compared. Spelling in capitals, punctuation and spaces do not count.
    Returns: one leak for each test ranking that has any, in the order of the test set.

    >>> a = Ranking(prompt="Tell me of owls, please.", completions=("x", "y"), ranks=(0, 1), where="a:1")
    >>> b = Ranking(prompt="tell me of OWLS please", completions=("v", "w"), ranks=(0, 1), where="b:9")
    >>> [(leak.kind, leak.test_where, leak.train_where) for leak in find_leaks([a], [b]).leaks]
    [('similar prompt', 'b:9', 'a:1')]
    """
    prompts = {canonical_prompt(r.prompt): r for r in reversed(train) if r.prompt}
    completions = {text: r for r in reversed(train) for text in r.completions}
    with_prompts = any(r.prompt for r in test)
    similar = _similar(train, test, threshold, with_prompts=with_prompts)
    leaks: list[Leak] = []
    leaking, num_short = [], 0
    for number, ranking in enumerate(test):
        shared = [text for text in ranking.completions if text in completions]
        long = [text for text in shared if len(words(text)) >= MIN_WORDS]
        leak: Leak | None = None
        if ranking.prompt and (found := prompts.get(canonical_prompt(ranking.prompt))):
            text = plain_text(ranking.prompt)
            leak = _leak("same prompt", ranking, found, text, text, 1.0)
        elif long:
            leak = _leak("same completion", ranking, completions[long[0]], long[0], long[0], 1.0)
        else:
            leak = similar.get(number)
            num_short += leak is None and bool(shared)
        leaking.append(leak is not None)
        leaks += [leak] if leak else []
    kinds = [leak.kind for leak in leaks]
    return Leakage(
        num_test=len(test),
        num_train=len(train),
        num_same_prompt=kinds.count("same prompt"),
        num_same_completion=kinds.count("same completion"),
        num_similar=sum(kind.startswith("similar") for kind in kinds),
        num_short_completions=num_short,
        leaking=tuple(leaking),
        leaks=tuple(leaks),
    )


def plain_text(prompt: PromptText) -> str:
    """What a prompt says, without roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


def asked_text(prompt: PromptText) -> str:
    """What a prompt says but for its system messages, which many prompts share; all of it where there are no others."""
    if isinstance(prompt, str):
        return prompt
    return plain_text([m for m in prompt if m["role"] != "system"] or prompt)


def words(text: str) -> list[str]:
    """Words without regard to capitals, punctuation and spaces; each ideograph is a word.

    >>> words("Don't  SHOUT!")
    ['don', 't', 'shout']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _leak(kind: Kind, test: Ranking, train: Ranking, a: str, b: str, similarity: float) -> Leak:
    return Leak(
        kind=kind,
        test_where=test.where,
        train_where=train.where,
        test_text=a,
        train_text=b,
        similarity=similarity,
    )


def _similar(
    train: Sequence[Ranking], test: Sequence[Ranking], threshold: float, *, with_prompts: bool
) -> dict[int, Leak]:
    """By number of the test ranking, the training ranking most like it."""

    def texts(rankings: Sequence[Ranking]) -> list[tuple[int, str]]:
        if with_prompts:
            return [(n, asked_text(r.prompt)) for n, r in enumerate(rankings) if r.prompt]
        return [
            (n, text)
            for n, r in enumerate(rankings)
            for text in r.completions
            if len(words(text)) >= MIN_WORDS
        ]

    old, new = texts(train), texts(test)
    kind: Kind = "similar prompt" if with_prompts else "similar completion"
    found: dict[int, Leak] = {}
    for i, j, similarity in most_similar([t for _, t in old], [t for _, t in new], threshold):
        n = new[i][0]
        if n not in found or found[n].similarity < similarity:
            pair = test[n], train[old[j][0]]
            found[n] = _leak(kind, *pair, new[i][1], old[j][1], similarity)
    return found


def most_similar(
    old: Sequence[str], new: Sequence[str], threshold: float
) -> list[tuple[int, int, float]]:
    """(place in new, place in old, similarity) of each new text with an old one at least so similar.

    similarity: Jaccard index of the sets of neighbouring word pairs (the word itself in texts of one
    word), computed exactly; candidates are found by min-wise hashing, so a match is missed once in
    500 times at a similarity of 0.8 and less often above.
    Raises: ValueError if threshold is not in (0, 1].
    Source: Broder (1997), On the resemblance and containment of documents; Leskovec, Rajaraman,
    Ullman, Mining of Massive Datasets, ch. 3 (bands).

    >>> most_similar(["the cat sat on the mat"], ["The cat sat on a mat.", "the CAT sat on the mat!"], 0.8)
    [(1, 0, 1.0)]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold must be in (0, 1], not {threshold}")
    vocabulary: dict[str, int] = {}
    pairs_old = [_word_pairs(words(text), vocabulary) for text in old]
    pairs_new = [_word_pairs(words(text), vocabulary) for text in new]
    old_keys, new_keys = _band_keys(pairs_old), _band_keys(pairs_new)
    candidates: list[set[int]] = [set() for _ in new]
    for band in range(NUM_BANDS):
        order = np.argsort(old_keys[:, band], kind="stable")
        ordered = old_keys[order, band]
        first = np.searchsorted(ordered, new_keys[:, band], side="left")
        last = np.searchsorted(ordered, new_keys[:, band], side="right")
        for n in np.flatnonzero(last > first):
            stop = min(last[n], first[n] + MOST_CANDIDATES)
            candidates[n].update(order[first[n] : stop].tolist())
    found = []
    for i, (pairs, places) in enumerate(zip(pairs_new, candidates, strict=True)):
        scored = [(_jaccard(pairs, pairs_old[j]), -j) for j in places if len(pairs)]
        best, place = max(scored, default=(0.0, 0))
        if best >= threshold:
            found.append((i, -place, best))
    return found


def _word_pairs(found: Sequence[str], vocabulary: dict[str, int]) -> Ids:
    """The set of neighbouring pairs of words, as sorted numbers; empty for a text without words."""
    ids = np.array([vocabulary.setdefault(w, len(vocabulary) + 1) for w in found], dtype=np.uint64)
    if len(ids) < 2:
        return ids
    return np.unique(ids[:-1] << np.uint64(32) | ids[1:])


def _jaccard(a: Ids, b: Ids) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _band_keys(sets: Sequence[Ids]) -> Ids:
    """A key for each band of min-wise hashes, (texts, NUM_BANDS); 0 for texts without words."""
    rng = np.random.default_rng(20)
    num_hashes = NUM_BANDS * ROWS_PER_BAND
    factors = rng.integers(2**63, size=num_hashes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    keys = np.zeros((len(sets), NUM_BANDS), dtype=np.uint64)
    filled = np.flatnonzero([len(ids) for ids in sets])
    for start in range(0, len(filled), 10_000):
        chunk = filled[start : start + 10_000]
        parts = [sets[i] for i in chunk]
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        mixed = _mixed(np.concatenate(parts))
        for n, factor in enumerate(factors):
            smallest = np.minimum.reduceat(_mixed(mixed * factor), starts)
            band = n // ROWS_PER_BAND
            keys[chunk, band] = _mixed(keys[chunk, band] ^ smallest)
    return keys


def _mixed(values: Ids) -> Ids:
    """Numbers whose bits all depend on all bits (the last steps of splitmix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
