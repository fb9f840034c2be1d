"""Decode and prefill speed of our artifacts at a real shape, beside the field's.

Every candidate runs in a process of its own; the processes take turns, one workload at a time, so
that a drift of the machine hits all alike. A ratio is the median over the rounds of the quotient
within one round. Weights are random: speed, size and memory do not depend on their values.

Candidates: our ``.onnx`` and ``.pte``, eager torch, ``torch.compile``, the graph of
onnxruntime-genai's own builder (which knows neither per-layer widths nor this MoE form), and
llama.cpp Q4_0: as its own tool makes it, and with the head in four bits too. The last two come
from PyPI into environments of their own under ``--work``.

    python benchmarks/decode.py                                  # Qwen3-0.6B's shape, int4
    python benchmarks/decode.py --shape moe --threads 2 --json decode.json
    python benchmarks/decode.py --shape small --rounds 2 --skip compile   # a minute, to try it
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peers
from decode_models import build, shapes

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json

HERE = Path(__file__).parent
CONTEXT = 512
BASE = "llama.cpp Q4_0"
HEADERS = ("candidate", "pp tok/s", "ratio", "tg tok/s", "ratio", "file MB", "peak MB", "made in s")


@dataclass
class Candidate:
    """One competitor: how its process is started, what its file is, and what was measured."""

    name: str
    command: list[str]
    file_bytes: int | None = None
    made_seconds: float | None = None
    made_peak_bytes: int | None = None
    note: str = ""
    is_ours: bool = True
    rounds: list[dict[str, int]] = field(default_factory=list)
    process: Any = field(default=None, repr=False)

    def start(self, log: Path) -> None:
        """Start the process and wait until its model is loaded."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=peers.surroundings(is_ours=self.is_ours),
        )
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{self.name} did not start; see {log}")

    def ask(self, prompt: int, new: int) -> dict[str, int]:
        """Have it run one repetition."""
        self.process.stdin.write(f"{prompt} {new}\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def lower(
    out: Path, shape: dict[str, Any], target: str, precision: str, context_length: int
) -> dict[str, Any]:
    """Lower a model of a shape in a process of its own; return its record, or an earlier one's."""
    record, job = out / "record.json", out / "job.json"
    if not record.is_file():
        out.mkdir(parents=True, exist_ok=True)
        asked = {
            "shape": shape,
            "target": target,
            "precision": precision,
            "context_length": context_length,
            "out": str(out),
            "record": str(record),
        }
        job.write_text(json.dumps(asked))
        console.status(f"lowering for {target} …")
        with (out / "log").open("w") as log:
            script = str(HERE / "decode_lower.py")
            subprocess.run([sys.executable, script, str(job)], check=True, stderr=log, stdout=log)
    made: dict[str, Any] = json.loads(record.read_text())
    return made


def lowered(args: argparse.Namespace, shape: dict[str, Any], target: str) -> Candidate:
    """Lower our artifact, or take the one that an earlier call left under ``--work``."""
    out = args.work / f"{args.shape}-{target}-{args.precision}"
    made = lower(out, shape, target, args.precision, CONTEXT)
    kind = {"onnx": "onnx", "executorch": "pte"}[target]
    candidate = worker(args, shape, f"ours {kind} {args.precision}", kind, made["file"])
    candidate.file_bytes, candidate.made_seconds = made["bytes"], made["seconds"]
    candidate.made_peak_bytes = made["peak_bytes"]
    return candidate


def worker(
    args: argparse.Namespace, shape: dict[str, Any], name: str, kind: str, path: str | None = None
) -> Candidate:
    """Return a candidate that ``decode_worker.py`` runs."""
    job = args.work / f"{args.shape}-{kind}-run.json"
    asked = {"kind": kind, "path": path, "shape": shape, "context_length": CONTEXT}
    job.write_text(json.dumps({**asked, "threads": args.threads}))
    return Candidate(name, [sys.executable, str(HERE / "decode_worker.py"), str(job)])


def candidates(args: argparse.Namespace, shape: dict[str, Any]) -> list[Candidate]:
    """Return every candidate that is asked for and can do this shape."""
    found = []
    if "llama" not in args.skip:
        found += [llama(args, shape, is_pure=False), llama(args, shape, is_pure=True)]
    found += [lowered(args, shape, t) for t in ("onnx", "executorch") if t not in args.skip]
    uniform = len(set(shape["widths"])) == 1 and not shape.get("num_experts")
    if "builder" not in args.skip and uniform:
        path = peers.genai_graph(args.work, args.shape, lambda: build(shape))
        item = worker(args, shape, "onnxruntime-genai builder int4", "builder", str(path))
        item.file_bytes = sum(p.stat().st_size for p in path.parent.glob("model.onnx*"))
        found.append(item)
    found += [
        worker(args, shape, f"torch {k}", k) for k in ("eager", "compile") if k not in args.skip
    ]
    return found


def llama(args: argparse.Namespace, shape: dict[str, Any], *, is_pure: bool) -> Candidate:
    """Return llama.cpp on a file of the same shape, as its tool makes it or all in Q4_0.

    By itself the tool stores the embedding, which is the head too, as Q6_K. llama.cpp refuses a
    Qwen3 whose layers differ in width: it then runs one of their mean width, which has as many
    weights.
    """
    widths = shape["widths"]
    mean = sum(widths) // len(widths)
    shape = {**shape, "widths": [mean] * len(widths)}
    python = peers.environment(args.work, "llama", ["llama-cpp-python", "gguf", "numpy"])
    script = str(HERE / "peers" / "run_llama.py")
    path = args.work / f"{args.shape}-q4_0{'-pure' if is_pure else ''}.gguf"
    if not path.is_file():
        described = path.with_suffix(".json")
        described.write_text(json.dumps({**shape, "is_pure": is_pure}))
        console.status("writing the GGUF …")
        subprocess.run(
            [str(python), script, "make", str(described), str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    command = [str(python), script, "run", str(path), str(CONTEXT), str(args.threads)]
    name = f"{BASE}, head too" if is_pure else BASE
    if len(set(widths)) > 1:
        name += f" (all {mean} wide)"
    return Candidate(name, command, file_bytes=path.stat().st_size, is_ours=False)


def measure(items: list[Candidate], args: argparse.Namespace) -> None:
    """Let the candidates take turns; the first round warms up and is thrown away."""
    for item in items:
        console.status(f"loading {item.name} …")
        item.start(args.work / f"{item.name.replace(' ', '-').replace('/', '-')}.log")
    with console.progress((args.rounds + 1) * len(items), "measuring") as bar:
        for number in range(args.rounds + 1):
            for item in items:
                answer = item.ask(args.prompt, args.new)
                if number:
                    item.rounds.append(answer)
                bar.advance(1, note=item.name)


def row(item: Candidate, base: Candidate, args: argparse.Namespace) -> list[str]:
    """Return the table's row of a candidate."""

    def speed(key: str, tokens: int) -> str:
        return f"{statistics.median(tokens / r[key] * 1e9 for r in item.rounds):.1f}"

    def ratio(key: str) -> str:
        pairs = zip(base.rounds, item.rounds, strict=True)
        return f"{statistics.median(theirs[key] / ours[key] for theirs, ours in pairs):.2f}"

    def megabytes(count: int | None) -> str:
        return "–" if count is None else f"{count / 1e6:.0f}"

    made = "–" if item.made_seconds is None else f"{item.made_seconds:.0f}"
    return [
        item.name,
        *(speed("prefill_ns", args.prompt), ratio("prefill_ns")),
        *(speed("decode_ns", args.new), ratio("decode_ns")),
        megabytes(item.file_bytes),
        megabytes(item.rounds[-1]["peak_bytes"]),
        made,
    ]


def parse() -> argparse.Namespace:
    """Return the options."""
    text = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(shapes()), default="qwen3-0.6b")
    parser.add_argument("--precision", default="int4", help="of our artifacts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens after it")
    parser.add_argument("--work", type=Path, default=Path("runs/decode"), help="kept files")
    parser.add_argument("--skip", nargs="*", default=[], help="llama builder eager compile onnx …")
    parser.add_argument("--json", type=Path, help="write every sample here")
    return parser.parse_args()


def main() -> None:
    """Make what is missing, measure, print the table."""
    args = parse()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    items = candidates(args, shapes()[args.shape])
    try:
        measure(items, args)
    finally:
        for item in items:
            item.stop()
    base = next((item for item in items if item.name.startswith(BASE)), items[0])
    console.emit(
        f"{args.shape}, {args.threads} threads, pp{args.prompt}, tg{args.new}, median of "
        f"{args.rounds} rounds; ratios to {base.name}; {platform.machine()}"
    )
    console.table(HEADERS, [row(item, base, args) for item in items])
    if args.json:
        told = [{k: v for k, v in asdict_(item).items() if k != "process"} for item in items]
        atomic_write_json(args.json, {"shape": args.shape, "threads": args.threads, "runs": told})


def asdict_(item: Candidate) -> dict[str, Any]:
    """Return a candidate as plain values, without its process."""
    item.process = None
    return asdict(item)


if __name__ == "__main__":
    main()
