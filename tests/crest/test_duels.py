"""The schedule's parts against counts by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from crestline.crest.duels import DuelBook, first_pass, focused, with_prompts
from crestline.formulas.curves import fit_stacked


def test_first_pass_is_even() -> None:
    counts = Counter(first_pass(list(range(1, 8)), 24))
    assert sum(counts.values()) == 24
    assert counts == {1: 3, 2: 3, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4}
    assert first_pass([10], 0) == []


def test_focus_follows_the_evidence() -> None:
    fit = fit_stacked(np.arange(1.0, 6.0), [200, 300, 350, 100, 50], [400] * 5)
    places = focused(fit, 200, np.random.default_rng(0))
    assert len(places) == 200
    assert Counter(places)[2] > 190


def questions(book: DuelBook, wanted: list[int], *, may_pass: bool, kept: int = 0) -> list[int]:
    """Who is asked about, of three checkpoints that answered three prompts each."""
    found = with_prompts(book, wanted, [10, 20, 30], 3, 0, may_pass=may_pass, num_kept=kept)
    assert not {*found} & book.asked.keys() and len({*found}) == len(found)
    return [update for update, _ in found]


def test_prompts_are_fresh_and_pass_to_the_nearest_checkpoint() -> None:
    book = DuelBook()
    first = with_prompts(book, [10] * 3 + [30], [10, 20, 30], 3, seed=0, may_pass=True)
    assert sorted(first) == [(10, 0), (10, 1), (10, 2), (30, first[-1][1])]
    book.ask(first, "first")
    assert questions(book, [10, 10], may_pass=True) == [20, 20]
    assert len(questions(book, [10] * 99, may_pass=True)) == 5


def test_each_checkpoint_has_its_own_order_of_prompts() -> None:
    found = with_prompts(DuelBook(), [10] * 9 + [20] * 9, [10, 20], 9, 0, may_pass=False)
    first, second = [i for _, i in found[:9]], [i for _, i in found[9:]]
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_duels_of_one_checkpoint_are_not_passed_on() -> None:
    book = DuelBook()
    book.ask([(10, 0), (10, 1), (10, 2)], "first")
    assert questions(book, [10, 20, 10, 20], may_pass=False) == [20, 20]
    assert questions(book, [10], may_pass=False) == []


def test_prompts_that_are_kept_are_not_used() -> None:
    assert questions(DuelBook(), [10] * 5, may_pass=False, kept=1) == [10, 10]
    assert questions(DuelBook(), [10] * 3, may_pass=True, kept=1) == [10, 10, 20]


def test_tally_by_hand() -> None:
    book = DuelBook()
    book.ask([(10, 0), (10, 1), (20, 0)], "first")
    book.ask([(20, 1), (20, 2)], "focus")
    book.ask([(20, 3)], "last")
    book.ask([(20, 4)], "confirm")
    book.ask([(10, 2), (10, 3)], "explore")
    outcomes: list[float | None] = [1.0, None, 0.5, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    for question, outcome in zip(list(book.asked), outcomes, strict=True):
        book.answers[question] = outcome
    tally = book.tally({20: 1.5, 10: 0.7})
    assert tally.updates_S == (10, 20)
    assert tally.distances_S.tolist() == [0.7, 1.5]
    assert tally.wins_S.tolist() == [3.0, 2.5]
    assert tally.counts_S.tolist() == [3.0, 5.0]
    assert (tally.chosen_wins, tally.chosen_count) == (2.0, 3)
    assert (tally.confirm_update, tally.confirm_wins, tally.confirm_count) == (20, 1.0, 1)
    assert tally.num_labels == 9
    with pytest.raises(ValueError, match="asked before"):
        book.ask([(10, 0)], "focus")
