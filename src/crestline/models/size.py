"""How large a model is, told by its folder: config.json and the headers of the weights. No weight is read; torch-free.

Owns what the fields of config.json are called. Knows nothing of memory and training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

OWN_PASS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Kinds of model that our own forward pass computes, as config.json calls them."""
OWN_DECODER = (*OWN_PASS, "gpt2")
"""Kinds that our own decoder samples from."""
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
}
"""What architectures call the same number."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model's folder says of its size.

    kind: model_type of config.json. kv_width: numbers that a cache keeps for each token, layer and side.
    context: tokens that the model reads at once. is_encoder: it has no causal language model's head.
    """

    kind: str
    num_parameters: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    kv_width: int
    vocab_size: int
    context: int
    is_encoder: bool = False

    @property
    def joined_weights(self) -> int:
        """Numbers in the maps that our own forward pass writes side by side for each layer."""
        attention = self.hidden_size + 2 * self.kv_width
        return self.num_layers * self.hidden_size * (attention + 2 * self.intermediate_size)


def size_of(name_or_path: str) -> Size | None:
    """The size of a model's folder; None for a hub name, or where the folder does not say.

    An adapter counts as its base model. An ensemble is as wide as its largest member and has the weights of all.
    """
    path = Path(name_or_path)
    try:
        if (adapter := path / "adapter_config.json").is_file():
            return size_of(_read(adapter)["base_model_name_or_path"])
        if (members := path / "ensemble.json").is_file():
            return _together([size_of(str(path / name)) for name in _read(members)["members"]])
        found = _read(path / "config.json")
        return size_from(found, sum(map(_numbers_in, _weight_files(path))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def size_from(config: Mapping[str, Any], num_parameters: int) -> Size | None:
    """The size that a config.json tells; None where it names no sizes that we know."""
    found = {n: next((config[k] for k in keys if k in config), None) for n, keys in NAMES.items()}
    if None in found.values() or "vocab_size" not in config:
        return None
    sizes = {name: int(value) for name, value in found.items() if value is not None}
    hidden, heads = sizes["hidden_size"], sizes["num_heads"]
    head = int(config.get("head_dim") or hidden // heads)
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("hidden_dim")
    context = config.get("max_position_embeddings") or config.get("n_positions")
    kind = str(config.get("model_type", ""))
    architecture = str((config.get("architectures") or [""])[0])
    is_causal = "CausalLM" in architecture or "LMHead" in architecture or kind in OWN_PASS
    return Size(
        kind=kind,
        num_parameters=num_parameters,
        intermediate_size=int(inner or 4 * hidden),
        kv_width=head * int(config.get("num_key_value_heads") or heads),
        vocab_size=int(config["vocab_size"]),
        context=int(context or 1 << 30),
        is_encoder=not is_causal,
        **sizes,
    )


def _together(sizes: Sequence[Size | None]) -> Size | None:
    known = [size for size in sizes if size]
    if not known or len(known) < len(sizes):
        return None
    largest = max(known, key=lambda size: size.num_parameters)
    return replace(largest, num_parameters=sum(size.num_parameters for size in known))


def _read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no object")
    return found


def _weight_files(path: Path) -> list[Path]:
    """The files that transformers loads from a folder: one, or those that an index names."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    return [path / name for name in sorted(set(_read(index)["weight_map"].values()))]


def _numbers_in(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is torn")
        header = json.loads(opened.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)
