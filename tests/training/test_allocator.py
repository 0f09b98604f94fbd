"""Freed memory stays while something trains, and goes back after."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from crestline.training.allocator import freed_memory_kept

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
