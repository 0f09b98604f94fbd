"""Maps with adapters against the plain sum, values and gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crestline.models.blocks import added, projected
from crestline.models.projection import Adapter, Projection


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def projection(out: int, inside: int, ranks: tuple[int, ...], bias: bool) -> Projection:
    adapters = tuple(
        Adapter(random(rank, inside), random(out, rank), scaling=0.5 + n)
        for n, rank in enumerate(ranks)
    )
    return Projection(random(out, inside), random(out) if bias else None, adapters)


def plainly(x: Tensor, p: Projection) -> Tensor:
    """The map, and each adapter's share one by one."""
    total = F.linear(x, p.weight, p.bias)
    for adapter in p.adapters:
        total = total + adapter.scaling * (x @ adapter.down.t() @ adapter.up.t())
    return total


def tensors(*projections: Projection) -> list[Tensor]:
    found = [p.weight for p in projections] + [p.bias for p in projections if p.bias is not None]
    for p in projections:
        found += [part for adapter in p.adapters for part in (adapter.down, adapter.up)]
    return found


def same(found: Tensor, expected: Tensor, inputs: list[Any]) -> None:
    torch.testing.assert_close(found, expected)
    share = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, share, retain_graph=True)
    for gradient, other in zip(
        gradients, torch.autograd.grad(expected, inputs, share), strict=True
    ):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    "ranks", [((), (), ()), ((2,), (2,), (2,)), ((3,), (), (1,)), ((), (2, 1), ())]
)
@pytest.mark.parametrize("biases", [(False, False, False), (True, False, True)])
def test_maps_side_by_side(ranks: Any, biases: Any) -> None:
    torch.manual_seed(0)
    x = random(7, 6)
    maps = [projection(n + 3, 6, ranks[n], biases[n]) for n in range(3)]
    expected = torch.cat([plainly(x, p) for p in maps], -1)
    same(projected(x, maps), expected, [x, *tensors(*maps)])


@pytest.mark.parametrize("ranks", [(), (2,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_map_added_to_the_residual_stream(ranks: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, inner = random(7, 4), random(7, 6)
    one = projection(4, 6, ranks, bias)
    same(added(x, inner, one), x + plainly(inner, one), [x, inner, *tensors(one)])
