from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crestline.models.load import load_policy, max_context, new_llama, save_model
from crestline.types import BadInput


def small(seed: int, tokenizer: Any) -> Any:
    return new_llama(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=24,
        max_position=32,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=seed,
    )


def test_new_weights_are_a_function_of_the_seed(tokenizer) -> None:
    first, again, other = small(1, tokenizer), small(1, tokenizer), small(2, tokenizer)
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.lm_head.weight is first.model.embed_tokens.weight


@pytest.mark.parametrize("load", [load_policy, AutoModelForCausalLM.from_pretrained])
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path: Path, load) -> None:
    model = small(1, tokenizer)
    save_model(model, tokenizer, tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.dtype == torch.float32
    tokens = torch.tensor([[1, 20, 30, 2]])
    assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-6)
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("cat")["input_ids"] == tokenizer("cat")["input_ids"]
    )
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert max_context(tmp_path) == 32
    assert not list(tmp_path.glob("*.bin"))


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist; give a model folder or a hub name"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"is not a model folder: it has no config\.json"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="cannot load a causal language model from") as refused:
        load_policy(tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_that_are_pickled_are_refused(tokenizer, tmp_path: Path) -> None:
    model = small(1, tokenizer)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot load"):
        load_policy(tmp_path)
