"""Harvest: images changed, read through the compiled graph and kept in shards."""
