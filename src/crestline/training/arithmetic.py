"""In which arithmetic a stage computes: `--dtype`, settled for a device.

Owns that choice for everyone who takes part in training: learner, sampler, reference and critic agree, so that KL
compares models and not arithmetics. What is left between sampler and learner is logged as
`sampling/logprob_difference`. Weights stay float32, and checkpoints are measured in their arithmetic.
"""

from __future__ import annotations

import torch

from crestline.models.matmul import has_fast_bfloat16
from crestline.training.configs import Optimization


def products_in(config: Optimization, device_type: str) -> torch.dtype:
    """The dtype of matrix products: bfloat16 where that is asked for, or `auto` finds it fast; else float32."""
    fast = config.dtype == "auto" and has_fast_bfloat16(device_type)
    return torch.bfloat16 if fast or config.dtype == "bfloat16" else torch.float32


def arithmetic(config: Optimization, device_type: str) -> torch.autocast:
    """The context in which models compute."""
    dtype = products_in(config, device_type)
    return torch.autocast(device_type, torch.bfloat16, enabled=dtype == torch.bfloat16)
