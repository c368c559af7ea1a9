"""How much memory this process may still take."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Optional


def available_bytes() -> Optional[int]:
    """Physical memory that can be had without swapping, within the limits of this process's container; None if unknown."""
    known = [size for size in (_machine_bytes(), _container_bytes()) if size is not None]
    return min(known) if known else None


def _machine_bytes() -> Optional[int]:
    if sys.platform == "win32":
        return _windows_bytes()
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # macOS does not say what is available: two thirds of what there is, as its own GPU limit
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 2 // 3
    except (OSError, ValueError, AttributeError):
        return None


def _container_bytes() -> Optional[int]:
    """Linux control groups, version 2 and 1. Cached files count as used there, though they give way."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        try:
            limit_bytes = int((folder / limit).read_text(encoding="ascii"))
            used_bytes = int((folder / used).read_text(encoding="ascii"))
            fields = dict(line.split()[:2] for line in (folder / stat).read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        cached = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
        return max(limit_bytes - used_bytes + cached, 0)
    return None


class _MemoryStatus(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "available", "page_total", "page_available", "virtual_total",
                                                  "virtual_available", "extended_available")),
    )  # fmt: skip


def _windows_bytes() -> Optional[int]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    windll: Any = getattr(ctypes, "windll", None)
    if windll is None or not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)
