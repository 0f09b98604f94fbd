"""One linear map of a model as plain tensors, with the low-rank adapters that are switched on.

Owns the reading of torch's, GPT-2's and peft's layers. Knows no architecture. A layer of any other kind (quantised,
DoRA, binary weights…) is no `Projection`: whoever asks gets None and leaves the model to its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition to a weight: scaling · up @ down. down: [rank, in]; up: [out, rank]."""

    down: Tensor
    up: Tensor
    scaling: float


@dataclass(frozen=True)
class Projection:
    """y = x Wᵀ + b, where W is the weight plus its adapters. weight: [out, in], the live parameter; bias: [out]."""

    weight: Tensor
    bias: Tensor | None = None
    adapters: tuple[Adapter, ...] = ()

    def reordered(self, rows: Callable[[Tensor], Tensor]) -> Projection:
        """The map with its outputs in another order. rows: the reordering of a tensor's first axis."""
        return Projection(
            rows(self.weight),
            None if self.bias is None else rows(self.bias),
            tuple(Adapter(one.down, rows(one.up), one.scaling) for one in self.adapters),
        )

    def merged(self) -> Tensor:
        """W, [out, in]: the live parameter itself where there are no adapters. Gradients flow through it."""
        weight = self.weight
        for adapter in self.adapters:
            weight = weight + (adapter.up @ adapter.down).to(weight.dtype) * adapter.scaling
        return weight


def projection_of(module: Any) -> Projection | None:
    """What a layer computes (dropout aside), or None if that is not a linear map with plain LoRA."""
    module = without_saving_wrapper(module)
    if type(module) is nn.Linear:
        return Projection(module.weight, module.bias)
    if type(module) is Conv1D:  # keeps its weight as [in, out]
        return Projection(module.weight.t(), module.bias)
    if _is_peft(module, "peft.tuners.lora.layer", "Linear"):
        return _with_adapters(module)
    return None


def without_saving_wrapper(module: Any) -> Any:
    """The layer that answers inside peft's `modules_to_save` wrapper; any other module as it is."""
    if not _is_peft(module, "peft.utils.other", "ModulesToSaveWrapper"):
        return module
    active = module.active_adapters
    if module.disable_adapters or not active or active[0] not in module.modules_to_save:
        return module.original_module
    return module.modules_to_save[active[0]]


def _with_adapters(layer: Any) -> Projection | None:
    plain = projection_of(layer.base_layer)
    if plain is None or (
        layer.merged and layer.disable_adapters
    ):  # its forward would unmerge first
        return None
    if layer.merged or layer.disable_adapters:
        return plain
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant or layer.lora_bias[name] for name in active):
        return None
    adapters = tuple(
        Adapter(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for name in active
    )
    return Projection(plain.weight, plain.bias, adapters)


def _is_peft(module: Any, where: str, name: str) -> bool:
    """Whether the module is exactly this class of peft; by name, since importing peft costs a second."""
    return (type(module).__module__, type(module).__name__) == (where, name)
