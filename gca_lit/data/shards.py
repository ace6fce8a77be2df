"""Token shards: `ShardWriter` writes a data set, `ShardReader` reads it. `shard_format` says what it is made of."""

from gca_lit.data.shard_format import read_manifest
from gca_lit.data.shard_reader import ShardReader
from gca_lit.data.shard_writer import ShardWriter

__all__ = ["ShardReader", "ShardWriter", "read_manifest"]
