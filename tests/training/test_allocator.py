"""Freed memory stays while something trains, and goes back after."""

import os
import platform
import resource
from pathlib import Path

import pytest
import torch

from crestline.training.allocator import KERNELS, freed_memory_kept
from crestline.training.arithmetic import products_in
from crestline.training.configs import Optimization

GLIBC = platform.libc_ver()[0] == "glibc"


def faults_of(work: int) -> int:
    """Pages that the system had to give for taking and freeing 48 MB several times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(work):
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not GLIBC, reason="glibc alone hands memory back so eagerly")
def test_pages_are_taken_once() -> None:
    with freed_memory_kept():
        faults_of(1)
        kept = faults_of(10)
        inside = resident()
    assert kept < faults_of(10) / 5
    assert resident() < inside - (40 << 20)


def test_few_kernels_are_kept_unless_the_user_says_how_many(monkeypatch) -> None:
    name, few = KERNELS
    bfloat16 = Optimization(dtype="bfloat16")
    monkeypatch.delenv(name, raising=False)
    products_in(Optimization(dtype="float32"), "cpu")
    assert name not in os.environ
    products_in(bfloat16, "cpu")
    assert os.environ[name] == few
    monkeypatch.setenv(name, "7")
    products_in(bfloat16, "cpu")
    assert os.environ[name] == "7"
