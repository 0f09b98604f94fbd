"""Arithmetic whose rows know nothing of each other: what a row becomes does not depend on the batch.

Owns the sampler's linear maps, weighted sums and activation functions. On the CPU a row's result is the same to the
last bit whatever other rows stand in the batch, how many they are and how many threads work. For that, products are
padded to `FEWEST_ROWS` rows, below which the library takes other kernels; long sums are added up in stretches of a
fixed length, beyond which it splits them by the number of rows, columns and threads; and activation functions get
whole vectors, since what is left over takes another formula. Elsewhere nothing is promised. Weights may be laid out for
bfloat16 products once (`packed`).

Letters: N rows, I and O features in and out, R rows of one product in a batch of B, L columns summed over, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crestline.models.processor import multiplies_bfloat16_fast

FEWEST_ROWS = 16
ROWS_EXPECTED = 64
"""Rows of the products that weights are laid out for."""
LONGEST_SUM = 768
"""Features that one float32 product of two matrices sums over."""
LONGEST_BATCHED_SUM = 192
"""Columns that one float32 product in a batch of small ones sums over; AMD's are split beyond, Intel's beyond 256."""
LONGEST_LOW_PRECISION_SUM = 512
"""The same in lower precision."""
LANES = 64
"""Numbers that an activation function takes at once, at most."""
DONE_BY_ONE_THREAD = 1 << 15
"""Up to so many numbers stay with one thread; more are divided anywhere."""


def has_fast_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 products are faster than float32: GPUs that have them, and some CPUs (`processor`)."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device_type == "cpu" and multiplies_bfloat16_fast()


def linear(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """x Wᵀ + b, [N, O], computed in the weight's dtype and returned in it, or in `out`'s."""
    rows = x_NI.shape[0]  # len() of a tensor is slower than a small product
    x_NI = x_NI.to(weight_OI.dtype)
    if not x_NI.is_cpu:
        found = F.linear(x_NI, weight_OI, bias_O)
        return found if out is None else out.copy_(found)
    if rows < FEWEST_ROWS:
        x_NI = F.pad(x_NI, (0, 0, 0, FEWEST_ROWS - rows))
    elif out is not None and weight_OI.dtype == out.dtype == torch.float32:
        return _product(x_NI, weight_OI, bias_O, out)
    if weight_OI.is_mkldnn:
        found = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    elif weight_OI.dtype == torch.float32:
        found = _product(x_NI, weight_OI, bias_O, None)
    else:
        found = F.linear(x_NI, weight_OI, bias_O)
    found = found if rows >= FEWEST_ROWS else found[:rows]
    return found if out is None else out.copy_(found)


def packed(weight_OI: Tensor) -> Tensor:
    """The weight laid out as bfloat16 products on a CPU read it, for `linear` alone; itself where there is no such
    layout. Without it every product of few rows lays it out anew."""
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    if pack is None or not weight_OI.is_cpu or weight_OI.dtype != torch.bfloat16:
        return weight_OI
    try:
        found: Tensor = pack(weight_OI, ROWS_EXPECTED)
    except RuntimeError:  # a build of torch, or a processor, that has none
        return weight_OI
    return found


def add_linear_(
    residual_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None
) -> Tensor:
    """Add x Wᵀ + b to the residual in place, and return it."""
    return residual_NO.add_(linear(x_NI, weight_OI, bias_O))


def longest_sum(dtype: torch.dtype) -> int:
    """Columns that `weighted_sum` adds up at once."""
    return LONGEST_BATCHED_SUM if dtype == torch.float32 else LONGEST_LOW_PRECISION_SUM


def weighted_sum(weights_BRL: Tensor, values_BLD: Tensor) -> Tensor:
    """weights @ values, [B, R, D]; columns of weight 0 may be left out or added at the end without effect."""
    exact = weights_BRL.dtype == torch.float32
    size, columns = longest_sum(weights_BRL.dtype), values_BLD.shape[1]
    found_BRD = torch.bmm(weights_BRL[..., :size], values_BLD[:, :size])
    if columns <= size:
        return found_BRD
    found_BRD = found_BRD.float()
    for start in range(size, columns, size):
        part = slice(start, start + size)
        if exact:
            found_BRD.baddbmm_(weights_BRL[..., part], values_BLD[:, part])
        else:
            found_BRD += torch.bmm(weights_BRL[..., part], values_BLD[:, part])
    return found_BRD.to(weights_BRL.dtype)


def rms_normed_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) · weight over the last dimension; on a CPU in half the time of the library's."""
    if not x.is_cpu:
        return F.rms_norm(x, weight.shape, weight, epsilon)
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = scale.square_().mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * scale).mul_(weight)


def activated_(function_: Callable[[Tensor], object], x_NF: Tensor) -> Tensor:
    """An elementwise function that works in place, applied to x; the result may be another tensor."""
    width = x_NF.shape[1]
    if x_NF.device.type != "cpu":
        function_(x_NF)
        return x_NF
    whole = F.pad(x_NF, (0, -width % LANES)) if width % LANES else x_NF
    if whole.numel() <= DONE_BY_ONE_THREAD:
        function_(whole)
        return whole if whole is x_NF else whole[:, :width]
    rows = max(1, DONE_BY_ONE_THREAD // whole.shape[1])
    for start in range(0, whole.shape[0], rows):
        function_(whole[start : start + rows])
    return whole[:, :width]


def _product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, out: Tensor | None) -> Tensor:
    weight_IO, inside = weight_OI.t(), x_NI.shape[1]
    if inside <= LONGEST_SUM:
        if bias_O is None:
            return torch.mm(x_NI, weight_IO, out=out)
        return torch.addmm(bias_O, x_NI, weight_IO, out=out)
    found = _product(x_NI[:, :LONGEST_SUM], weight_OI[:, :LONGEST_SUM], bias_O, out)
    for start in range(LONGEST_SUM, inside, LONGEST_SUM):
        part = slice(start, start + LONGEST_SUM)
        found.addmm_(x_NI[:, part], weight_IO[part])
    return found
