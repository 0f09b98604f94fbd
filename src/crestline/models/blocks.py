"""Pieces of a transformer layer, written for few passes over memory in training.

Owns maps, norms and activations with gradients of their own. Knows no architecture and no attention.
Letters: S tokens, C hidden size, H heads, D head size, A angles, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crestline.models.projection import Projection


def projected(x_SC: Tensor, projections: Sequence[Projection]) -> Tensor:
    """Several maps of the same input as one multiplication."""
    weight = torch.cat([p.weight for p in projections]).to(x_SC.dtype)
    bias = None
    if any(p.bias is not None for p in projections):
        parts = [
            p.weight.new_zeros(p.weight.shape[0]) if p.bias is None else p.bias for p in projections
        ]
        bias = torch.cat(parts).to(x_SC.dtype)
    return _adapted(F.linear(x_SC, weight, bias), x_SC, projections)


def added(x_SC: Tensor, inner: Tensor, projection: Projection) -> Tensor:
    """The residual stream plus the map of something."""
    if projection.bias is not None:
        x_SC = x_SC + projection.bias.to(x_SC.dtype)
    out = torch.addmm(x_SC, inner, projection.weight.to(x_SC.dtype).t())
    return _adapted(out, inner, (projection,))


def _adapted(out: Tensor, x_SC: Tensor, projections: Sequence[Projection]) -> Tensor:
    """The outputs of maps of x, with what their adapters add: two thin products for all of them.

    Not by way of the merged weight, whose gradient would cost as much as full training.
    """
    if not any(p.adapters for p in projections):
        return out
    downs = [adapter.down for p in projections for adapter in p.adapters]
    inner = F.linear(x_SC, torch.cat(downs).to(x_SC.dtype))
    ups = [
        torch.cat([adapter.up * adapter.scaling for adapter in p.adapters], 1)
        if p.adapters
        else p.weight.new_zeros(len(p.weight), 0)
        for p in projections
    ]
    up: Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    return torch.addmm(out, inner, up.to(x_SC.dtype).t())


def recomputes(model: Any) -> bool:
    """Whether activation checkpointing is switched on, as transformers marks it on its modules."""
    if not model.training:
        return False
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def applied(function: Any, *arguments: Any) -> Tensor:
    """What an autograd function gives."""
    result: Tensor = function.apply(*arguments)
    return result


def rms_normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) · weight over the last dimension; the mean square in float32."""
    return applied(_RmsNorm, x, weight, epsilon)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [S, 2 F], gate first: [S, F]."""
    return applied(_SwiGlu, gate_up)


def rotated(x_SHD: Tensor, turns_S1A: Tensor) -> Tensor:
    """`turned` with its gradient."""
    return applied(_Rotation, x_SHD, turns_S1A)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) · weight over the last dimension; the mean square in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square_() / x.shape[-1] + epsilon).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        normed: Tensor = unit * weight.to(x.dtype)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, scale, weight = ctx.saved_tensors
        grad_weight = None
        product = grad * unit
        if ctx.needs_input_grad[1]:
            flat = product.reshape(-1, product.shape[-1])
            grad_weight = flat.sum(0, dtype=torch.float32).to(weight.dtype)
        mean = torch.mv(product.reshape(-1, product.shape[-1]), weight.to(grad.dtype))
        mean = (mean / product.shape[-1]).view(*product.shape[:-1], 1)
        grad_x = (grad * weight.to(grad.dtype)).addcmul_(unit, mean, value=-1).mul_(scale)
        return grad_x, grad_weight, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up of [S, 2 F], gate first."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        width = gate.shape[-1]
        torch.mul(F.silu(gate), grad, out=out[:, width:])
        out[:, :width] = torch.ops.aten.silu_backward(grad * up, gate)
        return out


def turns_of(angles_SA: Tensor, scale: float) -> Tensor:
    """What `turned` multiplies pairs by, complex64 [S, 1, A]. angles: radians, float32."""
    return torch.polar(torch.full_like(angles_SA, scale), angles_SA)[:, None]


def turned(x_SHD: Tensor, turns_S1A: Tensor, *, back: bool = False) -> Tensor:
    """Neighbours 2 i and 2 i + 1 of each head rotated by the token's i-th angle, in float32; D = 2 A.

    back: turns the other way, which is also the gradient.
    """
    pairs = torch.view_as_complex(x_SHD.float().view(*x_SHD.shape[:-1], -1, 2))
    found = torch.view_as_real(pairs * (turns_S1A.conj() if back else turns_S1A))
    return found.flatten(-2).to(x_SHD.dtype)


class _Rotation(torch.autograd.Function):
    """`turned`, whose gradient turns the other way."""

    @staticmethod
    def forward(ctx: Any, x_SHD: Tensor, turns: Tensor) -> Tensor:
        ctx.turns = turns
        return turned(x_SHD, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return turned(grad, ctx.turns, back=True), None
