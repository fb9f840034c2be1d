"""The runner: a recipe in, a directory with everything in it out; resumable at every step."""

from __future__ import annotations

from .runner import run

__all__ = ["run"]
