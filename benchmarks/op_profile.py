"""Where the time of an artifact goes, operator by operator, in prefill and in decode.

``.onnx`` by onnxruntime's profiler, ``.pte`` by ExecuTorch's event tracer, which sees into
XNNPACK's delegates. Times of one kind of operator are added up; a row gives the median over the
decode steps, or over the prefills. Shares are of what the operators take together.

    python benchmarks/op_profile.py BUNDLE --threads 2 --json ops.json      # all .onnx and .pte
    python benchmarks/op_profile.py WORK/qwen3-0.6b-onnx-int4/model.onnx    # as decode.py left it
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.runtime.base import TokenLogits
from mobilekit.schema.bundle import open_bundle

PREFILLS = 3
SHOWN = 0.005  # of a phase: smaller shares are left out of the table
Run = dict[str, tuple[int, float]]  # kind of operator -> (calls, microseconds)
_CONTAINERS = {"Method::execute", "DELEGATE_CALL", "OPERATOR_CALL"}  # events around other events


@dataclass(frozen=True)
class Row:
    """One kind of operator in one phase; microseconds are of one call of the program."""

    artifact: str
    phase: str
    operator: str
    calls: int
    microseconds: float
    share: float


def drive(runtime: TokenLogits, prompt: int, new: int) -> None:
    """Run ``PREFILLS`` prompts, then ``new`` single tokens after the last of them."""
    tokens = np.random.default_rng(0).integers(0, runtime.vocab_size, prompt + new)
    for _ in range(PREFILLS):
        runtime.reset()
        runtime.forward(tokens[:prompt], 0)
    for position in range(prompt, prompt + new):
        runtime.forward(tokens[position : position + 1], position)


def onnx_runs(path: Path, sizes: dict[str, Any], prompt: int, new: int) -> list[Run]:
    """Return what every call of an ``.onnx`` spent on each kind of operator."""
    import onnxruntime

    from mobilekit.runtime.onnx import OnnxRuntime

    with tempfile.TemporaryDirectory() as folder:

        class Profiled(OnnxRuntime):
            def _open(self, path: Path, threads: int | None) -> Any:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder, "ops"))
                providers = ["CPUExecutionProvider"]
                return onnxruntime.InferenceSession(str(path), options, providers=providers)

        runtime = Profiled(path, **sizes)
        drive(runtime, prompt, new)
        trace = json.loads(Path(runtime._session.end_profiling()).read_text(encoding="utf-8"))
    ends = sorted(e["ts"] + e["dur"] for e in trace if e["name"] == "model_run")
    found: list[dict[str, list[float]]] = [defaultdict(lambda: [0, 0.0]) for _ in ends]
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            entry = found[int(np.searchsorted(ends, event["ts"]))][event["args"]["op_name"]]
            entry[0] += 1
            entry[1] += event["dur"]
    return [_frozen(run) for run in found]


def pte_runs(path: Path, sizes: dict[str, Any], prompt: int, new: int) -> list[Run]:
    """Return what every call of a ``.pte`` spent in delegates and in each kind of operator."""
    from executorch.devtools import Inspector

    import mobilekit.runtime.executorch as executorch

    plain = executorch.load_program
    programs: list[Any] = []

    def traced(path: Path) -> Any:
        programs.append(plain(path, enable_etdump=True, debug_buffer_size=0))
        return programs[-1]

    executorch.load_program = traced
    try:
        drive(executorch.ExecutorchRuntime(path, **sizes), prompt, new)
    finally:
        executorch.load_program = plain
    with tempfile.TemporaryDirectory() as folder, console.native_silence():
        trace = str(Path(folder, "trace.etdp"))
        programs[0].write_etdump_result_to_file(trace, str(Path(folder, "values.bin")))
        inspector = Inspector(etdump_path=trace)
    found: list[dict[str, list[float]]] = [
        defaultdict(lambda: [0, 0.0]) for _ in range(PREFILLS + new)
    ]
    for block in inspector.event_blocks:
        for event in block.events:
            if event.perf_data is None or len(event.perf_data.raw) != len(found):
                continue  # loading, and constant methods
            if event.name in _CONTAINERS:
                continue
            kind = event.name.partition(" #")[0]  # numbered within a delegate
            for run, milliseconds in zip(found, event.perf_data.raw, strict=True):
                run[kind][0] += 1
                run[kind][1] += milliseconds * 1000
    return [_frozen(run) for run in found]


def _frozen(run: dict[str, list[float]]) -> Run:
    return {kind: (int(calls), microseconds) for kind, (calls, microseconds) in run.items()}


def rows(artifact: str, runs: list[Run]) -> Iterator[Row]:
    """Return the medians of both phases, the first prefill (which warms up) left out."""
    for phase, chosen in (("prefill", runs[1:PREFILLS]), ("decode", runs[PREFILLS:])):
        kinds = {kind for run in chosen for kind in run}
        spent = {k: statistics.median(run.get(k, (0, 0.0))[1] for run in chosen) for k in kinds}
        total = sum(spent.values())
        for kind in sorted(kinds, key=lambda k: -spent[k]):
            calls, _ = chosen[-1].get(kind, (0, 0.0))
            yield Row(artifact, phase, kind, calls, spent[kind], spent[kind] / total)


def artifacts(
    source: Path, context_length: int, vocab_size: int
) -> Iterator[tuple[str, Path, dict[str, int]]]:
    """Return (name, file, sizes) of a file, or of every ``.onnx`` and ``.pte`` of a bundle."""
    if source.suffix in MEASURE:
        sizes = {"context_length": context_length, "vocab_size": vocab_size}
        yield source.parent.name, source, sizes
        return
    bundle = open_bundle(source)
    sizes = {key: int(bundle.manifest.model[key]) for key in ("context_length", "vocab_size")}
    for item in bundle.manifest.artifacts:
        if f".{item.format}" in MEASURE:
            yield item.id, bundle.artifact_path(item), sizes


MEASURE: dict[str, Callable[..., list[Run]]] = {".onnx": onnx_runs, ".pte": pte_runs}


def line(row: Row) -> str:
    """Return one line of the table."""
    spent = f"{row.microseconds / 1000:9.3f} ms {row.share:6.1%}"
    return f"  {row.artifact:28} {row.operator:42} {row.calls:4} calls {spent}"


def main() -> None:
    """Profile the artifacts and print a table of each phase."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="+", help="bundles, .onnx and .pte files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prefill")
    parser.add_argument("--new", type=int, default=32, help="decode steps")
    parser.add_argument("--context-length", type=int, default=512, help="of a file")
    parser.add_argument("--vocab-size", type=int, default=151_936, help="of a file")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[Row] = []
    for source in args.sources:
        for name, path, sizes in artifacts(source, args.context_length, args.vocab_size):
            options = {**sizes, "threads": args.threads}
            found += rows(name, MEASURE[path.suffix](path, options, args.prompt, args.new))
    for phase in ("prefill", "decode"):
        print(f"\n{phase}, threads {args.threads}, prompt {args.prompt}")
        print(*(line(r) for r in found if r.phase == phase and r.share >= SHOWN), sep="\n")
    if args.json:
        atomic_write_json(args.json, [asdict(row) for row in found])


if __name__ == "__main__":
    main()
