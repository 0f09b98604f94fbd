"""Folders that transformers 4 reads as well as 5: other tools pin the older one, and some would read wrong numbers.

Owns what version 5 writes in another way: the tokenizer's class and extra tokens, and rotary settings, which version 4
silently takes at their defaults. Knows the folders' JSON only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OLDER_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""What version 5 calls a plain tokenizer.json, and what both versions know it by."""

AT_THE_TOP = ("rope_theta", "partial_rotary_factor")
"""Rotary settings that version 4 keeps outside rope_scaling."""

OLDER_BASES = {
    "modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
}
"""By model type, where version 4 keeps the rotary base of each kind of layer."""

OLDER_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""By model type, other names that version 4 has for rotary settings."""


def write_for_older(folder: Path) -> None:
    """Add to a folder that version 5 wrote what version 4 looks for. Version 5 reads it as before."""
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        rewrite(tokenizer, older_tokenizer)
    if (folder / "config.json").is_file():
        rewrite(folder / "config.json", older_config)


def rewrite(path: Path, change: Any) -> None:
    """Change a JSON file by a function of what it holds."""
    found = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def older_tokenizer(found: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json under the names of version 4."""
    name = str(found.get("tokenizer_class", ""))
    changed = {**found, "tokenizer_class": OLDER_TOKENIZER_CLASSES.get(name, name)}
    if (
        changed["tokenizer_class"] == "PreTrainedTokenizerFast"
    ):  # version 4 would add token_type_ids
        changed.setdefault("model_input_names", ["input_ids", "attention_mask"])
    for note in ("backend", "is_local", "local_files_only"):  # how it was loaded, not what it is
        changed.pop(note, None)
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


def older_config(found: dict[str, Any]) -> dict[str, Any]:
    """config.json with the rotary settings where version 4 looks for them too."""
    changed = {
        key: older_config(value) if key.endswith("text_config") else value
        for key, value in found.items()
    }
    rope = found.get("rope_parameters")
    if not isinstance(rope, dict):
        return changed
    kind = str(found.get("model_type"))
    for key in AT_THE_TOP:
        if key in rope:
            changed[key] = changed[OLDER_NAMES.get(kind, {}).get(key, key)] = rope[key]
    if "rope_theta" in rope and rope.get("rope_type", "default") != "default":
        changed["rope_scaling"] = {k: v for k, v in rope.items() if k not in AT_THE_TOP}
    for layer, key in OLDER_BASES.get(kind, {}).items():
        if "rope_theta" in (rope.get(layer) or {}):
            changed[key] = rope[layer]["rope_theta"]
    return changed
