import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaModel

from crestline.models.load import load_policy, load_tokenizer, new_llama, save_model
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


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_mistyped_hub_name_is_told_at_once(monkeypatch, offline: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for load in (load_policy, load_tokenizer):
        began = time.monotonic()
        with pytest.raises(
            BadInput, match=r"nobody/nothing is no folder here and cannot"
        ) as refused:
            load("nobody/nothing")
        assert time.monotonic() - began < 15 and "\n" not in str(refused.value)


def test_paths_that_are_no_folders_are_told_apart_from_hub_names(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="is a file; give a model folder"):
        load_policy(tmp_path / "model.safetensors")
    for name in ("./nowhere", "runs/mine/model"):
        with pytest.raises(BadInput, match=f"{name} does not exist"):
            load_policy(name)


def test_a_folder_that_lacks_weights_is_refused(tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama()
    trunk = LlamaModel(model.config)
    save_model(trunk, tokenizer, tmp_path / "trunk")
    with pytest.raises(BadInput, match=r"not a whole language model: it has no lm_head\.weight"):
        load_policy(tmp_path / "trunk")
    save_model(tiny_llama(tie_word_embeddings=True), tokenizer, tmp_path / "tied")
    load_policy(tmp_path / "tied")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_encoders_are_no_policies(backbone_folder, name: str) -> None:
    with pytest.raises(BadInput, match="is an encoder: a token changes what this") as refused:
        load_policy(backbone_folder(name))
    assert "\n" not in str(refused.value)
