"""Which form of a mixture-of-experts layer to export: measured, not assumed.

Forms of the same weights and the same result:

* ``linears``: ``StaticMoE``, every expert computed for every token in two linears, the routing
  weights multiplied in between (E / k times the arithmetic);
* ``batched_mm``: transformers' own exportable form, which gathers the weights of the chosen
  experts for each token and multiplies those (memory traffic for each token of a prompt); its
  expert tensors stay float32, as no quantizer reaches them;
* ``sparse``: ONNX Runtime's ``QMoE``, few-bit experts of which only the chosen ones compute.

Runs of all candidates are interleaved, so that a drift of the machine hits them alike; every sample
is kept with ``--json``.

The exporter uses ``sparse`` for few-bit files in ONNX Runtime and ``linears`` for all else. Seen on
x86-64, one thread of a busy machine, as ratios to ``batched_mm``: ``sparse`` prefills 5 times as
fast at the embedded shape and 19 times at the larger one, and decodes 2.6 and 20 to 28 times as
fast; ``linears`` prefills 3.1 to 6.1 times as fast, and decodes 0.13 to 0.22 times as fast in fp32
and 0.7 to 1.2 times in few bits. In ExecuTorch, lowering also fixes ``batched_mm`` to one length.

    python benchmarks/moe_form.py
    python benchmarks/moe_form.py --executorch --json moe_form.json
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from mobilekit.export.backends.onnx import write
from mobilekit.export.backends.onnx.layers import BlockLinear
from mobilekit.export.backends.onnx.moe import block_experts
from mobilekit.export.backends.onnx.scheme import BITS, block_size, quantize_blocks
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.models.families import Phase, StateForm, family_of

PREFILL, DECODE = 128, 1  # tokens in one call
HEADERS = (
    *("shape", "runtime", "precision", "form", f"pp{PREFILL} tok/s", "tg tok/s"),
    *("pp ratio", "tg ratio", "at precision %", "file MB", "error"),
)


@dataclass(frozen=True)
class Shape:
    """Shape of the layers: hidden size D, expert width F, experts E, experts a token k."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    num_layers: int


SHAPES = (
    Shape("embedded", 128, 96, 16, 2, 4),
    Shape("larger", 512, 256, 32, 4, 2),
)


class Stack(nn.Module):
    """Sparse blocks one after another with residual sums, and nothing else of a model."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(blocks)
        routing: Any = getattr(blocks[0], "routing", None)
        router = routing.linear if routing is not None else blocks[0].get_submodule("gate")
        self.hidden_size = int(router.weight.shape[1])
        self.eval()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden states of the shape of the input, (1, S, D)."""
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


@dataclass
class Candidate:
    """One form at one precision in one runtime, and its samples in nanoseconds."""

    shape: str
    runtime: str
    form: str
    precision: str
    share: float
    file_bytes: int
    max_error: float
    call: Callable[[Any], Any] = field(repr=False)
    samples: dict[int, list[int]] = field(default_factory=lambda: {PREFILL: [], DECODE: []})

    def tokens_per_s(self, length: int) -> float:
        """Return tokens a second of the median call of ``length`` tokens."""
        return length * 1e9 / statistics.median(self.samples[length])

    def record(self) -> dict[str, Any]:
        """Return everything but the callable, as JSON values."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("call", "samples")}
        return {**fields, "samples_ns": {str(k): v for k, v in self.samples.items()}}


def stacks(shape: Shape) -> dict[str, Stack]:
    """Return the two forms of the same random layers."""
    torch.manual_seed(0)
    config_class: Any = Qwen3MoeConfig  # its declared signature lacks some of its fields
    config = config_class(
        vocab_size=32,
        hidden_size=shape.hidden_size,
        moe_intermediate_size=shape.intermediate_size,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        norm_topk_prob=True,
    )
    model: Any = Qwen3MoeForCausalLM(config)
    model.eval().requires_grad_(False)
    phase = Phase("forward", StateForm.EXPLICIT, PREFILL)
    body: Any = family_of(model).export_program(model, phase).module
    linears = Stack([layer.mlp for layer in body.model.model.layers])
    model.set_experts_implementation("batched_mm")
    return {"linears": linears, "batched_mm": Stack([layer.mlp for layer in model.model.layers])}


def onnx_candidates(shape: Shape, threads: int, folder: Path) -> list[Candidate]:
    """Export the forms to ONNX: two in fp32, and two at each few-bit precision."""
    forms = [("fp32", form, stack) for form, stack in stacks(shape).items()]
    for precision in BITS:
        linears = stacks(shape)["linears"]
        sparse = [block_experts(block, precision, precision) for block in linears.blocks]
        forms.append((precision, "linears", _quantized(linears, precision)))
        forms.append((precision, "sparse", Stack([block for block in sparse if block])))
    made = []
    for precision, form, stack in forms:
        path = folder / f"{shape.name}-{form}-{precision}.onnx"
        path.write_bytes(_export_onnx(stack))
        call = _session(path, threads)
        share = write.weight_record(path, precision).share_at_precision
        size, error = path.stat().st_size, _error(stack, call, shape)
        made.append(Candidate(shape.name, "onnxruntime", form, precision, share, size, error, call))
    return made


def _quantized(stack: Stack, precision: str) -> Stack:
    """Return the stack with its linears in few-bit blocks, routers excepted."""
    bits = BITS[precision]
    for block in stack.blocks:
        for name in ("gate_up", "down"):
            weight = block.get_submodule(name).weight
            blocks = quantize_blocks(weight, bits, block_size(weight.shape[1], bits))
            block.set_submodule(name, BlockLinear(blocks, None))
    return stack


def _export_onnx(stack: Stack) -> bytes:
    hidden = torch.zeros(1, 3, stack.hidden_size)
    seq = torch.export.Dim("seq", min=1, max=512)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        exported: Any = torch.onnx.export(
            stack,
            (hidden,),
            dynamo=True,
            opset_version=21,
            dynamic_shapes=({1: seq},),
            input_names=["hidden"],
            output_names=["output"],
            verbose=False,
        )
    model: bytes = exported.model_proto.SerializeToString()
    return model


def _session(path: Path, threads: int) -> Callable[[Any], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda hidden: session.run(None, {"hidden": hidden})[0]


def executorch_candidates(shape: Shape, threads: int, folder: Path) -> list[Candidate]:
    """Lower both forms to ExecuTorch with XNNPACK, in fp32.

    One program a length, for both: lowering fixes the length of ``batched_mm`` to its example's.
    """
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
    made = []
    for form, stack in stacks(shape).items():
        paths = {n: folder / f"{shape.name}-{form}-{n}.pte" for n in (PREFILL, DECODE)}
        for length, path in paths.items():
            _lower_executorch(stack, torch.zeros(1, length, shape.hidden_size), path)
        call = _method(paths)
        size, error = paths[DECODE].stat().st_size, _error(stack, call, shape)
        made.append(Candidate(shape.name, "executorch", form, "fp32", 1.0, size, error, call))
    return made


def _lower_executorch(stack: Stack, example: Tensor, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(stack, (example,), strict=False)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _method(paths: dict[int, Path]) -> Callable[[Any], Any]:
    from executorch.runtime import Runtime

    loaded = {n: Runtime.get().load_program(path) for n, path in paths.items()}
    methods = {n: program.load_method("forward") for n, program in loaded.items()}
    return lambda hidden: methods[hidden.shape[1]].execute([torch.from_numpy(hidden)])[0].numpy()


def _input(shape: Shape, length: int) -> Any:
    rng = np.random.default_rng(length)
    return rng.normal(size=(1, length, shape.hidden_size)).astype(np.float32)


def _error(stack: Stack, call: Callable[[Any], Any], shape: Shape) -> float:
    """Return the largest error against eager, relative to the largest value that was added."""
    hidden = _input(shape, PREFILL)
    with torch.no_grad():
        expected = stack(torch.from_numpy(hidden)).numpy()
    return float(np.abs(call(hidden) - expected).max() / np.abs(expected - hidden).max())


def measure(candidates: list[Candidate], shape: Shape, repetitions: int) -> None:
    """Time every candidate once a round, for as many rounds; two rounds warm up."""
    for length, calls in ((PREFILL, 1), (DECODE, 16)):
        hidden = _input(shape, length)
        for round_number in range(-2, repetitions):
            for candidate in candidates:
                start = time.perf_counter_ns()
                for _ in range(calls):
                    candidate.call(hidden)
                elapsed = (time.perf_counter_ns() - start) // calls
                if round_number >= 0:
                    candidate.samples[length].append(elapsed)


def show(candidates: list[Candidate]) -> None:
    """Print the table; a ratio is over ``batched_mm`` in fp32, all that it comes in."""
    base = {(c.shape, c.runtime): c for c in candidates if c.form == "batched_mm"}
    rows = []
    for item in candidates:
        other = base[item.shape, item.runtime]
        rows.append(
            [
                item.shape,
                item.runtime,
                item.precision,
                item.form,
                *(f"{item.tokens_per_s(n):.0f}" for n in (PREFILL, DECODE)),
                *(f"{item.tokens_per_s(n) / other.tokens_per_s(n):.2f}" for n in (PREFILL, DECODE)),
                f"{100 * item.share:.1f}",
                f"{item.file_bytes / 1e6:.2f}",
                f"{item.max_error:.1e}",
            ]
        )
    console.table(
        HEADERS,
        rows,
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare two forms of a mixture of experts.")
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--executorch", action="store_true", help="also lower to ExecuTorch")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    candidates = []
    with tempfile.TemporaryDirectory() as name:
        for shape in SHAPES:
            console.status(f"exporting and measuring the {shape.name} shape")
            group = onnx_candidates(shape, options.threads, Path(name))
            if options.executorch:
                group += executorch_candidates(shape, options.threads, Path(name))
            measure(group, shape, options.repetitions)
            candidates += group
    show(candidates)
    if options.json:
        record = {
            "machine": platform.machine(),
            "threads": options.threads,
            "versions": {"onnxruntime": onnxruntime.__version__, "torch": str(torch.__version__)},
            "shapes": [asdict(shape) for shape in SHAPES],
            "candidates": [candidate.record() for candidate in candidates],
        }
        atomic_write_json(options.json, record)


if __name__ == "__main__":
    main()
