"""optimum-onnx's side of ``peers_export.py``: its export, its quantizer, its own model class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import side
import torch
from numpy.typing import NDArray
from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForCausalLM, ORTQuantizer

os.environ["HF_HUB_OFFLINE"] = "1"


class _Runner:
    """``ORTModelForCausalLM`` with the past that it returned."""

    def __init__(self, model: ORTModelForCausalLM) -> None:
        self._model = model
        self.reset()

    def reset(self) -> None:
        self._past = None

    def forward(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer = self._model(
                input_ids=torch.from_numpy(tokens)[None],
                attention_mask=torch.ones(1, position + len(tokens), dtype=torch.long),
                past_key_values=self._past,
                use_cache=True,
            )
        self._past = answer.past_key_values
        return answer.logits[0, -1].numpy()


class OptimumOnnx:
    """fp32 by ``export=True``; int8 by its dynamic quantization for arm64, per channel."""

    distributions = ("optimum-onnx", "transformers", "torch", "onnxruntime")

    def make(self, job: side.Job) -> list[Path]:
        """Write ``model.onnx`` or ``model_quantized.onnx``."""
        out = Path(job["out"])
        exported = out / "fp32" if job["precision"] == "int8" else out
        model = ORTModelForCausalLM.from_pretrained(job["checkpoint"], export=True)
        model.save_pretrained(exported)
        if job["precision"] == "int8":
            quantizer = ORTQuantizer.from_pretrained(exported)
            scheme = AutoQuantizationConfig.arm64(is_static=False, per_channel=True)
            quantizer.quantize(save_dir=out, quantization_config=scheme)
        return [*out.glob("*.onnx"), *out.glob("*.onnx[_.]data")]

    def open(self, job: side.Job) -> side.Runner:
        """Open it with its own model class, threads set."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        name = "model_quantized.onnx" if job["precision"] == "int8" else "model.onnx"
        model = ORTModelForCausalLM.from_pretrained(
            job["out"], file_name=name, session_options=options, use_cache=True
        )
        return _Runner(model)


if __name__ == "__main__":
    side.main(OptimumOnnx())
