"""Text in, rows out: tokenizers, Arrow shards, the order of training blocks, task rows, the data module."""
