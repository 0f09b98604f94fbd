"""What the processor is good at, as far as the system says so. Torch-free; owns the reading of /proc/cpuinfo alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def multiplies_bfloat16_fast(cpuinfo: Path = CPUINFO) -> bool:
    """Whether products in bfloat16 are faster than in float32: with AMX, and with AVX512-BF16 on AMD.

    Intel's AVX512-BF16 without AMX reaches half of the float32 rate, AMD's twice (LOG.md). Anything else, and a system
    that does not say, counts as slow.
    """
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return False
    lines = text.partition("\n\n")[0].splitlines()
    fields = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    is_amd = fields.get("vendor_id", "").strip() == "AuthenticAMD"
    return "amx_bf16" in flags or (is_amd and "avx512_bf16" in flags)
