"""Log-probabilities from hidden states against log_softmax, values and gradients, kept or computed again."""

import pytest
import torch

from crestline.models import logprobs
from crestline.models.logprobs import logprobs_and_best_of, logprobs_of

PLACES, WIDTH, VOCABULARY = 7, 5, 11


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(PLACES, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCABULARY, (PLACES,), generator=generator)


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("together", [3, 512])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equals_log_softmax(monkeypatch, kept: int, together: int, temperature: float) -> None:
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(logprobs, "ROWS_TOGETHER", together)
    hidden, weight, chosen = inputs()
    pull = torch.linspace(-1, 2, PLACES)
    logits = hidden @ weight.t() / temperature
    expected = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    wanted = torch.autograd.grad((expected * pull).sum(), (hidden, weight))
    found = logprobs_of(hidden, weight, chosen, temperature=temperature)
    torch.testing.assert_close(found, expected)
    given = torch.autograd.grad((found * pull).sum(), (hidden, weight))
    for gradient, expected_gradient in zip(given, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, chosen = inputs()
    logprobs_of(hidden, weight.detach(), chosen).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_best_is_the_most_likely() -> None:
    hidden, weight, _ = inputs()
    best = (hidden @ weight.t()).argmax(1)
    other = (best + 1) % VOCABULARY
    assert logprobs_and_best_of(hidden, weight, best)[1].all()
    assert not logprobs_and_best_of(hidden, weight, other)[1].any()


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    unlikely = logprobs_of(hidden, weight, torch.tensor([1]))
    assert unlikely.tolist() == [-2e4]
    unlikely.sum().backward()
    assert hidden.grad.tolist() == [[-2.0]]


def test_low_precision_is_near_and_keeps_its_rows() -> None:
    hidden, weight, chosen = inputs()
    pull = torch.linspace(-1, 2, PLACES)
    exact = logprobs_of(hidden, weight, chosen)
    wanted = torch.autograd.grad((exact * pull).sum(), (hidden, weight))
    low = hidden.detach().bfloat16().requires_grad_()
    found = logprobs_of(low, weight, chosen)
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0.02)
    given = torch.autograd.grad((found * pull).sum(), (low, weight))
    for gradient, expected in zip(given, wanted, strict=True):
        assert gradient.shape == expected.shape
        torch.testing.assert_close(gradient.float(), expected, atol=0.05, rtol=0.05)
