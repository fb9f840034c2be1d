"""optimum-executorch's side of ``peers_export.py``: its XNNPACK recipe, its own model class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import side
import torch
from numpy.typing import NDArray

os.environ["HF_HUB_OFFLINE"] = "1"

# what its README recommends for a phone's processor; 4-bit embedding, because ours has it too
FLOAT: dict[str, Any] = {"use_custom_sdpa": True, "use_custom_kv_cache": True}
FOUR_BITS = {**FLOAT, "qlinear": "8da4w", "qembedding": "4w"}


class _Runner:
    """``ExecuTorchModelForCausalLM``, whose state the runtime keeps.

    A program takes no more tokens at once than it was exported for (with a sliding window, one
    less than the window), so that a longer prompt goes in by parts.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._most = model.model.method_meta("forward").input_tensor_meta(1).sizes()[0]

    def reset(self) -> None:
        """Positions start again at 0; what the cache holds after them is masked."""

    def forward(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        for start in range(0, len(tokens), self._most):
            part = torch.from_numpy(tokens[start : start + self._most])
            first = position + start
            logits = self._model.forward(
                input_ids=part[None], cache_position=torch.arange(first, first + len(part))
            )
        return logits[0, -1].float().numpy()


class OptimumExecutorch:
    """fp32, or ``8da4w`` linears with a 4-bit embedding; custom attention and cache."""

    distributions = ("optimum-executorch", "transformers", "torch", "executorch", "torchao")

    def make(self, job: side.Job) -> list[Path]:
        """Write ``model.pte``."""
        from optimum.exporters.executorch import main_export

        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        main_export(
            model_name_or_path=job["checkpoint"],
            task="text-generation",
            recipe="xnnpack",
            output_dir=out,
            max_seq_len=job["context_length"],
            **(FOUR_BITS if job["precision"] == "int4" else FLOAT),
        )
        return [*out.glob("*.pte"), *out.glob("*.ptd")]

    def open(self, job: side.Job) -> side.Runner:
        """Open it with its own model class, threads set."""
        from executorch.extension.pybindings import portable_lib
        from optimum.executorch import ExecuTorchModelForCausalLM

        portable_lib._unsafe_reset_threadpool(job["threads"])
        return _Runner(side.quiet(lambda: ExecuTorchModelForCausalLM.from_pretrained(job["out"])))


if __name__ == "__main__":
    side.main(OptimumExecutorch())
