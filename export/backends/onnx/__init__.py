"""ONNX for ONNX Runtime: capture → fuse → quantize → write, in onnxruntime-genai's layout."""

from __future__ import annotations

from .backend import ONNX, OnnxBackend

__all__ = ["ONNX", "OnnxBackend"]
