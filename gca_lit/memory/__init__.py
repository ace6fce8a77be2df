"""Where the past lives: chunk K/V in a store, landmarks on the device."""

from gca_lit.memory.base import ChunkStore, ChunkTable, Selection
from gca_lit.memory.chunk_memory import ChunkMemory
from gca_lit.memory.device_store import DeviceStore
from gca_lit.memory.disk_store import DiskStore
from gca_lit.memory.fetched import Fetched, both, fetch, in_one_table
from gca_lit.memory.host_store import HostStore

__all__ = [
    "ChunkMemory",
    "ChunkStore",
    "ChunkTable",
    "DeviceStore",
    "DiskStore",
    "Fetched",
    "HostStore",
    "Selection",
    "both",
    "fetch",
    "in_one_table",
]
