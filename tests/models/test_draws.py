"""Random streams and the tokens that they pick."""

import numpy as np
import pytest
import torch
from scipy import stats

from crestline.models.draws import draw, uniforms


def test_uniforms_are_a_function_of_each_rows_seed() -> None:
    alone = np.concatenate([uniforms([seed], 20) for seed in (3, 2**63, 17)])
    assert (uniforms([3, 2**63, 17], 20) == alone).all()
    assert (uniforms([3], 7)[0] == alone[0, :7]).all()
    assert len(np.unique(uniforms(range(1000), 50))) == 50_000


@pytest.mark.parametrize(
    "seeds", [range(2000), range(0, 2000 << 40, 1 << 40)], ids=["small", "far"]
)
def test_uniforms_are_uniform_and_unrelated(seeds) -> None:
    numbers = uniforms(seeds, 50)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert min(stats.kstest(column, "uniform").pvalue for column in numbers.T[:10]) > 1e-4
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.015


@pytest.mark.parametrize("vocabulary", [1, 5, 64, 65, 290, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_draw_inverts_the_summed_probabilities(vocabulary, temperature) -> None:
    torch.manual_seed(vocabulary)
    logits = 3 * torch.randn(200, vocabulary)
    random = torch.from_numpy(uniforms([5], 200)[0])
    logprobs = (logits.double() / temperature).log_softmax(1)
    summed = logprobs.exp().cumsum(1)
    tokens, found = draw(logits, random, temperature)
    rows = torch.arange(200)
    before = torch.cat([torch.zeros(200, 1).double(), summed], 1)[rows, tokens]
    assert (before - 1e-6 <= random).all() and (random < summed[rows, tokens] + 1e-6).all()
    torch.testing.assert_close(found.double(), logprobs[rows, tokens], atol=2e-6, rtol=2e-6)


def test_tokens_without_weight_are_never_drawn() -> None:
    logits = torch.full((3000, 200), float("-inf"))
    allowed = torch.tensor([3, 64, 130])
    logits[:, allowed] = torch.tensor([0.0, -60.0, 0.5])
    edges = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64).repeat(1000)
    tokens, logprobs = draw(logits, edges, 1.0)
    assert set(tokens.tolist()) == {3, 130} and logprobs.isfinite().all()
    assert set(draw(logits[:, :100], edges, 1.0)[0].tolist()) == {3}


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(50, 4096).bfloat16()
    random = torch.rand(50).double()
    for one, other in zip(
        draw(logits, random, 1.0), draw(logits.float(), random, 1.0), strict=True
    ):
        assert torch.equal(one, other)


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    logits, random = torch.randn(300, 1000), torch.rand(300).double()
    tokens, logprobs = draw(logits, random, 0.7)
    for rows in (slice(0, 1), slice(7, 12), slice(3, 100)):
        found = draw(logits[rows], random[rows], 0.7)
        assert torch.equal(found[0], tokens[rows]) and torch.equal(found[1], logprobs[rows])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_show_in_the_logprob(wrong: float) -> None:
    logits = torch.randn(4, 100)
    logits[1, 7] = wrong
    logits[3] = float("-inf")
    tokens, logprobs = draw(logits, torch.full((4,), 0.5).double(), 1.0)
    assert logprobs.isfinite().tolist() == [True, False, True, False]
    assert int(tokens.max()) < 100
