"""Evictions: when, and in which order of durable steps."""
