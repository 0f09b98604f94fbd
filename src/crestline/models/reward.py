"""Reward models from folders and hub names: a trained one, or a backbone with a new head.

Owns what can be a reward model, and one clear line for what cannot. Knows nothing of training, rankings and policies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from crestline.formulas.ensemble import Aggregate
from crestline.models.calibration import Calibration
from crestline.models.ensemble import RewardEnsemble, read_ensemble
from crestline.models.heads import draw_heads, last_linear, mean_head, outside_backbone, set_heads
from crestline.models.load import Loaded, first_line, load_model, load_tokenizer, look_for
from crestline.models.lora import LoraSettings, read_adapter_config, with_adapters
from crestline.models.reload_script import first_layers
from crestline.models.reward_model import ADAPTER_STORED, HEADS_FILE, RewardModel, ScoreDtype
from crestline.types import BadInput

__all__ = [
    "Calibration",
    "RewardEnsemble",
    "RewardModel",
    "load_reward_model",
    "new_reward_model",
]

NEW_HEAD: dict[str, Any] = {"num_labels": 1, "ignore_mismatched_sizes": True}
"""Arguments that load a model with a head of one output, drawn anew where it has none."""


def load_reward_model(
    name_or_path: str | Path, *, device: str = "cpu", dtype: ScoreDtype = "float32"
) -> RewardModel | RewardEnsemble:
    """A trained reward model or ensemble with its calibration, whatever the folder is.

    A plain folder or hub name, one with heads.safetensors, an adapter on top of its base model, or an ensemble.
    dtype: arithmetic of scoring; weights stay float32.
    Raises BadInput if its head is missing, has two labels, or belongs to an encoder-decoder.
    """
    path = Path(name_or_path)
    if ensemble := read_ensemble(path):
        members = [
            load_reward_model(folder, device=device, dtype=dtype)
            for folder in ensemble.pop("members")
        ]
        return RewardEnsemble([only_one(member, path) for member in members], **ensemble)
    stored: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    if adapter := read_adapter_config(path):
        if adapter.get("task_type") == "CAUSAL_LM":
            raise BadInput(
                f"{path} has no trained reward head: it is the adapter of a language model"
            )
        stored = read_stored(path / ADAPTER_STORED)
        arguments = NEW_HEAD
        if layers := stored.get("num_hidden_layers"):
            arguments = shallower(path, int(layers))
    found = load_classifier(name_or_path, device, "a reward model", **arguments)
    model = found.model
    if fresh := [*found.missing, *found.mismatched]:
        raise BadInput(
            f"{name_or_path} has no trained reward head (missing {fresh[0]}); "
            "train one with: crestline reward"
        )
    if model.config.num_labels != 1:
        raise BadInput(
            f"{name_or_path} has {model.config.num_labels} labels; a reward model has one"
        )
    stored = stored or getattr(model.config, "crestline", None) or {}
    if (path / HEADS_FILE).is_file():
        read_heads(model, path / HEADS_FILE)
    return RewardModel(
        model.eval(),
        tokenizer_for(model, name_or_path),
        max_length=int(stored.get("max_length", 1024)),
        calibration=Calibration.stored(stored),
        aggregate=stored.get("aggregate", "mean"),
        uwo_coefficient=float(stored.get("uwo_coefficient", 0.1)),
        head_means_M=stored.get("head_means"),
        dtype=dtype,
    )


def new_reward_model(
    backbone: str | Path,
    *,
    seed: int,
    max_length: int,
    half_depth: bool = False,
    device: str = "cpu",
    num_heads: int = 1,
    aggregate: Aggregate = "mean",
    uwo_coefficient: float = 0.1,
    lora: LoraSettings | None = None,
) -> RewardModel:
    """A backbone with a new head; one that has a head of one output already keeps it.

    half_depth: keep only the first half of its blocks. num_heads: M > 1 draws M heads anew. lora: train adapters and
    the head, and freeze the rest. seed: decides whatever is drawn.
    Raises BadInput if the backbone cannot carry a head, or lacks weights of its own.
    """
    torch.manual_seed(seed)
    arguments = shallower(backbone) if half_depth else NEW_HEAD
    found = load_classifier(backbone, device, "a backbone", **arguments)
    model, tokenizer = found.model, tokenizer_for(found.model, backbone)
    fresh = fresh_modules(found, backbone)
    if num_heads > 1:
        draw_heads(model, num_heads, seed)
    if lora is not None:
        inside = [name for name in fresh if name not in outside_backbone(model)]
        model = with_adapters(model, lora, task="reward", seed=seed, new_modules=inside)
    return RewardModel(
        model,
        tokenizer,
        max_length=max_length,
        calibration=Calibration(),
        aggregate=aggregate,
        uwo_coefficient=uwo_coefficient,
    )


def load_classifier(name_or_path: str | Path, device: str, what: str, **arguments: Any) -> Loaded:
    """A sequence classifier in float32. Raises BadInput if there can be none."""
    try:
        found = load_model(
            AutoModelForSequenceClassification, name_or_path, device, what, **arguments
        )
    except BadInput as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise BadInput(
            f"{name_or_path}: transformers has no sequence classifier for this architecture; "
            "give a causal language model or an encoder of another kind"
        ) from None
    if found.model.config.is_encoder_decoder:
        raise BadInput(
            f"{name_or_path} is an encoder-decoder; a reward model is a causal language model or an encoder"
        )
    return found


def fresh_modules(found: Loaded, backbone: str | Path) -> list[str]:
    """Modules whose weights are new: the head's, and a pooler's. Raises BadInput if the backbone lacks others."""
    head = outside_backbone(found.model)
    fresh = {name.rpartition(".")[0] for name in (*found.missing, *found.mismatched)}
    tops = {name.partition(".")[0] for name in fresh}
    poolers = {name[: name.index("pooler") + len("pooler")] for name in fresh if "pooler" in name}
    for name in (*found.missing, *found.mismatched):
        if name.partition(".")[0] not in head and "pooler" not in name:
            raise BadInput(
                f"{backbone} lacks weights of its backbone ({name}); its config.json is not of these weights"
            )
    return sorted((tops & set(head)) | poolers)


def shallower(name_or_path: str | Path, num_layers: int = 0) -> dict[str, Any]:
    """Arguments that load the first blocks of a model, or of an adapter's base model, with a head of one output.

    num_layers: how many blocks; 0 takes half of them, at least one. Raises BadInput if there is no config to read.
    """
    look_for(name_or_path)
    if adapter := read_adapter_config(Path(name_or_path)):
        return shallower(adapter["base_model_name_or_path"], num_layers)
    try:
        config = AutoConfig.from_pretrained(
            str(name_or_path), trust_remote_code=False, num_labels=1
        )
    except Exception as error:  # transformers raises many kinds for a broken config
        raise BadInput(f"cannot read the config of {name_or_path}: {first_line(error)}") from None
    half = max(1, int(config.get_text_config().num_hidden_layers) // 2)
    return {"config": first_layers(config, num_layers or half), "ignore_mismatched_sizes": True}


def tokenizer_for(model: Any, name_or_path: str | Path) -> Any:
    """The tokenizer of a model; one whose padding has no row in the embeddings pads with its end token.

    Raises BadInput if there is no tokenizer, or no token to pad with.
    """
    tokenizer = load_tokenizer(name_or_path)
    num_rows = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id < num_rows:
        return tokenizer
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= num_rows:
        raise BadInput(
            f"{name_or_path}: the tokenizer pads with {tokenizer.pad_token}, which has no row among the model's "
            f"{num_rows} embeddings; set pad_token in its tokenizer_config.json to a token that has one"
        )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_heads(model: Any, path: Path) -> None:
    """Give the model all heads of heads.safetensors. Raises BadInput if they are not of this model."""
    heads = load_file(path)
    layer = last_linear(model)
    fits = heads.get("weight") is not None and heads["weight"].shape[1:] == layer.weight.shape[1:]
    if not fits or ("bias" in heads) != (layer.bias is not None):
        raise BadInput(f"{path} holds heads of another model")
    if any(
        not torch.allclose(tensor.to(layer.weight), getattr(layer, name), atol=1e-5)
        for name, tensor in mean_head(heads).items()
    ):
        raise BadInput(f"{path} does not belong to this folder: its mean is not the folder's head")
    set_heads(model, heads["weight"], heads.get("bias"))


def read_stored(path: Path) -> dict[str, Any]:
    """What an adapter folder says about its calibration; nothing where it is somebody else's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInput(f"{path}: no JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def only_one(member: RewardModel | RewardEnsemble, path: Path) -> RewardModel:
    """A member that is no ensemble itself. Raises BadInput if it is."""
    if isinstance(member, RewardEnsemble):
        raise BadInput(f"{path}: a member of an ensemble is an ensemble itself; name its members")
    return member
