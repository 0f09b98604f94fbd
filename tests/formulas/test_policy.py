import math

import pytest
import torch

from crestline.formulas.policy import clipped_ratio_loss


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
