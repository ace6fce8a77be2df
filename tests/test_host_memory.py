"""Memory that a process may use: that of the host, or of the control groups it is in."""

import pytest

from gca_lit import host_memory

FILES = {
    "/proc/meminfo": "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  800 kB\n",
    "/proc/self/cgroup": "0::/jobs/7\n",
    "/sys/fs/cgroup/jobs/7/memory.max": "max\n",
    "/sys/fs/cgroup/jobs/memory.max": "500000\n",
    "/sys/fs/cgroup/jobs/memory.current": "400000\n",
    "/sys/fs/cgroup/jobs/memory.stat": "active_file 5000\ninactive_file 50000\n",
}


@pytest.mark.parametrize(
    ("missing", "total", "available"),
    [
        ("nothing", 500_000, 150_000),
        ("/sys", 1000 << 10, 800 << 10),
        ("/", None, None),
        ("/proc/meminfo", 500_000, 150_000),
    ],
)
def test_the_smallest_limit_counts(monkeypatch, missing, total, available):
    seen = {path: text for path, text in FILES.items() if not path.startswith(missing)}
    monkeypatch.setattr(host_memory, "_text", lambda path: seen.get(path, ""))
    assert (host_memory.total_bytes(), host_memory.available_bytes()) == (total, available)


def test_this_host_has_memory():
    total, available = host_memory.total_bytes(), host_memory.available_bytes()
    assert total is None or available is None or 0 < available <= total
