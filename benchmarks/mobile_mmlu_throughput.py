"""Questions a second on Mobile-MMLU-like prompts: lm-eval's hf backend, and ours.

Every run is a process of its own that loads the model, warms up and answers all prompts once; the
candidates take turns, round by round. A ratio is the median over the rounds of the quotient within
one round, to lm-eval at the batch size that is best for it. Every letter is compared with
lm-eval's. The model has Qwen3-0.6B's shape and random weights: speed does not depend on them.

"of prefill" is the prompts' tokens a second, none of them padding, as a share of what one plain
forward pass reaches at the best of several shapes: without padding, and with the logits of the
last position only. It can exceed 100 %, since prompts share what they begin with.

Runs are kept under ``--work`` and not repeated. Processor seconds stand beside the clock's,
because they say what the clock cannot on a machine that others use.

    python benchmarks/mobile_mmlu_throughput.py --dtype float32 --json throughput.json
    python benchmarks/mobile_mmlu_throughput.py --small --rounds 1     # a minute, to try it
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peers
from decode import lower
from decode_models import build, shapes
from mobile_mmlu_questions import prompts

from mobilekit.core import console
from mobilekit.core.files import atomic_directory, atomic_write_json, sha256_json
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.models import embedded_path
from mobilekit.pipeline.state import code_hash
from mobilekit.runtime.prompts import plan_steps

WORKER = Path(__file__).parent / "mobile_mmlu_worker.py"
CONTEXT = 1024
PEER = "lm-eval hf"
HEADERS = (
    "candidate",
    "questions/s",
    "ratio",
    "per CPU s",
    "ratio",
    "tok/s",
    "of prefill",
    "letters",
    "peak MB",
)


@dataclass
class Candidate:
    """One way to answer: its job, and a record for each round."""

    name: str
    job: dict[str, Any]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it is lm-eval at some batch size."""
        return self.name.startswith(PEER)

    def seconds(self, clock: str) -> float:
        """Return the median over the rounds; ``clock`` is "ns" or "cpu_ns"."""
        return statistics.median(one[clock] for one in self.rounds) / 1e9


def checkpoint(args: argparse.Namespace, shape: dict[str, Any]) -> Path:
    """Write the model once, with the embedded model's tokenizer: it is a part of the vocabulary."""
    folder: Path = args.work / f"{args.shape}-{args.dtype}"
    if not folder.is_dir():
        import torch

        console.status("writing the checkpoint …")
        with atomic_directory(folder) as out:
            build(shape).to(getattr(torch, args.dtype)).save_pretrained(out)  # type: ignore[operator]
            for file in embedded_path().glob("tokenizer*.json"):
                shutil.copy(file, out)
    return folder


def candidates(args: argparse.Namespace, shape: dict[str, Any], asked: Path) -> list[Candidate]:
    """Return every candidate that is asked for."""
    common = {
        "checkpoint": str(checkpoint(args, shape)),
        "prompts": str(asked),
        "threads": args.threads,
        "dtype": args.dtype,
        "context_length": CONTEXT,
        "vocab_size": shape["vocab_size"],
        "memory_bytes": int(args.memory_gb * 1e9),
    }
    found = [
        Candidate(f"{PEER}, batch {size}", {**common, "kind": "lm-eval", "batch_size": size})
        for size in args.batch_sizes
    ]
    found.append(Candidate("ours, checkpoint", {**common, "kind": "torch"}))
    for target, kind in (("onnx", "onnx"), ("executorch", "pte")):
        if target not in args.skip:
            out = args.work / f"{args.shape}-{target}-{args.precision}-{CONTEXT}"
            path = lower(out, shape, target, args.precision, CONTEXT)["file"]
            job = {**common, "kind": kind, "path": path}
            found.append(Candidate(f"ours, {kind} {args.precision}", job))
    return found


def run(args: argparse.Namespace, candidate: Candidate, what: str, number: int) -> dict[str, Any]:
    """Return the record of one process, from an earlier call where it is there."""
    job = {**candidate.job, "what": what}
    texts = Path(job["prompts"]).read_text()
    code = WORKER.read_text() if candidate.is_peer else args.code
    name = f"run-{sha256_json([job, texts, code])[:12]}-{number}"
    record = args.work / f"{name}.json"
    if not record.is_file():
        described, log = args.work / f"{name}.job", args.work / f"{name}.log"
        described.write_text(json.dumps(job))
        before = os.getloadavg()[0]
        with log.open("w") as errors:
            done = subprocess.run(
                [sys.executable, str(WORKER), str(described)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={
                    **peers.surroundings(is_ours=True),
                    "OMP_NUM_THREADS": str(args.threads),
                    "TOKENIZERS_PARALLELISM": "false",
                },
            )
        if done.returncode:
            raise SystemExit(f"{candidate.name} failed; see {log}")
        told = json.loads(done.stdout.strip().splitlines()[-1])
        atomic_write_json(record, {**told, "load_before": before})
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def measure(args: argparse.Namespace, items: list[Candidate]) -> Candidate:
    """Find lm-eval's best batch size in one round, then let the rest take turns; return the best.

    The first round counts, for lm-eval as for ours: each process has warmed up by itself.
    """
    theirs = [item for item in items if item.is_peer]
    ours = [item for item in items if not item.is_peer]
    total = len(items) + (args.rounds - 1) * (1 + len(ours)) + len(ours)
    with console.progress(total, "measuring") as bar:

        def turn(item: Candidate, number: int) -> None:
            item.rounds.append(run(args, item, "answers", number))
            bar.advance(1, note=item.name)

        for item in items:
            turn(item, 0)
        best = min(theirs, key=lambda item: item.seconds(args.clock))
        for number in range(1, args.rounds):
            for item in (best, *ours):
                turn(item, number)
        for item in ours:
            item.rates = run(args, item, "rates", 0)["rates"]
            bar.advance(1, note=f"{item.name}, plain prefill")
    return best


def letters(one: dict[str, Any]) -> list[int]:
    """Return the chosen letter of each prompt, 0 to 3; the lowest of equal ones."""
    return [row.index(max(row)) for row in one["logprobs"]]


def row(item: Candidate, best: Candidate, count: int, tokens: int) -> list[str]:
    """Return the table's row of a candidate."""

    def speed(clock: str) -> list[str]:
        pairs = zip(best.rounds, item.rounds, strict=False)  # other batch sizes have one round
        ratio = statistics.median(theirs[clock] / own[clock] for theirs, own in pairs)
        return [f"{count / item.seconds(clock):.3f}", f"{ratio:.2f}"]

    same = sum(
        a == b for a, b in zip(letters(item.rounds[0]), letters(best.rounds[0]), strict=True)
    )
    return [
        item.name,
        *speed("ns"),
        *speed("cpu_ns"),
        f"{tokens / item.seconds('ns'):.0f}",
        share(item, tokens),
        f"{same}/{count}",
        f"{item.rounds[-1]['peak_bytes'] / 1e6:.0f}",
    ]


def share(item: Candidate, tokens: int) -> str:
    """Return the share of the plain prefill rate, by the clock and by processor time."""
    if not item.rates:
        return "–"
    told = []
    for clock in ("ns", "cpu_ns"):
        plain = max(_size(shape) / one[clock] * 1e9 for shape, one in item.rates.items())
        told.append(f"{tokens / item.seconds(clock) / plain:.0%}")
    return " / ".join(told)


def _size(shape: str) -> int:
    rows, length = map(int, shape.split("x"))
    return rows * length


def parse() -> argparse.Namespace:
    """Return the options."""
    text = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--precision", default="int4", help="of our artifacts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", nargs="+", default=[1, 2, 4, 8, 16, "auto"], type=_batch)
    parser.add_argument("--memory-gb", type=float, default=12.0, help="address space of lm-eval")
    parser.add_argument("--clock", choices=("ns", "cpu_ns"), default="ns", help="picks the best")
    parser.add_argument("--work", type=Path, default=Path("runs/mobile-mmlu"), help="kept files")
    parser.add_argument("--skip", nargs="*", default=[], help="onnx executorch")
    parser.add_argument("--small", action="store_true", help="a tiny model, 12 questions")
    parser.add_argument("--json", type=Path, help="write every sample here")
    args = parser.parse_args()
    args.shape = "small" if args.small else "qwen3-0.6b"
    if args.small:
        args.questions = 12
    return args


def _batch(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main() -> None:
    """Make what is missing, measure, print the table."""
    args = parse()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.code = code_hash()
    shape = shapes()[args.shape]
    tokenizer = load_tokenizer(embedded_path())
    texts = prompts(args.questions, tokenizer)
    asked = args.work / f"prompts-{args.questions}.json"
    atomic_write_json(asked, texts)
    ids = [tokenizer.encode(text) for text in texts]
    items = candidates(args, shape, asked)
    best = measure(args, items)
    report(args, items, best, ids)


def report(
    args: argparse.Namespace, items: list[Candidate], best: Candidate, ids: list[list[int]]
) -> None:
    """Print the table and write the samples."""
    import numpy as np

    lengths = sorted(map(len, ids))
    tokens = sum(lengths)
    steps = plan_steps([np.asarray(one) for one in ids])
    fed = sum(len(step.tokens) - step.start for step in steps)
    loads = [one["load_before"] for item in items for one in item.rounds]
    console.emit(
        f"{args.shape}, {args.dtype}, {args.threads} threads, {args.questions} prompts of "
        f"{lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}, {tokens} in "
        f"all, {fed} of them distinct), {args.rounds} rounds; ratios to {best.name}; "
        f"load average before the runs {min(loads):.1f} to {max(loads):.1f}; {platform.machine()}"
    )
    rows = [row(item, best, args.questions, tokens) for item in items]
    for line in (HEADERS, ["---"] * len(HEADERS), *rows):
        console.emit(f"| {' | '.join(line)} |")
    if args.json:
        told = {"tokens": tokens, "distinct_tokens": fed, "lengths": lengths, "best": best.name}
        settings = {k: str(v) for k, v in vars(args).items()}
        runs = [asdict(item) for item in items]
        atomic_write_json(args.json, {"settings": settings, **told, "runs": runs})


if __name__ == "__main__":
    main()
