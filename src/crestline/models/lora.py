"""Low-rank adapters: put on, written, read back, merged. The only module that knows peft.

Owns the rule that whatever is new outside the backbone is trained in full and saved with the adapter: heads are never
lost. Knows nothing of training and text. peft takes two seconds to import, so it is imported when adapters are used.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crestline.models.heads import outside_backbone
from crestline.types import BadInput

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
JOINED_FROM = "joined_from"
"""Attribute of a model that an adapter folder was merged into: that folder."""


class LoraSettings(Protocol):
    """What `with_adapters` reads from its settings."""

    @property
    def lora_r(self) -> int: ...
    @property
    def lora_alpha(self) -> int: ...
    @property
    def lora_dropout(self) -> float: ...
    @property
    def lora_target_modules(self) -> str: ...


def with_adapters(
    model: Any,
    settings: LoraSettings,
    *,
    task: Literal["reward", "policy"],
    seed: int,
    new_modules: Sequence[str] = (),
) -> Any:
    """The model with adapters that are trained while the rest is frozen; without effect before the first step.

    task: reward: a sequence classifier, of which every module outside the backbone is trained in full. policy: a
    causal language model; its output layer stays as it is. seed: decides the adapters' first weights. new_modules:
    modules inside the backbone that have fresh weights, such as BERT's pooler, trained in full too. Of a model that
    came out of an adapter folder the new adapters name that folder; `load_model` follows such a chain, plain peft
    opens its first link only.
    Raises BadInput if a target names no linear layer.
    Source: Hu et al. (2021), arXiv 2106.09685; `modules_to_save` of peft.
    """
    from peft import LoraConfig, get_peft_model

    whole = [*new_modules, *(outside_backbone(model) if task == "reward" else ())]
    targets = target_names(model, settings.lora_target_modules, whole)
    config = LoraConfig(
        task_type="SEQ_CLS" if task == "reward" else "CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=shortened(model, targets),
        modules_to_save=whole or None,
        fan_in_fan_out=any(is_transposed(model.get_submodule(name)) for name in targets),
    )
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = origin(model)
    return adapted


def target_names(model: Any, targets: str, whole: Sequence[str]) -> list[str]:
    """Full names of the linear layers that get adapters: all of the backbone, or those that a target names.

    targets: all-linear, or last parts of names separated by commas. whole: modules that get none.
    """
    names = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_transposed(module))
        and module is not model.get_output_embeddings()
        and not any(name == top or name.startswith(f"{top}.") for top in whole)
    ]
    if targets == ALL_LINEAR:
        return names
    wanted = [target.strip() for target in targets.split(",") if target.strip()]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise BadInput(
                f"--lora_target_modules {target}: no such linear layer; there are {', '.join(known)}"
            )
    return [n for n in names if any(n == target or n.endswith(f".{target}") for target in wanted)]


def shortened(model: Any, targets: Sequence[str]) -> list[str]:
    """Last parts of the names where they say which modules are meant, as other tools like them; else full names."""
    last = {name.rpartition(".")[2] for name in targets}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in last]
    return sorted(last) if set(meant) == set(targets) else list(targets)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is GPT-2's Conv1D: a linear layer whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D"


def origin(model: Any) -> str:
    """Where a model was loaded from, as adapters name it: a hub name, or the whole path of a folder.

    That is the adapter's folder where one was merged in, while config._name_or_path stays the plain model below it.
    """
    joined_from = getattr(model, JOINED_FROM, None)
    name = str(joined_from or model.config._name_or_path or model.name_or_path or "")
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def is_adapted(model: Any) -> bool:
    """Whether the model carries adapters."""
    return hasattr(model, "peft_config")


def learns_prompts(model: Any) -> bool:
    """Whether adapters give the model virtual tokens to read, as prompt and prefix tuning do."""
    return is_adapted(model) and any(c.is_prompt_learning for c in model.peft_config.values())


def merged(model: Any) -> Any:
    """A plain transformers model with the adapters worked into its weights; the adapted model stays as it is."""
    with quiet_peft():
        plain = copy.deepcopy(model).merge_and_unload()
    plain.requires_grad_(True)
    return plain


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """Everything that training changes, under the names that an adapter folder has."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def write_adapter(model: Any, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Write an adapter folder that plain peft reads. tensors: in place of `adapter_tensors`."""
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    # peft adds names that it expects heads to have, again and again
    config.modules_to_save = sorted(set(config.modules_to_save or ())) or None
    config.target_modules = sorted(config.target_modules)  # a set: its order is the process's own
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or adapter_tensors(model), folder / ADAPTER_WEIGHTS)
    config.save_pretrained(str(folder))


def load_adapter_weights(model: Any, folder: Path) -> bool:
    """Take up what `write_adapter` wrote; False, and nothing taken, if it is of another model."""
    from peft import set_peft_model_state_dict

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    own = adapter_tensors(model)
    if {name: tensor.shape for name, tensor in tensors.items()} != {
        name: tensor.shape for name, tensor in own.items()
    }:
        return False
    set_peft_model_state_dict(model, tensors)
    return True


def read_adapter_config(folder: Path) -> dict[str, Any] | None:
    """What adapter_config.json says; None where the folder is no adapter's."""
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise BadInput(f"{folder / ADAPTER_CONFIG}: no JSON: {error}") from None
    if not isinstance(found, dict) or not found.get("base_model_name_or_path"):
        raise BadInput(f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path")
    if Path(found["base_model_name_or_path"]).resolve() == folder.resolve():
        raise BadInput(f"{folder / ADAPTER_CONFIG} names itself as base_model_name_or_path")
    return found


def joined(model: Any, folder: Path) -> tuple[Any, set[str]]:
    """The model with an adapter folder merged in, and the names of the parameters that the adapter replaced whole.

    model: a language model, or a classifier: a language model's adapter then works on its backbone.
    Raises BadInput if the adapter does not fit the model, or is of a kind that weights cannot take up.
    """
    from peft import PeftConfig, PeftModel

    try:
        with quiet_peft():
            warnings.filterwarnings("error", message=".*adapter keys.*")
            config = PeftConfig.from_pretrained(str(folder))
            if config.task_type == "CAUSAL_LM" and not model.can_generate():
                config.task_type = None  # peft would ask the classifier how it generates
            adapted = PeftModel.from_pretrained(model, str(folder), config=config)
    except Exception as error:  # peft raises many kinds for an adapter that does not fit
        line = str(error).strip().splitlines()[0]
        raise BadInput(f"{folder}: the adapter does not fit its base model: {line}") from None
    if not hasattr(adapted, "merge_and_unload"):
        raise BadInput(
            f"{folder}: an adapter by {config.peft_type.value} cannot be merged into weights; give one by LoRA"
        )
    whole = {
        f"{name}.{inner}"
        for name, module in adapted.get_base_model().named_modules()
        if hasattr(module, "modules_to_save")
        for inner in module.modules_to_save["default"].state_dict()
    }
    with quiet_peft():
        plain = adapted.merge_and_unload()
    plain.requires_grad_(True)
    setattr(plain, JOINED_FROM, str(folder.resolve()))
    return plain, whole


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings that peft gives for its own calls into transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
