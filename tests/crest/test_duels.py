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


def test_prompts_are_fresh_and_pass_to_the_nearest_checkpoint() -> None:
    book = DuelBook()
    first = with_prompts(book, [10] * 3 + [30], [10, 20, 30], 3, seed=0)
    assert sorted(first) == [(10, 0), (10, 1), (10, 2), (30, first[-1][1])]
    book.ask(first, "first")
    assert [u for u, _ in with_prompts(book, [10, 10], [10, 20, 30], 3, seed=0)] == [20, 20]
    everything = with_prompts(book, [10] * 99, [10, 20, 30], 3, seed=0)
    assert len(everything) == 5
    assert len({*everything, *first}) == 9


def test_tally_by_hand() -> None:
    book = DuelBook()
    book.ask([(10, 0), (10, 1), (20, 0)], "first")
    book.ask([(20, 1), (20, 2)], "focus")
    book.ask([(20, 3)], "last")
    book.ask([(20, 4)], "confirm")
    outcomes: list[float | None] = [1.0, None, 0.5, 1.0, 0.0, 0.0, 1.0]
    for question, outcome in zip(list(book.asked), outcomes, strict=True):
        book.answers[question] = outcome
    tally = book.tally({20: 1.5, 10: 0.7})
    assert tally.updates_S == (10, 20)
    assert tally.distances_S.tolist() == [0.7, 1.5]
    assert tally.wins_S.tolist() == [1.0, 2.5]
    assert tally.counts_S.tolist() == [1.0, 5.0]
    assert (tally.chosen_wins, tally.chosen_count) == (2.0, 3)
    assert (tally.confirm_update, tally.confirm_wins, tally.confirm_count) == (20, 1.0, 1)
    assert tally.num_labels == 7
    with pytest.raises(ValueError, match="asked before"):
        book.ask([(10, 0)], "focus")
