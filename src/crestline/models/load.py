"""Load and save models as Hugging Face folders. safetensors only; remote code only if the user says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from crestline.types import BadInput

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer of a model folder or hub name, with a pad token.

    Raises BadInput if there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"cannot load a tokenizer from {name_or_path}: {first_line(error)}"
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_policy(name_or_path: str | Path, *, device: str = "cpu") -> Any:
    """A causal language model in float32, ready for training and deterministic in `eval`.

    Raises BadInput if the folder or hub name holds no such model.
    """
    model = _load(AutoModelForCausalLM, name_or_path, device, "a causal language model")
    made_for = model.config.architectures or [""]
    if made_for[0].endswith("ForSequenceClassification"):
        raise BadInput(f"{name_or_path} is a reward model or classifier, not a language model")
    return model


def _load(kind: Any, name_or_path: str | Path, device: str, what: str, **arguments: Any) -> Any:
    path = Path(name_or_path)
    if not path.exists() and (path.is_absolute() or str(name_or_path).startswith(".")):
        raise BadInput(f"{name_or_path} does not exist; give a model folder or a hub name")
    if path.is_dir() and not (path / "config.json").exists():
        raise BadInput(f"{name_or_path} is not a model folder: it has no config.json")
    try:
        model, loading = kind.from_pretrained(
            str(name_or_path),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager" if device == "cpu" else "sdpa",
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # transformers raises many kinds for a folder that is no model
        raise BadInput(f"cannot load {what} from {name_or_path}: {first_line(error)}") from None
    model.crestline_missing_keys = sorted(loading["missing_keys"])
    return model.to(device)


def new_llama(
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_position: int,
    pad_token_id: int,
    eos_token_id: int,
    seed: int,
) -> Any:
    """A Llama-architecture model with random weights and tied embeddings."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position,
            tie_word_embeddings=True,
            pad_token_id=pad_token_id,
            bos_token_id=None,
            eos_token_id=eos_token_id,
        )
    )
    model.set_attn_implementation("eager")
    return model


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer into a folder that plain transformers loads."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def max_context(name_or_path: str | Path) -> int:
    """How many tokens the model can read at once; a large number where its config does not say."""
    config = AutoConfig.from_pretrained(str(name_or_path), trust_remote_code=False)
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its name."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
