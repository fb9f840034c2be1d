"""Core ML: one stateful iOS 18 ``.mlpackage`` with a prefill and a decode function."""

from __future__ import annotations

from .backend import COREML

__all__ = ["COREML"]
