"""llama.cpp at a given shape: write a GGUF with random weights, quantize it, run it.

Runs in an environment of its own (``llama-cpp-python`` and ``gguf`` from PyPI) and imports nothing
of MobileKit. Speed does not depend on the weights' values, so they need not be those of the others.

    python run_llama.py make SHAPE.json MODEL.gguf
    python run_llama.py run MODEL.gguf CONTEXT THREADS      # protocol: see ../decode_worker.py
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lc
import numpy as np

Q4_0 = 2  # llama.cpp's number of the file type
F16 = 1


def make(shape: dict[str, Any], out: Path) -> None:
    """Write ``out`` as Q4_0; embedding and tied head too if the shape says ``is_pure``."""
    half = out.with_suffix(".f16.gguf")
    _write_half(shape, half)
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = Q4_0, os.cpu_count() or 1, shape["is_pure"]
    code = lc.llama_model_quantize(str(half).encode(), str(out).encode(), params)
    half.unlink()
    if code:
        raise SystemExit(f"llama.cpp could not quantize (code {code})")


def _write_half(shape: dict[str, Any], path: Path) -> None:
    experts = shape.get("num_experts", 0)
    writer = gguf.GGUFWriter(str(path), "qwen3moe" if experts else "qwen3")
    layers, hidden, dim = shape["num_hidden_layers"], shape["hidden_size"], shape["head_dim"]
    writer.add_block_count(layers)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(shape["widths"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(F16)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(shape["vocab_size"])
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(shape["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(shape["widths"][0])
    for name, size in _tensors(shape).items():
        is_norm = len(size) == 1
        writer.add_tensor(name, np.ones(size, np.float32) if is_norm else _random(size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random(size: tuple[int, ...]) -> Any:
    generator = np.random.default_rng(size[-1])
    return (generator.standard_normal(size, dtype=np.float32) * 0.02).astype(np.float16)


def _tensors(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, rows first, as numpy has them."""
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    queries, keys = (shape[k] * dim for k in ("num_attention_heads", "num_key_value_heads"))
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape["vocab_size"], hidden),
        "output_norm.weight": (hidden,),
    }
    for layer, width in enumerate(shape["widths"]):
        sizes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("attn_norm", "ffn_norm"), (hidden,)),
            **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (dim,)),
            "attn_q": (queries, hidden),
            **dict.fromkeys(("attn_k", "attn_v"), (keys, hidden)),
            "attn_output": (hidden, queries),
        }
        if experts := shape.get("num_experts", 0):
            sizes["ffn_gate_inp"] = (experts, hidden)
            sizes |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (experts, width, hidden))
            sizes["ffn_down_exps"] = (experts, hidden, width)
        else:
            sizes |= dict.fromkeys(("ffn_gate", "ffn_up"), (width, hidden))
            sizes["ffn_down"] = (hidden, width)
        found |= {f"blk.{layer}.{name}.weight": size for name, size in sizes.items()}
    return found


class Model:
    """A loaded GGUF; ``forward`` gives the last token's logits."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        lc.llama_backend_init()
        self._log = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._log, ctypes.c_void_p(0))
        self._model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        params = lc.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        self._context = lc.llama_init_from_model(self._model, params)
        self._vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self._model))

    def reset(self) -> None:
        """Forget everything."""
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)

    def forward(self, tokens: list[int]) -> int:
        """Return the most likely next token."""
        array = (lc.llama_token * len(tokens))(*tokens)
        if lc.llama_decode(self._context, lc.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp could not decode")
        logits = lc.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())


def run(path: str, context: int, threads: int) -> None:
    """Answer each line ``PROMPT NEW`` with the nanoseconds of both phases and the peak memory."""
    model = Model(path, context, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        prompt, new = map(int, line.split())
        model.reset()
        start = time.perf_counter_ns()
        token = model.forward([1 + i % 97 for i in range(prompt)])
        between = time.perf_counter_ns()
        for _ in range(new):
            token = model.forward([token])
        end = time.perf_counter_ns()
        status = Path("/proc/self/status").read_text()
        peak = next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]
        answer = {"prefill_ns": between - start, "decode_ns": end - between}
        print(json.dumps({**answer, "peak_bytes": int(peak) * 1024}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
    else:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
