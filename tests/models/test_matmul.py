"""Rows of the sampler's arithmetic know nothing of each other: bit for bit, and against plain formulas."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crestline.models.matmul import activated_, add_linear_, linear, weighted_sum

ROWS = {1: (1, 2, 7, 17, 33, 65), 2: (3, 17, 129)}
"""Threads, and the sizes of batch that are tried with them."""
MAPS = [(8, 33), (32, 32), (32, 96), (48, 97), (288, 864), (768, 288), (1024, 512), (3072, 640)]


@pytest.fixture(autouse=True)
def threads_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Cut into batches of any size, x gives each row the same bits, with one thread and with two."""
    torch.set_num_threads(1)
    expected = function(x.clone())
    for threads, counts in ROWS.items():
        torch.set_num_threads(threads)
        for count in counts:
            found = torch.cat([function(part.clone()) for part in torch.split(x, count)])
            assert torch.equal(found, expected), (threads, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inside", "outside"), MAPS)
def test_linear_rows(inside: int, outside: int, dtype: torch.dtype) -> None:
    torch.manual_seed(inside)
    x, weight = torch.randn(200, inside), torch.randn(outside, inside) / inside**0.5
    bias, residual = torch.randn(outside), torch.randn(200, outside)
    weight, bias = weight.to(dtype), bias.to(dtype)
    some = x if inside < 1000 else x[:40]
    check_rows(lambda part: linear(part, weight, bias), some)
    check_rows(lambda part: linear(part, weight.t().contiguous().t()), some[:70])
    exact = x.double() @ weight.double().t()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(linear(x, weight).double(), exact, atol=tolerance, rtol=tolerance)
    out = torch.empty(200, outside)
    assert linear(x, weight, bias, out=out) is out
    torch.testing.assert_close(out.double(), exact + bias, atol=tolerance, rtol=tolerance)
    added = add_linear_(residual.clone(), x, weight, bias).double()
    torch.testing.assert_close(added, exact + bias + residual, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 24])
def test_weighted_sums_forget_columns_of_weight_zero(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(40, 2000, 48).to(dtype)
    weights = torch.zeros(40, rows, 2000, dtype=dtype)
    weights[..., :900] = torch.rand(40, rows, 900)
    expected = weighted_sum(weights[..., :912], values[:, :912])
    assert expected.dtype == dtype
    tolerance = (
        {"atol": 1e-3, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.5, "rtol": 0.02}
    )
    exact = weights.float() @ values.float()
    torch.testing.assert_close(expected.float(), exact, **tolerance)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for columns in (928, 1024, 1104, 2000):
            found = weighted_sum(weights[..., :columns], values[:, :columns])
            assert torch.equal(found, expected)
        for batch in (1, 7):
            part = slice(3, 3 + batch)
            assert torch.equal(weighted_sum(weights[part], values[part]), expected[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 97, 768])
def test_activations_by_row(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, width).to(dtype)
    check_rows(lambda part: activated_(torch.ops.aten.silu_, part), x)
    joined = torch.cat([x, x], 1)
    check_rows(lambda part: activated_(torch.ops.aten.silu_, part[:, :width]), joined)
    found = activated_(torch.ops.aten.silu_, x.clone()).float()
    torch.testing.assert_close(found, F.silu(x.float()), atol=0.02, rtol=0.02)
