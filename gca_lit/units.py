"""Sizes in bytes, for people."""

MIB, GIB = 1 << 20, 1 << 30


def size(count: float) -> str:
    """Of `count` bytes, in the unit that leaves the number below 1,024: "512 B", "2.0 KiB", up to GiB."""
    sizes = {"KiB": 1 << 10, "MiB": MIB, "GiB": GIB}
    unit = next((unit for unit, one in sizes.items() if count < 1024 * one), "GiB")
    return f"{count:.0f} B" if count < 1024 else f"{count / sizes[unit]:,.1f} {unit}"
