"""What version 4 of transformers looks for; that it opens the folders is checked in its own environment."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    PhiConfig,
)

from crestline.models.load import save_model
from crestline.models.older import older_config, older_tokenizer, write_for_older

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PARTIAL = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.75}
TWO_BASES = {
    "full_attention": {"rope_type": "default", "rope_theta": 70000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}


@pytest.mark.parametrize(
    ("kind", "rope", "expected"),
    [
        (LlamaConfig, {"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}),
        (
            LlamaConfig,
            LLAMA3,
            {
                "rope_theta": 500000.0,
                "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
            },
        ),
        (ModernBertConfig, TWO_BASES, {"global_rope_theta": 70000.0, "local_rope_theta": 5000.0}),
        (PhiConfig, PARTIAL, {"rope_theta": 50000.0, "partial_rotary_factor": 0.75}),
        (GPTNeoXConfig, PARTIAL, {"rotary_emb_base": 50000.0, "rotary_pct": 0.75}),
        (
            LlamaConfig,
            LLAMA3 | {"partial_rotary_factor": 0.5},
            {
                "partial_rotary_factor": 0.5,
                "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
            },
        ),
        (Gemma3TextConfig, TWO_BASES, {"rope_theta": 70000.0, "rope_local_base_freq": 5000.0}),
    ],
)
def test_rotary_bases_stand_where_both_versions_look(kind, rope, expected, tmp_path: Path) -> None:
    config: Any = kind(rope_parameters=rope, **SIZES)
    config.save_pretrained(tmp_path)
    write_for_older(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert {key: found.get(key) for key in expected} == expected
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_nothing_is_added_where_nothing_turns() -> None:
    found = {
        "model_type": "bert",
        "hidden_size": 3,
        "vision": {"rope_parameters": {"rope_theta": 1}},
    }
    assert older_config(found) == found
    nested = older_config({"text_config": {"rope_parameters": {"rope_theta": 7.0}}})
    assert nested["text_config"]["rope_theta"] == 7.0 and "rope_theta" not in nested


def test_the_tokenizer_has_names_that_both_versions_know(llama, tokenizer, tmp_path) -> None:
    save_model(llama, tokenizer, tmp_path)
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found["additional_special_tokens"] == ["<|user|>", "<|assistant|>", "<|system|>"]
    assert not {"backend", "extra_special_tokens", "is_local", "local_files_only"} & set(found)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "The cat."}]
    assert again.all_special_ids == tokenizer.all_special_ids
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    save_model(llama, again, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == found


def test_tokenizers_of_their_own_class_and_named_extras_stay() -> None:
    found = {"tokenizer_class": "BertTokenizer", "extra_special_tokens": {"image": "<image>"}}
    assert older_tokenizer(found) == found
