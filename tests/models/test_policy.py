"""Logits and log-probabilities at chosen places against the whole forward pass of several families."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crestline.models.policy import (
    logits_before,
    logits_in_parts,
    token_logprobs,
    token_logprobs_and_best,
)
from crestline.models.tree import shared_beginning

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
    "modernbert-decoder": {"cls_token_id": 1, "sep_token_id": 2},
    "llama4_text": {"intermediate_size_mlp": 48, "num_local_experts": 2},
    "gemma3": {},
}


@pytest.fixture(params=FAMILIES, ids=str)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "gemma3":  # settings of the text stand one level deeper
        parts = {
            "text_config": SIZES | {"model_type": "gemma3_text", "final_logit_softcapping": 0.5},
            "vision_config": SIZES | {"image_size": 28, "patch_size": 14},
        }
        config = AutoConfig.for_model("gemma3", mm_tokens_per_image=4, **parts)
    else:
        config = AutoConfig.for_model(request.param, **(SIZES | FAMILIES[request.param]))
    built = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return built.eval()


@torch.no_grad()
def test_equals_the_whole_forward_pass(model) -> None:
    lengths = [3, 7, 5]
    tokens = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor(
        [[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool
    )
    found = logits_before(model, tokens, torch.tensor(lengths), chosen)
    expected = [
        model(tokens[row : row + 1, : lengths[row]]).logits[0, place - 1]
        for row, place in chosen.nonzero().tolist()
    ]
    expected = torch.stack(expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    parts = list(logits_in_parts(model, tokens, torch.tensor(lengths), chosen))
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-4)
    logprobs = (expected / 0.7).log_softmax(-1).gather(1, tokens[chosen][:, None])[:, 0]
    asked = (model, tokens, torch.tensor(lengths), chosen)
    torch.testing.assert_close(
        token_logprobs(*asked, temperature=0.7), logprobs, atol=1e-5, rtol=1e-4
    )
    at_one, best = token_logprobs_and_best(*asked)
    assert best.tolist() == (expected.argmax(1) == tokens[chosen]).tolist()
    assert at_one.tolist() == pytest.approx(token_logprobs(*asked).tolist(), abs=1e-5)


def test_reading_shared_prompts_once_changes_nothing(model) -> None:
    """Values and gradients, with prompts of two lengths and completions of four."""
    rows = [[3, 4, 5, 6, 7], [3, 4, 5, 9], [8, 9, 1, 2, 3, 4], [8, 9, 5]]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    for row, first in enumerate((3, 3, 2, 2)):
        chosen[row, first : lengths[row]] = True
    assert [shared_beginning([np.array(r) for r in rows[n : n + 2]]) for n in (0, 2)] == [3, 2]
    found, gradients = [], []
    for group_size in (1, 2):
        model.zero_grad()
        values = token_logprobs(model, tokens, lengths, chosen, group_size=group_size)
        (values * torch.arange(1, 9)).sum().backward()
        found.append(values.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-4, rtol=1e-3)


def test_the_first_token_cannot_be_asked_about(llama) -> None:
    tokens = torch.ones(2, 3, dtype=torch.long)
    chosen = torch.tensor([[False, True, True], [True, False, False]])
    with pytest.raises(ValueError, match="first token of a row"):
        token_logprobs(llama, tokens, torch.tensor([3, 3]), chosen)


def test_the_probe_leaves_every_module_in_its_mode(model) -> None:
    model.train()
    model.get_output_embeddings().eval()
    before = [module.training for module in model.modules()]
    tokens = torch.tensor([[3, 4, 5]])
    token_logprobs(model, tokens, torch.tensor([3]), torch.tensor([[False, True, True]]))
    assert [module.training for module in model.modules()] == before
