import doctest
import math

import numpy as np
import pytest
import torch

from crestline.formulas import shaping
from crestline.formulas.shaping import Running, above_reference, preference_as_reward

SCORES = torch.tensor([1.0, -2.0])
REFERENCE = torch.tensor([[0.0, 2.0, 4.0], [-2.0, -2.0, -2.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_above_reference_by_hand() -> None:
    assert above_reference(SCORES, REFERENCE).tolist() == [-1.0, 0.0]


def test_preference_by_hand() -> None:
    found = preference_as_reward(SCORES, REFERENCE, 2.0)
    expected = (sigmoid(0.5) + sigmoid(-0.5) + sigmoid(-1.5)) / 3
    assert found.tolist() == pytest.approx([expected, 0.5], abs=1e-6)


def test_preference_is_bounded_rises_and_saturates() -> None:
    scores = torch.linspace(-50, 50, 101)
    found = preference_as_reward(scores, torch.zeros(101, 1), 1.0)
    steps = found.diff()
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert bool((steps >= 0).all())
    assert int(steps.argmax()) in (49, 50)  # steepest where it is as good as the reference


@pytest.mark.parametrize("sizes", [[7], [1, 6], [3, 1, 3], [1] * 7])
def test_running_is_the_mean_and_deviation_of_everything(sizes: list[int]) -> None:
    values = np.array([1e6 + x for x in (3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0)])
    running, start = Running(), 0
    for size in sizes:
        running = running.joined(torch.from_numpy(values[start : start + size]))
        start += size
    assert running.count == 7
    assert running.mean == pytest.approx(values.mean(), rel=1e-12)
    assert running.squares == pytest.approx(values.var() * 7, rel=1e-6)
    found = running.standardised(torch.from_numpy(values), epsilon=0.0)
    expected = (values - values.mean()) / values.std(ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_running_of_one_value_divides_by_no_zero() -> None:
    found = Running().joined(torch.tensor([2.0])).standardised(torch.tensor([2.0, 3.0]))
    assert found.tolist() == [0.0, pytest.approx(1e4)]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(shaping).failed == 0
