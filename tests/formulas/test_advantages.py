import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crestline.formulas.advantages import group_standardised, leave_one_out

rewards = st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12)


def test_leave_one_out_by_hand_in_two_groups() -> None:
    found = leave_one_out(torch.tensor([3.0, 0.0, 0.0, 1.0, 2.0, 6.0]), 3)
    # minus the mean of the other two of the group
    assert found.tolist() == pytest.approx([3.0, -1.5, -1.5, -3.0, -1.5, 4.5], abs=1e-6)


def test_standardised_by_hand_uses_n_minus_1() -> None:
    found = group_standardised(torch.tensor([0.0, 2.0, 5.0, 5.0]), 2)
    root = 2**0.5
    assert found.tolist() == pytest.approx([-1 / (root + 1e-4), 1 / (root + 1e-4), 0, 0], abs=1e-6)
    plain = group_standardised(torch.tensor([0.0, 2.0, 5.0, 9.0]), 2, scale=False)
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
