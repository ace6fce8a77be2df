"""The memory of this host that a process may use."""

from __future__ import annotations

import re
from pathlib import Path


def total_bytes() -> int | None:
    """Memory of the host, or the limit of this process's control groups (version 2); None where nothing tells."""
    return min([*(limit for limit, _ in _groups()), *_meminfo("MemTotal")], default=None)


def available_bytes() -> int | None:
    """Memory that is free, or could be freed, within the limits of this process; None where nothing tells."""
    return min([*(limit - used for limit, used in _groups()), *_meminfo("MemAvailable")], default=None)


def _meminfo(name: str) -> list[int]:
    """Bytes that the system states under `name`; nothing where it does not."""
    found = re.search(rf"^{name}:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return [int(found[1]) << 10] if found else []


def _groups() -> list[tuple[int, int]]:
    """Limit and use of each control group of this process that has a limit; files in memory count as free."""
    found = re.search("^0::/(.*)$", _text("/proc/self/cgroup"), re.MULTILINE)
    group = Path("/sys/fs/cgroup", found[1] if found else "")
    limited = []
    for folder in (group, *group.parents):
        limit, used = (_text(f"{folder}/{name}").strip() for name in ("memory.max", "memory.current"))
        files = re.search(r"^inactive_file (\d+)", _text(f"{folder}/memory.stat"), re.MULTILINE)
        if limit.isdigit():
            limited.append((int(limit), int(used or 0) - int(files[1] if files else 0)))
    return limited


def _text(path: str) -> str:
    """The content of a file, empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
