"""The command line, `recollect NOUN VERB`: goes through workspace and buffer, loads heavy parts when needed."""

from recollect.cli.app import main

__all__ = ["main"]
