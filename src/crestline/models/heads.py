"""The head of a sequence classifier: what lies outside the backbone, and its last linear layer.

A shared trunk with M heads is that layer with M outputs; their mean is one linear head again, so any plain loader can
have the exact mean. Knows nothing of tokenizers and files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PEFT_PARTS = ("modules_to_save", "default")
"""Parts of a name that peft puts in where it keeps a trained copy of a module."""


def outside_backbone(model: Any) -> list[str]:
    """Names of the modules with parameters that are not part of the backbone: score, classifier, pre_classifier, …

    model: a transformers sequence classifier, without adapters.
    """
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def last_linear_name(model: Any) -> str:
    """Dotted name of the linear layer that gives the score, as it is called without adapters.

    model: without adapters, or the transformers model inside one that has them.
    Raises ValueError if the head has no linear layer.
    """
    return ".".join(part for part in _last_linear(model)[0] if part not in PEFT_PARTS)


def last_linear(model: Any) -> nn.Linear:
    """The linear layer that gives the score; with adapters, the copy that is trained."""
    return _last_linear(model.get_base_model() if hasattr(model, "peft_config") else model)[1]


def _last_linear(model: Any) -> tuple[list[str], nn.Linear]:
    found: tuple[list[str], nn.Linear] | None = None
    for top in outside_backbone(model):
        for inner, module in model.get_submodule(top).named_modules():
            parts = [top, *inner.split(".")] if inner else [top]
            if isinstance(module, nn.Linear) and "original_module" not in parts:
                found = parts, module
    if found is None:
        raise ValueError(f"{type(model).__name__} has no linear layer after its backbone")
    return found


def set_heads(model: Any, weight_MH: Tensor, bias_M: Tensor | None) -> None:
    """Give the last linear layer these M heads, in place. model: without adapters."""
    name = last_linear_name(model)
    old = model.get_submodule(name)
    new = nn.Linear(weight_MH.shape[1], len(weight_MH), bias=bias_M is not None).to(old.weight)
    with torch.no_grad():
        new.weight.copy_(weight_MH)
        if bias_M is not None:
            new.bias.copy_(bias_M)
    model.set_submodule(name, new)
    model.config.num_labels = model.num_labels = len(weight_MH)


def draw_heads(model: Any, num_heads: int, seed: int) -> None:
    """Draw M heads of their own, normal with the backbone's initializer_range, biases 0. model: without adapters."""
    layer = last_linear(model)
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config, "initializer_range", None) or 0.02)
    weight_MH = torch.randn(num_heads, layer.in_features, generator=generator) * deviation
    set_heads(model, weight_MH, None if layer.bias is None else torch.zeros(num_heads))


def head_tensors(model: Any) -> dict[str, Tensor]:
    """All heads: weight [M, H], and bias [M] where the layer has one."""
    layer = last_linear(model)
    found = {"weight": layer.weight.detach().cpu().clone()}
    if layer.bias is not None:
        found["bias"] = layer.bias.detach().cpu().clone()
    return found


def mean_head(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """The heads' mean as one head: weight [1, H], bias [1]. Its score is the exact mean of theirs."""
    return {name: tensor.mean(0, keepdim=True) for name, tensor in heads.items()}


@torch.no_grad()
def divide_heads(model: Any, divisors_M: Tensor) -> None:
    """Divide each head's weight and bias by a number, in place."""
    layer = last_linear(model)
    layer.weight.div_(divisors_M.to(layer.weight)[:, None])
    if layer.bias is not None:
        layer.bias.div_(divisors_M.to(layer.bias))
