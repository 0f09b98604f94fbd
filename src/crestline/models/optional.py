"""Whether vLLM is there, asked without importing it. Torch-free, so that a missing one is told at once."""

from __future__ import annotations

from importlib.util import find_spec

from crestline.types import BadInput


def require_vllm() -> None:
    """Raise BadInput where vLLM is not installed."""
    try:
        is_there = find_spec("vllm") is not None
    except ValueError:  # put in place by hand, without a specification
        is_there = True
    if not is_there:
        raise BadInput(
            "--sampler vllm needs vLLM, which is not installed: pip install 'crestline[vllm]', or --sampler auto"
        )
