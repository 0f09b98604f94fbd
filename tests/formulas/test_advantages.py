import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crestline.formulas import advantages as formulas
from crestline.formulas.advantages import (
    gae,
    group_standardised,
    leave_one_out,
    rewards_to_go,
    standardised,
)

rewards = st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12)


def test_leave_one_out_by_hand_in_two_groups() -> None:
    found = leave_one_out(torch.tensor([3.0, 0.0, 0.0, 1.0, 2.0, 6.0]), 3)
    # minus the mean of the other two of the group
    assert found.tolist() == pytest.approx([3.0, -1.5, -1.5, -3.0, -1.5, 4.5], abs=1e-6)


def test_standardised_by_hand_uses_n_minus_1() -> None:
    found = group_standardised(torch.tensor([0.0, 2.0, 5.0, 5.0]), 2)
    root = 2**0.5
    assert found.tolist() == pytest.approx([-1 / (root + 1e-4), 1 / (root + 1e-4), 0, 0], abs=1e-6)
    plain = group_standardised(torch.tensor([0.0, 2.0, 5.0, 9.0]), 2, scale="none")
    assert plain.tolist() == [-1.0, 1.0, -2.0, 2.0]


def test_equal_rewards_give_no_advantage() -> None:
    same = torch.full((6,), 0.3)
    assert leave_one_out(same, 3).abs().max() < 1e-6
    assert group_standardised(same, 3).abs().max() < 1e-2


@pytest.mark.parametrize("advantages", [leave_one_out, group_standardised])
@pytest.mark.parametrize("group_size", [2, 3, 4, 6, 12])
@settings(max_examples=20, deadline=None)
@given(values=rewards)
def test_each_group_sums_to_zero(advantages, group_size, values) -> None:
    found = advantages(torch.tensor(values, dtype=torch.float64), group_size)
    assert found.view(-1, group_size).sum(1).abs().max() < 1e-7


@pytest.mark.parametrize("advantages", [leave_one_out, group_standardised])
@settings(max_examples=20, deadline=None)
@given(values=rewards, shifts=st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_shifting_a_group_changes_nothing(advantages, values, shifts) -> None:
    before = torch.tensor(values, dtype=torch.float64)
    after = before + torch.tensor(shifts, dtype=torch.float64).repeat_interleave(4)
    torch.testing.assert_close(advantages(before, 4), advantages(after, 4), atol=1e-6, rtol=1e-6)


def test_leave_one_out_is_the_formula_with_a_loop() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [
        values[n] - sum(values[m] for m in range(n - n % 5, n - n % 5 + 5) if m != n) / 4
        for n in range(20)
    ]
    assert leave_one_out(torch.tensor(values), 5).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("advantages", [leave_one_out, group_standardised])
@pytest.mark.parametrize(
    ("values", "group_size", "message"),
    [
        (torch.zeros(4), 1, "group_size must be at least 2, got 1"),
        (torch.zeros(5), 2, "whole groups of 2"),
        (torch.zeros(2, 2), 2, r"got shape \(2, 2\)"),
    ],
)
def test_wrong_groups_are_refused(advantages, values, group_size, message) -> None:
    with pytest.raises(ValueError, match=message):
        advantages(values, group_size)


def test_scaling_by_the_batch_by_hand() -> None:
    rewards = [0.0, 2.0, 5.0, 9.0]
    deviation = np.std(rewards, ddof=1)
    found = group_standardised(torch.tensor(rewards), 2, scale="batch", epsilon=0.0)
    assert found.tolist() == pytest.approx([x / deviation for x in (-1, 1, -2, 2)], abs=1e-6)


# Three tokens after a prompt of one, then padding; rewards 1, 0, 2 and values 0.5, 1, 3.
MASK = torch.tensor([[False, True, True, True, False]])
REWARDS = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0]])
VALUES = torch.tensor([[7.0, 0.5, 1.0, 3.0, 9.0]])


def test_gae_by_hand() -> None:
    # surprises: 1 + 0.9·1 - 0.5 = 1.4, 0 + 0.9·3 - 1 = 1.7, 2 - 3 = -1
    found = gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.5)
    last, middle = -1.0, 1.7 + 0.45 * -1.0
    assert found.tolist()[0] == pytest.approx([0, 1.4 + 0.45 * middle, middle, last, 0], abs=1e-6)


def test_gae_limits() -> None:
    long = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    assert long.tolist()[0] == pytest.approx([0, 3 - 0.5, 2 - 1, 2 - 3, 0])
    torch.testing.assert_close(long, rewards_to_go(REWARDS, MASK) - VALUES * MASK)
    short = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.0)
    assert short.tolist()[0] == pytest.approx([0, 1 + 1 - 0.5, 3 - 1, 2 - 3, 0])
    greedy = gae(REWARDS, VALUES, MASK, gamma=0.0, lam=0.7)
    assert greedy.tolist()[0] == pytest.approx([0, 0.5, -1, -1, 0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_is_the_sum_of_the_definition(seed, gamma, lam) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(4, 6, generator=generator).double() for _ in range(2))
    lengths = torch.randint(1, 6, (4,), generator=generator)
    mask = torch.arange(6)[None].expand(4, 6) < lengths[:, None]
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for n, length in enumerate(lengths.tolist()):
        after = [*values[n, 1:length].tolist(), 0.0]
        surprises = [
            float(rewards[n, t]) + gamma * after[t] - float(values[n, t]) for t in range(length)
        ]
        for t in range(length):
            expected = sum((gamma * lam) ** (u - t) * surprises[u] for u in range(t, length))
            assert float(found[n, t]) == pytest.approx(expected, abs=1e-9)
        assert float(found[n, length:].abs().sum()) == 0


def test_standardised_over_the_tokens_of_the_mask() -> None:
    found = standardised(
        torch.tensor([[1.0, 2.0, 50.0], [6.0, 70.0, 80.0]]),
        MASK[:, 1:4].repeat(2, 1) & torch.tensor([[True, True, False], [True, False, False]]),
    )
    expected = [x / np.std([1, 2, 6], ddof=1) for x in (-2, -1, 3)]
    assert found.tolist()[0] == pytest.approx([expected[0], expected[1], 0], abs=1e-4)
    assert found.tolist()[1] == pytest.approx([expected[2], 0, 0], abs=1e-4)
    assert standardised(torch.ones(1, 2), torch.tensor([[True, False]])).tolist() == [[0, 0]]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(formulas).failed == 0
