"""The training forward pass over a tree against transformers, row by row: values and every gradient."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crestline.models.llama_family import family_of
from crestline.models.llama_train import fits_window, tree_hidden
from crestline.models.tree import tree_of

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama grouped": {"num_key_value_heads": 2},
    "llama untied with biases": {"attention_bias": True, "mlp_bias": True},
    "llama tied": {"tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 16},
    "smollm3": {"num_key_value_heads": 2},
}
TREES: dict[str, tuple[list[list[int]], list[list[list[int]]]]] = {
    "ragged": ([[1, 2, 3], [4, 5]], [[[6, 7], [8, 9, 10]], [[11], [12, 13, 14, 15]]]),
    "even": ([[1, 2], [3, 4]], [[[5, 6], [7, 8]], [[9, 1], [2, 3]]]),
    "no prompts": ([[], []], [[[6, 7]], [[8, 9, 10]]]),
    "empty ones": ([[1, 2, 3], []], [[[], [4]], [[5, 6], [7]]]),
    "no completions": ([[1, 2, 3], [4]], [[[]], [[]]]),
}


def built(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **(SIZES | MODELS[name]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


def by_row(model: Any, prompts: list[list[int]], completions: list[list[list[int]]]) -> Any:
    """Hidden states in the order of the tree, each row through transformers alone."""
    first, then = [], []
    for prompt, group in zip(prompts, completions, strict=True):
        if prompt:
            first.append(model.model(torch.tensor([prompt])).last_hidden_state[0])
        for ids in group:
            if ids:
                whole = model.model(torch.tensor([prompt + ids])).last_hidden_state[0]
                then.append(whole[len(prompt) :])
    return torch.cat([*first, *then])


def gradients(model: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    pull = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden * pull).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", TREES)
def test_equals_transformers(name: str, layout: str) -> None:
    model = built(name)
    prompts, completions = TREES[layout]
    expected = by_row(model, prompts, completions)
    wanted = gradients(model, expected)
    for recompute in (False, True):
        found = tree_hidden(family_of(model), tree_of(prompts, completions), recompute=recompute)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        given = gradients(model, found)
        assert given.keys() == wanted.keys()
        for key, gradient in given.items():
            scale = float(wanted[key].abs().max())
            torch.testing.assert_close(gradient, wanted[key], atol=2e-5 * max(1, scale), rtol=1e-3)


@pytest.mark.parametrize("layout", TREES)
def test_tokens_at_the_end_that_nobody_looks_at_change_nothing(layout: str) -> None:
    model = built("llama grouped")
    trees = [tree_of(*TREES[layout], multiple=multiple) for multiple in (1, 64)]
    assert len(trees[1].tokens_S) == 64 and trees[0].num_unseen == 0 < trees[1].num_unseen
    plain, padded = (tree_hidden(family_of(model), tree) for tree in trees)
    seen = padded[: len(plain)]
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-4)
    wanted, given = gradients(model, plain), gradients(model, seen)
    for key, gradient in given.items():
        torch.testing.assert_close(gradient, wanted[key], atol=2e-5, rtol=1e-3)


def test_bfloat16_is_near() -> None:
    model = built("llama grouped")
    tree = tree_of(*TREES["ragged"])
    exact = tree_hidden(family_of(model), tree).detach()
    rough = tree_hidden(family_of(model), tree, dtype=torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert float((rough.detach().float() - exact).abs().max()) < 0.1 * float(exact.abs().max())
    given = gradients(model, rough.float())
    assert all(gradient.dtype == torch.float32 for gradient in given.values())


def test_rows_longer_than_the_window_are_refused() -> None:
    model = built("mistral")
    tree = tree_of([[1] * 10], [[[2] * 7]])
    assert not fits_window(family_of(model), tree)
    with pytest.raises(ValueError, match="window"):
        tree_hidden(family_of(model), tree)
    assert fits_window(family_of(model), tree_of([[1] * 10], [[[2] * 6]]))


def test_a_tree_needs_tokens_and_even_groups() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        tree_of([[]], [[[]]])
    with pytest.raises(ValueError, match="same number"):
        tree_of([[1], [2]], [[[1]], [[1], [2]]])
