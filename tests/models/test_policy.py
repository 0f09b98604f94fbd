"""Logits at chosen places against the whole forward pass of several families."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crestline.models.policy import chosen_logprobs, logits_before

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.15,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
}


@pytest.fixture(params=FAMILIES, ids=str)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **(SIZES | FAMILIES[request.param]))
    built = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return built.eval()


@torch.no_grad()
def test_equals_the_whole_forward_pass(model) -> None:
    lengths = [3, 7, 5]
    tokens = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    attention = torch.tensor([[1] * length + [0] * (7 - length) for length in lengths])
    chosen = torch.tensor(
        [[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool
    )
    found = logits_before(model, tokens, attention, chosen)
    expected = [
        model(tokens[row : row + 1, : lengths[row]]).logits[0, place - 1]
        for row, place in chosen.nonzero().tolist()
    ]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_the_first_token_cannot_be_asked_about(llama) -> None:
    tokens = torch.ones(2, 3, dtype=torch.long)
    chosen = torch.tensor([[False, True, True], [True, False, False]])
    with pytest.raises(ValueError, match="first token of a row"):
        logits_before(llama, tokens, torch.ones_like(tokens), chosen)


def test_chosen_logprobs_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log() + 7
    found = chosen_logprobs(logits, torch.tensor([1, 2]))
    assert found.exp().tolist() == pytest.approx([0.3, 0.8])
