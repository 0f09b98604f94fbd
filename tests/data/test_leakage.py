"""Leaks against a comparison of all with all, by hand, and on many rows."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from crestline.data.leakage import find_leaks, most_similar, words
from crestline.types import PromptText, Ranking


def ranking(prompt: PromptText, *completions: str, where: str = "") -> Ranking:
    texts = completions or (f"{where} yes", f"{where} no")
    return Ranking(prompt=prompt, completions=texts, ranks=tuple(range(len(texts))), where=where)


LONG = "an answer of more than five words that many share"
TRAIN = [
    ranking("What do owls eat at night?", "mice", LONG, where="train.jsonl:1"),
    ranking([{"role": "user", "content": "Tell me of pelicans."}], where="train.jsonl:2"),
    ranking("Explain in plain words how a bill becomes a law in this land", where="train.jsonl:3"),
]


def test_each_kind_by_hand() -> None:
    test = [
        ranking("What do owls eat at night?", where="test.jsonl:1"),
        ranking("Something else", LONG, "other", where="test.jsonl:2"),
        ranking(
            "explain, in plain words, how a bill BECOMES law in this land!", where="test.jsonl:3"
        ),
        ranking("Short answers", "mice", "rats", where="test.jsonl:4"),
        ranking("Tell me of pelicans.", where="test.jsonl:5"),
        ranking([{"role": "user", "content": "Tell me of pelicans."}], where="test.jsonl:6"),
        ranking("Unlike all", where="test.jsonl:7"),
    ]
    found = find_leaks(TRAIN, test, threshold=0.6)
    told = [(leak.kind, leak.test_where, leak.train_where) for leak in found.leaks]
    assert told == [
        ("same prompt", "test.jsonl:1", "train.jsonl:1"),
        ("same completion", "test.jsonl:2", "train.jsonl:1"),
        ("similar prompt", "test.jsonl:3", "train.jsonl:3"),
        ("similar prompt", "test.jsonl:5", "train.jsonl:2"),  # plain text and chat: not the same
        ("same prompt", "test.jsonl:6", "train.jsonl:2"),
    ]
    assert found.leaking == (True, True, True, False, True, True, False)
    assert (found.num_same_prompt, found.num_same_completion, found.num_similar) == (2, 1, 2)
    assert (found.num_leaking, found.num_short_completions) == (5, 1)
    assert (found.num_train, found.num_test) == (3, 7)
    # 12 pairs and 11 pairs, of which 10 are shared
    assert found.leaks[2].similarity == pytest.approx(10 / (12 + 11 - 10))


def test_without_prompts_the_completions_are_compared() -> None:
    a = "Why did the chicken cross the road? To get to the other side."
    train = [ranking("", a, "A second joke that is long enough", where="a:1")]
    test = [
        ranking(
            "", "why did the chicken cross the road?? to get to the other side", "x", where="b:1"
        ),
        ranking("", "Nothing in common with any of the others here", "y", where="b:2"),
    ]
    found = find_leaks(train, test)
    assert [(leak.kind, leak.similarity) for leak in found.leaks] == [("similar completion", 1.0)]
    assert found.num_same_prompt == 0 and found.leaking == (True, False)


def test_nothing_leaks_from_nothing() -> None:
    found = find_leaks([], [ranking("p", where="b:1")])
    assert found.num_leaking == 0 and found.leaking == (False,)
    assert find_leaks(TRAIN, []).leaking == ()
    assert most_similar(["", "!!!"], ["", "???"], 0.5) == []  # no words: like nothing
    with pytest.raises(ValueError, match="threshold"):
        find_leaks(TRAIN, TRAIN, threshold=0.0)


def test_words() -> None:
    assert words("Ｆｕｌｌ  width, ONCE!") == ["full", "width", "once"]
    assert words("日本語 text") == ["日", "本", "語", "text"]
    assert words("…") == []


def jaccard(a: str, b: str) -> float:
    left, right = (set(itertools.pairwise(w)) for w in (words(a), words(b)))
    return len(left & right) / len(left | right)


def mutated(text: str, rng: np.random.Generator) -> str:
    found = text.split()
    for _ in range(int(rng.integers(0, 6))):
        found[int(rng.integers(len(found)))] = f"new{rng.integers(99)}"
    return " ".join(found)


def test_matches_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    old = [" ".join(f"w{n}" for n in rng.integers(60, size=30)) for _ in range(200)]
    new = [mutated(old[int(rng.integers(200))], rng) for _ in range(200)]
    best = [max(jaccard(a, b) for b in old) for a in new]
    expected = {i for i, value in enumerate(best) if value >= 0.7}
    found = most_similar(old, new, 0.7)
    assert {i for i, _, _ in found} <= expected
    assert len(found) >= 0.95 * len(expected) and 50 < len(expected) < 190
    for i, j, similarity in found:
        assert similarity == pytest.approx(best[i]) == pytest.approx(jaccard(new[i], old[j]))


def test_a_shared_template_among_many_rows_is_fast_and_finds_what_it_should() -> None:
    names = [f"name{n}" for n in range(150)]
    old = [f"Write me a short joke about a {a} and a {b} please" for a in names for b in names]
    new = [
        f"Write me a short joke about a {a} and a {b}, please!"
        for a, b in itertools.pairwise(names)
    ]
    began = time.process_time()
    found = most_similar(old, [*new, "Write me a short joke about a thing and a wasp please"], 0.8)
    assert time.process_time() - began < 10
    assert [(i, similarity) for i, _, similarity in found] == [(n, 1.0) for n in range(len(new))]


def test_a_system_message_that_all_share_is_no_leak() -> None:
    system = {"role": "system", "content": " ".join(f"rule{n}" for n in range(150))}

    def asked(words: str) -> Ranking:
        return ranking([system, {"role": "user", "content": words}])

    train = [asked(f"one{n} two{n} three{n} four{n} five{n}") for n in range(20)]
    test = [asked(f"six{n} seven{n} eight{n} nine{n} ten{n}") for n in range(20)]
    assert not any(find_leaks(train, test, threshold=0.8).leaking)
    assert find_leaks(train, [asked("one3, two3 three3 FOUR3 five3!")], threshold=0.8).leaking == (
        True,
    )
    alone = [ranking([system]), ranking([{**system, "content": "quite another rule"}])]
    assert find_leaks(alone[:1], alone, threshold=0.8).leaking == (True, False)
