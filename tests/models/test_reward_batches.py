"""Every row once, within the budget, and what rows to one prompt share once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.models.encoding import Row
from crestline.models.reward_batches import packed_batches, padded_batches


def test_padded_batches_hold_every_row_once_and_keep_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    found = list(padded_batches(lengths, 128))
    assert sorted(n for places in found for n in places) == list(range(200))
    for places in found:
        widths = [lengths[n] for n in places]
        assert widths[0] == max(widths)
        assert len(places) * widths[0] <= 128 or len(places) == 1
    assert list(padded_batches([500, 3], 128)) == [[0], [1]]
    assert list(padded_batches([], 128)) == []


ROWS = st.lists(
    st.builds(
        lambda prompt, own: Row([100 + prompt] * prompt + own, False, prompt),
        st.integers(0, 9),
        st.lists(st.integers(0, 3), min_size=1, max_size=12),
    ),
    max_size=30,
)


@pytest.mark.parametrize("shares", [True, False])
@given(rows=ROWS, budget=st.integers(1, 60))
def test_packed_batches_hold_every_row_once_and_keep_the_budget(shares, rows, budget) -> None:
    found = list(packed_batches(rows, budget, shares=shares))
    assert sorted(n for places, _ in found for n in places) == list(range(len(rows)))
    for places, texts in found:
        assert [ids.tolist() for ids in texts.ids] == [rows[n].ids for n in places]
        tokens = texts.num_different_tokens if shares else texts.num_tokens
        assert tokens <= budget or len(places) == 1
        assert shares or set(texts.counts) == {1}


def test_rows_to_one_prompt_stand_together_wherever_they_come_from() -> None:
    prompts, own = [[7, 8, 9], [5, 6, 4]], [[1], [2], [3, 3]]
    rows = [Row(prompt + text, False, n) for text in own for n, prompt in enumerate(prompts)]
    ((places, texts),) = packed_batches(rows, 100, shares=True)
    assert places == [4, 0, 2, 5, 1, 3] and texts.shared == (3, 3)
    assert texts.num_different_tokens == 2 * (3 + 4)


def test_a_number_that_two_prompts_have_by_chance_does_no_harm() -> None:
    rows = [Row([1, 2, 3], False, 0), Row([4, 2], False, 0)]
    ((places, texts),) = packed_batches(rows, 100, shares=True)
    assert places == [0, 1] and texts.shared == (0,)


def test_a_row_that_lost_its_front_does_not_end_what_others_share() -> None:
    rows = [Row([5, 6, 7, n], False, 0) for n in range(3)] + [Row([5, 7, 9, 9], True, 0)]
    ((_, texts),) = packed_batches(rows, 100, shares=True)
    assert sorted(zip(texts.counts, texts.shared, strict=True)) == [(1, 0), (3, 3)]
