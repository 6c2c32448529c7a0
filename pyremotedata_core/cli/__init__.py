"""The command ``pyremotedata``."""

from .command import main

__all__ = ["main"]
