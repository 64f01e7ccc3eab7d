"""How much memory this process may use, and what follows from it for a node's configuration."""

from __future__ import annotations

import os
from pathlib import Path

from iotdb_cluster.limits import MIB

__all__ = ["default_memtable_mb", "usable_bytes"]

CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMTABLE_PART = 4  # the memtables get this part of it
MEMTABLE_MB_MIN = 64


def usable_bytes() -> int:
    """The machine's memory, or what the container may use of it."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in CGROUP_FILES:
        path = Path(name)
        text = path.read_text().strip() if path.exists() else ""
        if text.isdigit():
            found = min(found, int(text))
    return found


def default_memtable_mb(nodes: int = 1) -> int:
    """`memtable_memory_mb` of each of so many nodes that share this machine."""
    return max(MEMTABLE_MB_MIN, usable_bytes() // MEMTABLE_PART // nodes // MIB)
