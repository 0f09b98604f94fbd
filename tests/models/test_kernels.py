"""oneDNN keeps few kernels once anything of crestline.models was imported."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import crestline.models.load
import torch
for _ in range(2):
    print("round", flush=True)
    for rows in range(200):
        torch.ones(64 + rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
"""


def made_again(**environment: str) -> int:
    """Kernels that the second round of 200 products made anew."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    _, first, second = told.split("round\n")
    if "create:cache_miss" not in first:
        pytest.skip("oneDNN does not multiply here")
    return second.count("create:cache_miss")


def test_few_kernels_are_kept_unless_the_user_says_how_many(monkeypatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert made_again() == 200
    assert made_again(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024") == 0
