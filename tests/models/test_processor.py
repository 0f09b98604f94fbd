"""Which processors multiply fast in bfloat16."""

from pathlib import Path

import pytest

from crestline.models.processor import multiplies_bfloat16_fast


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "fpu avx512_bf16", False),
        ("AuthenticAMD", "fpu avx512_bf16", True),
        ("AuthenticAMD", "fpu avx512f", False),
    ],
)
def test_by_vendor_and_flags(tmp_path: Path, vendor: str, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A\nflags\t\t: {flags}\n"
    cpuinfo.write_text(f"{core}\n{core}")
    assert multiplies_bfloat16_fast(cpuinfo) is expected


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert not multiplies_bfloat16_fast(tmp_path / "nothing")
    (tmp_path / "arm").write_text("processor: 0\nFeatures: bf16\n")
    assert not multiplies_bfloat16_fast(tmp_path / "arm")
