"""One candidate of ``decode.py`` in a process of its own.

Protocol: prints ``ready`` once the model is loaded and has run once; then answers each line
``PROMPT NEW`` on stdin with one JSON line: nanoseconds of the prompt, nanoseconds of the new tokens
after it, and the peak memory of this process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers.side import repetition

from mobilekit.profile.meters.memory import memory_meter
from mobilekit.runtime import RUNTIMES, TokenLogits
from mobilekit.runtime.base import Logits, Tokens


class BuilderGraph:
    """A graph of onnxruntime-genai's builder, past and present in one buffer as its runner does."""

    name = version = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        context_length: int,
        vocab_size: int,
        threads: int,
        cache: tuple[int, int],
    ) -> None:
        import onnxruntime

        self.context_length, self.vocab_size = context_length, vocab_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._binding = self._session.io_binding()
        self._buffers: list[Any] = []
        self._ones = np.ones((1, context_length), dtype=np.int64)
        self._slots = np.arange(context_length, dtype=np.int64)[None]
        for spec in self._session.get_inputs():
            if spec.name.startswith("past"):
                heads, head_dim = cache
                zeros = np.zeros((1, heads, context_length, head_dim), dtype=np.float32)
                buffer = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
                self._buffers.append(buffer)  # a binding does not keep it alive in every version
                self._binding.bind_ortvalue_input(spec.name, buffer)
                present = spec.name.replace("past_key_values", "present")
                self._binding.bind_ortvalue_output(present, buffer)

    def reset(self) -> None:
        """Forget everything: rows past the position are never read."""

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,)."""
        end = position + len(tokens)
        self._binding.bind_cpu_input("input_ids", tokens[None])
        self._binding.bind_cpu_input("attention_mask", self._ones[:, :end])
        if "position_ids" in self._inputs:
            self._binding.bind_cpu_input("position_ids", self._slots[:, position:end])
        self._binding.bind_output("logits")
        self._session.run_with_iobinding(self._binding)
        logits: Logits = self._binding.get_outputs()[-1].numpy()
        return logits[0, -1]


def open_torch(shape: dict[str, Any], *, threads: int, is_compiled: bool) -> TokenLogits:
    """Return eager torch, or its decode step compiled, on random float32 weights."""
    import torch
    from decode_models import build

    from mobilekit.runtime.torch import TorchRuntime

    torch.set_num_threads(threads)
    model = build(shape)
    if is_compiled:
        model.forward = torch.compile(model.forward, dynamic=True)  # type: ignore[method-assign]
    return TorchRuntime(model)


def open_candidate(job: dict[str, Any]) -> TokenLogits:
    """Open what the job names."""
    shape, threads = job["shape"], job["threads"]
    if job["kind"] in ("eager", "compile"):
        return open_torch(shape, threads=threads, is_compiled=job["kind"] == "compile")
    common = {"context_length": job["context_length"], "vocab_size": shape["vocab_size"]}
    if job["kind"] == "builder":
        cache = (shape["num_key_value_heads"], shape["head_dim"])
        return BuilderGraph(Path(job["path"]), threads=threads, cache=cache, **common)
    return RUNTIMES.get(job["kind"])(Path(job["path"]), threads=threads, **common)


def main() -> None:
    """Serve one candidate until stdin ends."""
    runtime, meter = open_candidate(json.loads(Path(sys.argv[1]).read_text())), memory_meter()
    repetition(runtime, 4, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        prompt, new = map(int, line.split())
        answer: dict[str, int | None] = {**repetition(runtime, prompt, new)}
        print(json.dumps({**answer, "peak_bytes": meter.peak()}), flush=True)


if __name__ == "__main__":
    main()
