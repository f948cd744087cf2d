"""Keep freed memory: without it a step on a CPU spends half its time on page faults."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of ``mallopt(3)`` in glibc's ``malloc.h``."""


def keep_freed_memory() -> None:
    """Let glibc reuse the activations' memory instead of giving it back to the kernel after each layer.

    glibc maps every large block anew and unmaps it when freed, so that each tensor's pages are faulted in
    again in every layer of every step. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_ARENA_MAX, 1)
