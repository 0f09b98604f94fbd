"""The fast decoder against transformers' own forward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from crestline.models.llama import LlamaDecoder, is_supported
from crestline.models.load import load_policy


def decoded(model: Any, rows: list[list[int]], prompt_length: int) -> Tensor:
    """Logits after the prompt and after every later token, [N, steps, V]; rows are padded on the left."""
    longest = max(map(len, rows))
    pads = torch.tensor([longest - len(row) for row in rows])
    tokens = torch.stack(
        [torch.tensor([0] * int(pad) + row) for pad, row in zip(pads, rows, strict=True)]
    )
    place = torch.arange(longest)
    real = place[None] >= pads[:, None]
    seen = (real[:, None, :] & (place[None, :] <= place[:, None])) | torch.eye(longest).bool()
    bias = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    positions = (place[None] - pads[:, None]).clamp_min(0)
    decoder = LlamaDecoder(model)
    cache = decoder.new_cache(len(rows), longest)
    found, start = [], 0
    for stop in range(prompt_length, longest + 1):
        new = slice(start, stop)
        logits = decoder(tokens[:, new], positions[:, new], cache, start, bias[:, new, :stop])
        found.append(logits)
        start = stop
    return torch.stack(found, 1)


@torch.no_grad()
def check_against_transformers(model: Any, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(1)
    steps = 6
    rows = [
        torch.randint(5, vocabulary, (length + steps,), generator=generator).tolist()
        for length in (1, 9, 4, 9)
    ]
    found = decoded(model, rows, 9)
    for row, logits in zip(rows, found, strict=True):
        expected = model(torch.tensor([row])).logits[0, -steps - 1 :]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 16},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rms_norm_eps": 0.1},
    ],
    ids=str,
)
def test_equals_transformers_with_ragged_prompts(tiny_llama, changes) -> None:
    model = tiny_llama(**changes)
    assert is_supported(model)
    check_against_transformers(model, model.config.vocab_size)


@pytest.mark.parametrize("name", ["stories260K", "tinystories-656k"])
def test_equals_transformers_on_a_trained_model(real_model, name) -> None:
    model = load_policy(real_model(name)).eval()
    assert is_supported(model)
    check_against_transformers(model, model.config.vocab_size)


def test_refresh_takes_the_new_weights(tiny_llama) -> None:
    model = tiny_llama()
    decoder = LlamaDecoder(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
    decoder.refresh(model)
    fresh = LlamaDecoder(model)
    for old, new in zip(decoder.layers, fresh.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert torch.equal(decoder.final_norm, model.model.norm.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=str,
)
def test_what_it_does_not_compute_is_left_to_transformers(tiny_llama, changes) -> None:
    assert not is_supported(tiny_llama(**changes))


def test_other_families_are_left_to_transformers(gpt2) -> None:
    assert not is_supported(gpt2)
