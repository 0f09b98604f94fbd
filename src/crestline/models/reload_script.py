"""Score texts with folders that were just written, by plain transformers and peft: run as a script of its own.

Owns what somebody without Crestline would do. Imports nothing of ours, or it would prove nothing. Reads one JSON object
from standard input, {"threads", "checks": [{"folder", "is_adapter", "base", "num_hidden_layers", "rows": [{"text",
"add_special_tokens"} or {"ids"}]}]}, and writes one: {"scores": [[...], ...]} or {"error": one line}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def load(check: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; an adapter on top of its base model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(check["folder"])
    if not check["is_adapter"]:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            check["folder"], output_loading_info=True
        )
        if loading["missing_keys"] or loading["mismatched_keys"]:
            lost = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
            raise ValueError(f"weights are missing: {lost[0]}")
        if model.config.num_labels != 1:
            raise ValueError(f"{model.config.num_labels} labels in place of 1")
        return model.eval(), tokenizer
    from peft import PeftModel

    base = base_model(check["base"], check["num_hidden_layers"])
    base.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(base, check["folder"]).eval(), tokenizer


def base_model(name: str, num_layers: int) -> Any:
    """The first layers of a base model with a new head; one that is an adapter itself is merged into its own base."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if (Path(name) / "adapter_config.json").is_file():
        adapter = PeftConfig.from_pretrained(name)
        adapter.task_type = None  # a language model's, here under another head
        below = base_model(adapter.base_model_name_or_path, num_layers)
        return PeftModel.from_pretrained(below, name, config=adapter).merge_and_unload()
    config = AutoConfig.from_pretrained(name, num_labels=1)
    return AutoModelForSequenceClassification.from_pretrained(
        name, config=first_layers(config, num_layers), ignore_mismatched_sizes=True
    )


def first_layers(config: Any, num: int) -> Any:
    """The config, changed to hold only the first `num` layers, in the lists that say something of each layer too."""
    text = config.get_text_config()
    whole = text.num_hidden_layers
    text.num_hidden_layers = num
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:num])
    return config


def scores(check: dict[str, Any]) -> list[float]:
    """The score of each row, all in one padded batch."""
    import torch

    model, tokenizer = load(check)
    ids = [
        row["ids"]
        if "ids" in row
        else tokenizer(row["text"], add_special_tokens=row["add_special_tokens"])["input_ids"]
        for row in check["rows"]
    ]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found: list[float] = logits[:, 0].float().tolist()
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    import torch

    torch.set_num_threads(asked["threads"])
    try:
        answer: dict[str, Any] = {"scores": [scores(check) for check in asked["checks"]]}
    except Exception as error:  # whatever it is, the folder cannot be used
        text = str(error).strip()
        answer = {"error": text.splitlines()[0] if text else type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
