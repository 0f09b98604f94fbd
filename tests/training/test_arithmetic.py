"""`--dtype`, settled for a device."""

import pytest
import torch

from crestline.models.matmul import has_fast_bfloat16
from crestline.training.arithmetic import arithmetic, products_in
from crestline.training.configs import Optimization


def test_what_is_asked_for_holds() -> None:
    assert products_in(Optimization(dtype="bfloat16"), "cpu") == torch.bfloat16
    assert products_in(Optimization(dtype="float32"), "cuda") == torch.float32


def test_auto_takes_what_is_fast() -> None:
    fast = products_in(Optimization(), "cpu") == torch.bfloat16
    assert fast == has_fast_bfloat16("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_compute_in_it(dtype: str) -> None:
    with arithmetic(Optimization(dtype=dtype), "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, dtype)
