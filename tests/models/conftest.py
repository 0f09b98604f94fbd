"""Tiny models that answer in milliseconds, with weights far from uniform."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    Qwen2Config,
    RobertaConfig,
)

from crestline.models.load import save_model
from crestline.models.tokenizer import train_tokenizer

REAL_MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"
TEXTS = ["The cat sat on the mat and the dog sat on the log.", "Why did the hen cross the road?"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 5, 290)


@pytest.fixture(scope="session")
def tiny_llama(tokenizer) -> Callable[..., Any]:
    """A Llama with grouped-query attention and random weights."""

    def build(**changes: Any) -> Any:
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "initializer_range": 0.15,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        }
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
        model.set_attn_implementation("eager")
        return model.eval()

    return build


@pytest.fixture(scope="session")
def llama(tiny_llama) -> Any:
    return tiny_llama()


@pytest.fixture(scope="session")
def gpt2(tokenizer) -> Any:
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.set_attn_implementation("eager")
    return model.eval()


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """The folder of a trained model that lies beside the repository."""

    def find(name: str) -> Path:
        folder = REAL_MODELS / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there")
        return folder

    return find


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.15,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "position_biased_input": False,
}
BACKBONES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, LlamaConfig, SIZES | {"num_key_value_heads": 2}),
    "qwen2": (AutoModelForCausalLM, Qwen2Config, SIZES | {"num_key_value_heads": 2}),
    "gpt2": (AutoModelForCausalLM, GPT2Config, SIZES),
    "bert": (AutoModelForMaskedLM, BertConfig, SIZES),
    "roberta": (AutoModelForMaskedLM, RobertaConfig, SIZES | {"max_position_embeddings": 65}),
    "distilbert": (AutoModel, DistilBertConfig, SIZES | {"dim": 32, "hidden_dim": 48}),
    "modernbert": (AutoModel, ModernBertConfig, SIZES | {"cls_token_id": 1, "sep_token_id": 2}),
    "deberta-v2": (AutoModel, DebertaV2Config, SIZES | RELATIVE),
}
"""How each kind of backbone is pretrained elsewhere: its class, its config, and sizes."""


@pytest.fixture(scope="session")
def backbone_folder(tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny backbone of an architecture, as somebody's pretraining leaves it."""

    @cache
    def find(name: str) -> Path:
        kind, config, sizes = BACKBONES[name]
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "bos_token_id": 1}
        torch.manual_seed(0)
        folder: Path = tmp_path_factory.mktemp(name) / "backbone"
        save_model(kind.from_config(config(**(settings | special | sizes))), tokenizer, folder)
        return folder

    return find
