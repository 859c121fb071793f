"""Weights in the order of use: direct reads, tiles, a ring of memory."""
