"""The weights that sampling multiplies with: the live ones where their dtype serves, else one copy in low precision.

Owns how a copy is made; the decoder keeps it, until its next refresh. Knows no architecture. Where weights are copied
anyway, maps that read the same input are joined into one; where they are not, they stay apart, so that no second copy
of full precision exists. Maps with LoRA adapters are merged, and that is a copy in any dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crestline.models.matmul import has_fast_bfloat16, linear, packed
from crestline.models.projection import Projection


@dataclass(frozen=True)
class Weights:
    """One linear map as `matmul.linear` takes it: weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor | None


class Shadow:
    """Makes the weights of a decoder; it keeps none itself.

    dtype: of the products; None takes bfloat16 where it is fast, else the weights' own.
    activations: dtype of everything between two products: float32 on a CPU, where it costs nothing.
    """

    def __init__(self, live: Tensor, dtype: torch.dtype | None) -> None:
        fast = torch.bfloat16 if has_fast_bfloat16(live.device.type) else live.dtype
        self.dtype = dtype or fast
        self.activations = torch.float32 if live.device.type == "cpu" else self.dtype

    def joined(self, projections: Sequence[Projection]) -> tuple[Weights, ...]:
        """The maps, as one where they are copied, else one by one."""
        if all(p.weight.dtype == self.dtype and not p.adapters for p in projections):
            return tuple(Weights(p.weight.detach(), _detached(p.bias)) for p in projections)
        weight = packed(torch.cat([p.merged().to(self.dtype) for p in projections]))
        if all(p.bias is None for p in projections):
            return (Weights(weight, None),)
        biases = [
            p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in projections
        ]
        return (Weights(weight, torch.cat([bias.to(self.dtype) for bias in biases])),)

    def one(self, projection: Projection) -> Weights:
        """A single map."""
        return self.joined([projection])[0]

    def vector(self, live: Tensor) -> Tensor:
        """Weights of a norm and other small things, in the dtype of the activations."""
        return live.detach().to(self.activations)


def project_into(planes: Sequence[Tensor], x_NI: Tensor, maps: Sequence[Weights]) -> None:
    """Write what each map makes of x into its plane [N, out]; the maps may be joined into one."""
    if len(maps) == len(planes):
        for plane, weights in zip(planes, maps, strict=True):
            linear(x_NI, weights.weight, weights.bias, out=plane)
        return
    (whole,) = maps
    joined = linear(x_NI, whole.weight, whole.bias)
    parts = joined.split_with_sizes([plane.shape[1] for plane in planes], 1)
    for plane, part in zip(planes, parts, strict=True):
        plane.copy_(part)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
