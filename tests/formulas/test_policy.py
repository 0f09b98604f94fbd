import doctest
import math

import pytest
import torch

from crestline.formulas import policy
from crestline.formulas.policy import clipped_ratio_loss, clipped_value_loss


def loss(ratio: float, advantage: float, low: float = 0.2, high: float = 0.28) -> float:
    found = clipped_ratio_loss(
        torch.tensor([math.log(ratio) - 1.0]),
        torch.tensor([-1.0]),
        torch.tensor([advantage]),
        clip_low=low,
        clip_high=high,
    )
    return float(found)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),  # inside
        (1.5, 2.0, -2.56),  # good and already likelier: clipped at 1.28
        (0.5, 2.0, -1.0),  # good and less likely: not clipped
        (0.5, -2.0, 1.6),  # bad and already less likely: clipped at 0.8
        (1.5, -2.0, 3.0),  # bad and likelier: not clipped
        (3.0, 0.0, 0.0),
    ],
)
def test_hand_numbers_on_both_sides(ratio, advantage, expected) -> None:
    assert loss(ratio, advantage) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (0.5, 1.0, True), (0.5, -1.0, False), (1.5, -1.0, True)],
)
def test_gradient_stops_only_where_the_clip_holds(ratio, advantage, moves) -> None:
    logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
    found = clipped_ratio_loss(
        logprobs, torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.2
    )
    found.sum().backward()
    expected = -advantage * ratio if moves else 0.0
    assert float(logprobs.grad) == pytest.approx(expected, abs=1e-6)


def test_gradient_at_ratio_one_is_reinforce() -> None:
    advantages = torch.tensor([1.5, -0.5, 0.0])
    logprobs = torch.tensor([-0.3, -2.0, -1.0], requires_grad=True)
    found = clipped_ratio_loss(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2)
    assert found.tolist() == pytest.approx((-advantages).tolist())
    found.sum().backward()
    # REINFORCE: the gradient of -A log p with respect to log p
    assert logprobs.grad.tolist() == pytest.approx((-advantages).tolist())


def test_a_wide_clip_never_holds() -> None:
    assert loss(5.0, 1.0, high=10.0) == pytest.approx(-5.0, abs=1e-5)
    assert loss(0.01, -1.0, low=1.0) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "old", "returned", "clip", "expected"),
    [
        (1.0, 1.0, 3.0, 0.5, 2.0),  # not moved: (1 - 3)²/2
        (1.4, 1.0, 3.0, 0.5, 1.28),  # inside the clip
        (2.5, 1.0, 3.0, 0.5, 1.125),  # moved too far towards what came: as if at 1.5
        (-1.0, 1.0, 3.0, 0.5, 8.0),  # away from it: the plain error is the larger
        (2.5, 1.0, 3.0, math.inf, 0.125),  # never clips
    ],
)
def test_value_loss_by_hand(value, old, returned, clip, expected) -> None:
    found = clipped_value_loss(*(torch.tensor([x]) for x in (value, old, returned)), clip=clip)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_a_clipped_value_does_not_move() -> None:
    values = torch.tensor([2.5, 1.4, -1.0], requires_grad=True)
    old, returned = torch.ones(3), torch.full((3,), 3.0)
    clipped_value_loss(values, old, returned, clip=0.5).sum().backward()
    assert values.grad.tolist() == pytest.approx([0.0, -1.6, -4.0], abs=1e-6)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(policy).failed == 0
