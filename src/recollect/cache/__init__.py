"""Decoded blocks of a buffer, in the hot layout, shared by processes and versions."""
