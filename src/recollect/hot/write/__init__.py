"""Appending: one writer, its lanes and blocks, and the segments that grow beneath."""
