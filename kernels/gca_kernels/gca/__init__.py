"""Grouped cross attention: `api` is public, `reference` is the definition, `triton` is the fast path."""
