"""One back end a file: how a program becomes a file of one ecosystem."""

from __future__ import annotations

from mobilekit.core.registry import Registry

from .base import Backend

BACKENDS: Registry[Backend] = Registry("target")
BACKENDS.register("coreml", "mobilekit.export.backends.coreml:COREML")
BACKENDS.register("executorch", "mobilekit.export.backends.executorch:EXECUTORCH")
BACKENDS.register("onnx", "mobilekit.export.backends.onnx:ONNX")

__all__ = ["BACKENDS", "Backend"]
