"""What a new user wants to know of a machine: how fast it multiplies, how much room it has, which GPUs are there.

Owns what is looked at and the words for it. Asks nobody on the network. Which packages are there is in `packages`,
which comes first: this module needs torch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from crestline.models.matmul import has_fast_bfloat16
from crestline.pipeline.configs import DoctorConfig
from crestline.pipeline.memory import memory_line
from crestline.pipeline.packages import Finding, extras, packages
from crestline.training.machine import gigabytes, gpu_memory, memory, processors

LITTLE_MEMORY = 2_000_000_000
LITTLE_DISK = 5_000_000_000
SECONDS_PER_RATE = 0.4
SIDE = {"cpu": 1024, "cuda": 4096}
"""Of the square matrices that are multiplied, by kind of device."""
FASTER = 1.25
"""So many times the rate is worth a note."""


def doctor(config: DoctorConfig, *, device: str = "cpu", settings: Any = None) -> Iterator[Finding]:
    """Look at packages and machine, one finding after the other.

    device: where training is meant to compute. settings: of a verb whose memory is estimated; None: of none.
    """
    yield from packages()
    yield from look_at(config, device=device, settings=settings)


def look_at(
    config: DoctorConfig, *, device: str = "cpu", settings: Any = None
) -> Iterator[Finding]:
    """The machine alone: what needs torch. Arguments as for `doctor`."""
    yield from arithmetic(device)
    yield from gpus(device)
    yield memory_here()
    if settings is not None:
        line, is_too_much = memory_line(settings, device)
        yield Finding("note" if is_too_much else "ok", "settings", line.removeprefix("memory: "))
    yield disk(Path(config.folder))
    yield from extras()
    yield hub()


# ---------------------------------------------------------------- arithmetic


def arithmetic(device: str) -> Iterator[Finding]:
    """Cores and threads, which dtype `auto` picks, and how fast matrices are multiplied."""
    cores, threads = processors(), torch.get_num_threads()
    told = f"cores: {cores:g}, threads: {threads}"
    if threads > cores + 0.5:
        yield Finding(
            "note", "processor", f"{told}: more than cores; --num_threads {max(1, int(cores))}"
        )
    elif threads < int(cores) - 1 and os.environ.get("OMP_NUM_THREADS"):
        yield Finding(
            "note", "processor", f"{told}, by OMP_NUM_THREADS; --num_threads {int(cores)} uses all"
        )
    else:
        yield Finding("ok", "processor", told)
    if device == "mps" or (device != "cpu" and gpu_memory(device) is None):
        return
    kind = device.partition(":")[0]
    picks = "bfloat16" if has_fast_bfloat16(kind) else "float32"
    rates = {
        "float32": matmul_rate(torch.float32, device),
        "bfloat16": matmul_rate(torch.bfloat16, device),
    }
    told = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    told = f"{told}; --dtype auto picks {picks}"
    other = "float32" if picks == "bfloat16" else "bfloat16"
    if rates[other] > FASTER * rates[picks]:
        yield Finding("note", "matrices", f"{told}, though {other} is faster here: --dtype {other}")
    else:
        yield Finding("ok", "matrices", told)


def matmul_rate(dtype: Any, device: str) -> float:
    """Operations a second, multiplications and additions counted, of square matrices of a size that keeps it busy."""
    side = SIDE.get(device.partition(":")[0], SIDE["cpu"])
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    out = torch.empty_like(matrix)

    def multiply() -> float:
        torch.mm(matrix, matrix, out=out)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    began, count, seconds = multiply(), 0, 0.0
    while seconds < SECONDS_PER_RATE:
        count, seconds = count + 1, multiply() - began
    return 2 * side**3 * count / seconds


def gpus(device: str) -> Iterator[Finding]:
    """Each GPU with its free memory; broken where training was meant for one that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        free, total = gpu_memory(f"cuda:{number}") or (0, 0)
        name = torch.cuda.get_device_name(number)
        told = f"{name}, {gigabytes(free)} of {gigabytes(total)} free; --device cuda:{number}"
        yield Finding("ok" if free > LITTLE_MEMORY else "note", f"cuda:{number}", told)
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple's GPU; --device mps")
    number = int(device.partition(":")[2] or 0)
    if (device.startswith("cuda") and number >= count) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        yield Finding("broken", device, "this machine has none that torch can use: --device cpu")
    elif not count and shutil.which("nvidia-smi"):
        told = f"nvidia-smi is here, but torch {torch.__version__} finds no GPU: install torch for your CUDA"
        yield Finding("note", "GPU", told)
    elif not count:
        yield Finding("ok", "GPU", "none; everything runs with --device cpu")


# ---------------------------------------------------------------- room


def memory_here() -> Finding:
    """Memory that is free, and the container's limit."""
    found = memory()
    if found is None:
        return Finding("note", "memory", "this system does not say how much is free")
    limit = f" (the container's limit is {gigabytes(found.limit)})" if found.limit else ""
    if found.free < LITTLE_MEMORY:
        told = "little: a small model needs 1 to 2 GB; end other programs"
        return Finding("note", "memory", f"{gigabytes(found.free)} free{limit}: {told}")
    return Finding("ok", "memory", f"{gigabytes(found.free)} free{limit}")


def disk(folder: Path) -> Finding:
    """Room where runs will be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("note", "disk", f"{there} cannot be written to; give another --output_dir")
    told = f"{gigabytes(free)} free in {there}"
    if free < LITTLE_DISK:
        return Finding("note", "disk", f"{told}: a checkpoint takes 12 bytes a weight; make room")
    return Finding("ok", "disk", told)


def hub() -> Finding:
    """Whether names of the hub may be asked for; nobody is asked."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        told = "HF_HUB_OFFLINE is set: names of the hub are taken from the cache alone"
        return Finding("note", "hub", told)
    return Finding("ok", "hub", "not tried: names of the hub are downloaded when they are given")
