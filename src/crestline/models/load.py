"""Load and save models as Hugging Face folders: plain ones, and adapters on top of another.

Owns which folders and hub names can be loaded, and one line for those that cannot. safetensors only, never remote code.
Knows nothing of heads, text and training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from crestline.models.llama_family import family_of
from crestline.models.lora import (
    ADAPTER_CONFIG,
    is_adapted,
    joined,
    load_adapter_weights,
    read_adapter_config,
    write_adapter,
)
from crestline.models.older import write_for_older
from crestline.types import BadInput

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

HUB_SECONDS = 10.0
"""How long the hub may take to say whether it has a model."""


class OtherModel(ValueError):
    """Weights that are not those of this model."""


@dataclass(frozen=True)
class Loaded:
    """A model, and which of its parameters have fresh weights: missing in the folder, or there in another shape."""

    model: Any
    missing: list[str]
    mismatched: list[str]


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer of a model folder or hub name, with a pad token; an adapter without one has its base model's.

    Raises BadInput if there is none.
    """
    if not Path(name_or_path).is_dir():  # a folder may hold a tokenizer and nothing else
        look_for(name_or_path)
    adapter = read_adapter_config(Path(name_or_path))
    if adapter and not (Path(name_or_path) / "tokenizer_config.json").exists():
        return load_tokenizer(adapter["base_model_name_or_path"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds for broken files
        raise BadInput(
            f"cannot load a tokenizer from {name_or_path}: {first_line(error)}"
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise BadInput(
            f"{name_or_path}: the tokenizer has no token to pad with; set pad_token in its tokenizer_config.json"
        )
    return tokenizer


def load_policy(name_or_path: str | Path, *, device: str = "cpu") -> Any:
    """A causal language model in float32, ready for training and deterministic in `eval`; adapters are merged in.

    Raises BadInput if the folder or hub name holds no such model.
    """
    attention = "eager" if device == "cpu" else "sdpa"
    found = load_model(
        AutoModelForCausalLM,
        name_or_path,
        device,
        "a causal language model",
        attn_implementation=attention,
    )
    model = found.model
    made_for = model.config.architectures or [""]
    adapter = read_adapter_config(Path(name_or_path)) or {}
    if made_for[0].endswith("ForSequenceClassification") or adapter.get("task_type") == "SEQ_CLS":
        raise BadInput(f"{name_or_path} is a reward model or classifier, not a language model")
    own = {name for name, _ in model.named_parameters()}  # tied ones once, by their first name
    if fresh := [name for name in found.missing if name in own]:
        raise BadInput(f"{name_or_path} is not a whole language model: it has no {fresh[0]}")
    if family_of(model) is None and looks_ahead(model):
        raise BadInput(
            f"{name_or_path} is an encoder: a token changes what this {type(model).__name__} says before it"
        )
    return model


@torch.no_grad()
def looks_ahead(model: Any) -> bool:
    """Whether logits depend on later tokens, told by two rows of three tokens. The model must be in `eval`."""
    tokens_NT = torch.tensor([[0, 1, 2], [0, 1, 1]], device=model.device)
    first_TV, other_TV = model(input_ids=tokens_NT).logits[:, :2].float()
    return bool((first_TV - other_TV).abs().max() > 1e-3 * first_TV.abs().max())


def load_model(
    kind: Any, name_or_path: str | Path, device: str, what: str, **arguments: Any
) -> Loaded:
    """A model by its auto class, in float32. An adapter folder is merged into its base model.

    what: what is asked for, for messages. arguments: handed to from_pretrained.
    Raises BadInput if it cannot be loaded.
    """
    look_for(name_or_path)
    adapter = read_adapter_config(Path(name_or_path))
    if adapter:
        found = load_model(kind, adapter["base_model_name_or_path"], device, what, **arguments)
        model, whole = joined(found.model, Path(name_or_path))
        return Loaded(
            model.to(device),
            [name for name in found.missing if name not in whole],
            [name for name in found.mismatched if name not in whole],
        )
    try:
        model, loading = kind.from_pretrained(
            str(name_or_path),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # transformers raises many kinds for a folder that is no model
        raise BadInput(f"cannot load {what} from {name_or_path}: {first_line(error)}") from None
    # transformers puts an adapter of the hub on by itself, and loses track of heads
    if is_adapted(model):
        raise BadInput(
            f"{name_or_path} is an adapter on the hub; download it (hf download {name_or_path} "
            "--local-dir adapter) and give that folder"
        )
    mismatched = sorted(key[0] for key in loading["mismatched_keys"])
    return Loaded(model.to(device), sorted(loading["missing_keys"]), mismatched)


def look_for(name_or_path: str | Path) -> None:
    """Raise BadInput at once if a name is neither a model's folder nor a model of the hub."""
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / ADAPTER_CONFIG).exists():
            raise BadInput(f"{name} is not a model folder: it has no config.json")
        return
    if path.exists():
        raise BadInput(f"{name} is a file; give a model folder or a hub name")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise BadInput(f"{name} does not exist; give a model folder or a hub name")
    files = ("config.json", ADAPTER_CONFIG)
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            return
        if not offline:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
            return
        reason = "HF_HUB_OFFLINE is set, and it is not in the cache"
    except Exception as error:  # the hub's client raises many kinds; one try, no waiting
        reason = first_line(error)
    raise BadInput(
        f"{name} is no folder here and cannot be had from the Hugging Face hub: {reason}"
    )


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
    """Write model and tokenizer into a folder that plain transformers loads, version 4 too.

    A model with adapters is written as an adapter folder, which peft loads and which names its base model.
    """
    if is_adapted(model):
        write_adapter(model, folder)
    else:
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    write_for_older(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Take up the weights of a folder that `save_model` wrote from the same model.

    Raises OtherModel if it holds another model's, and OSError or SafetensorError if it cannot be read.
    """
    if is_adapted(model):
        if not load_adapter_weights(model, folder):
            raise OtherModel(f"{folder} holds adapters of another model")
        return
    weights = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if set(missing) - tied or unexpected:
        raise OtherModel(f"{folder} holds another model")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its name."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
