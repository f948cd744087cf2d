"""What the processor can do, as far as it matters to int8."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

X86 = ("x86_64", "amd64")
VNNI = ("avx512_vnni", "avx_vnni")


def is_x86() -> bool:
    return platform.machine().lower() in X86


@cache
def has_vnni() -> bool:
    """Whether an x86 processor multiplies int8 fast and without overflow; ``False`` where nobody tells (no Linux)."""
    described = Path("/proc/cpuinfo")
    flags = described.read_text(errors="replace").split() if described.is_file() else []
    return is_x86() and not set(VNNI).isdisjoint(flags)
