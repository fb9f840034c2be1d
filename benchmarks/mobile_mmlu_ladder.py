"""A compression ladder on questions that a tiny model can answer: accuracy, size and latency.

**The questions are synthetic, not Mobile-MMLU**: invented persons, four kinds of invented facts,
2048 questions with one answer each, which the model saw in training (with other options). Training
makes a small Qwen3-MoE that answers far above chance: it goes on until facts and letters are
learnt, by one rule for every seed (``ladder_model``). Then AIMER removes 0 to 75 % of the experts,
without recovery, and every model is exported at three precisions. Each *exported artifact* is
asked all questions by the suite's own log-likelihood scorer, from CSV files with a key, and timed
by the profiler. Sizes are those of the files.

What is expected: more compression, fewer right answers. The script counts where that does not
hold: steps of a ladder on which accuracy rises and the exact McNemar test on the same questions
says that this is no chance. It reports them; nothing is tuned to avoid them.

    python benchmarks/mobile_mmlu_ladder.py --work ladder              # one seed
    python benchmarks/mobile_mmlu_ladder.py --work ladder --seeds 0 1 2 --json ladder.json

Interrupted, it goes on where ``--work`` ends. Train first, time later on an idle machine:
``--stop-after train``, ``export`` or ``evaluate``.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ladder_facts import blind_share, invented_facts, write_questions
from ladder_model import EXPERTS, SHAPE, STAGES_FILE, TOP_K, Recipe, train
from ladder_report import markdown, summary

import mobilekit as mk
from mobilekit.core import console
from mobilekit.core.files import atomic_write, atomic_write_json, read_json
from mobilekit.evaluate import make_config, run_on
from mobilekit.models import describe
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.result import Result

SPARSITIES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
PRECISIONS = ("fp32", "int8", "int4")
CONTEXT = 128
NEW_TOKENS = 32
FIGURE = Path(__file__).parent / "figures" / "mobile_mmlu_ladder.svg"
STAGES = ("train", "export", "evaluate", "profile")


@dataclass(frozen=True)
class Rung:
    """One level of pruning of one seed, and where it lies."""

    seed: int
    sparsity: float
    folder: Path

    @property
    def experts(self) -> int:
        """Experts that stay in a layer."""
        return EXPERTS - round(EXPERTS * self.sparsity)

    @property
    def checkpoint(self) -> Path:
        """The pruned checkpoint."""
        return self.folder / "checkpoint"

    @property
    def bundle(self) -> Path:
        """Its exported artifacts."""
        return self.folder / "bundle"

    def result(self, kind: str, artifact: str) -> Path:
        """Where a result of one artifact is kept."""
        return self.folder / "results" / f"{kind}-{artifact}.json"


def seed_folder(work: Path, seed: int) -> Path:
    """Return where all of one seed lies."""
    return work / f"seed-{seed}"


def rungs(args: argparse.Namespace) -> Iterator[Rung]:
    """Yield every rung of every seed."""
    for seed in args.seeds:
        for sparsity in SPARSITIES:
            name = f"sparsity-{sparsity:g}"
            yield Rung(seed, sparsity, seed_folder(args.work, seed) / name)


def prepare(args: argparse.Namespace, seed: int) -> None:
    """Write the questions of one seed and train its model."""
    folder = seed_folder(args.work, seed)
    facts = invented_facts(seed)
    write_questions(folder / "questions", facts, seed)
    if not (folder / "checkpoint").is_dir():
        train(folder / "checkpoint", folder, facts, seed, Recipe())


def compress(rung: Rung) -> None:
    """Prune with AIMER, and export at every precision."""
    dense = rung.folder.parent / "checkpoint"
    if not rung.checkpoint.is_dir():
        model = mk.load(dense, device="cpu")
        plan = mk.plan(model, "aimer", sparsity=rung.sparsity)
        mk.save(mk.apply(model, plan), rung.checkpoint)
    if not rung.bundle.is_dir():
        mk.export.build(
            rung.checkpoint,
            rung.bundle,
            targets=["onnx"],
            precisions=PRECISIONS,
            context_length=CONTEXT,
        )


def evaluate(rung: Rung, threads: int) -> None:
    """Ask every artifact all questions; the unpruned checkpoint too, run by torch."""
    questions = rung.folder.parent / "questions"
    settings = {"data": str(questions / "test"), "key": str(questions / "key.csv")}
    config = make_config("mobile_mmlu", settings)
    targets = [(rung.bundle, item.id) for item in open_bundle(rung.bundle).manifest.artifacts]
    if rung.sparsity == 0.0:
        targets.append((rung.checkpoint, "torch"))
    for source, name in targets:
        path = rung.result("evaluate", name)
        if not path.is_file():
            log = path.with_suffix(".answers")
            found = run_on(source, name, config, resume_file=log, threads=threads)
            atomic_write_json(path, found.to_json())


def profile(rung: Rung, args: argparse.Namespace) -> None:
    """Time every artifact: a prompt as long as the questions' mean, and decoding."""
    length = prompt_tokens(rung)
    for item in open_bundle(rung.bundle).manifest.artifacts:
        path = rung.result("profile", item.id)
        if path.is_file():
            continue
        found = mk.profile.run(
            rung.bundle,
            artifacts=[item.id],
            workloads=[f"pp{length}", f"tg{NEW_TOKENS}"],
            repetitions=args.repetitions,
            warmup=5,
            threads=args.threads,
        )
        atomic_write_json(path, [one.to_json() for one in found])


def prompt_tokens(rung: Rung) -> int:
    """Return the mean length of the questions' prompts, in tokens."""
    dense = rung.folder.parent / f"sparsity-{SPARSITIES[0]:g}"
    path = Rung(rung.seed, SPARSITIES[0], dense).result("evaluate", "torch")
    answered = Result.parse(json.loads(path.read_text()), str(path))
    return round(answered.workload.prompt_tokens / answered.workload.repetitions)


def records(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of every artifact of every seed, as plain JSON values."""
    found = []
    for rung in rungs(args):
        facts = describe(rung.checkpoint)
        for item in open_bundle(rung.bundle).manifest.artifacts:
            answers = json.loads(rung.result("evaluate", item.id).read_text())["metrics"]
            timed = json.loads(rung.result("profile", item.id).read_text())
            found.append(
                {
                    "seed": rung.seed,
                    "sparsity": rung.sparsity,
                    "experts": rung.experts,
                    "precision": item.precision,
                    "artifact": item.id,
                    "parity": item.parity.passed,
                    "parameters": facts["parameters"],
                    "bytes": item.total_bytes,
                    **{key: answers[key] for key in ("accuracy", "interval", "n", "correct")},
                    **{key: answers[key] for key in ("invalid_rate", "position", "correct_ids")},
                    "prefill_ms": timed[0]["metrics"]["ttft_ms"],
                    "decode_ms": timed[1]["metrics"]["tpot_ms"],
                    "memory": timed[0]["memory"],
                    "busy": [one["metrics"].get("other_work") for one in timed],
                }
            )
    return found


def dense_accuracies(args: argparse.Namespace) -> dict[str, Any]:
    """Return what each seed's unpruned checkpoint answers when torch runs it."""
    found = {}
    for rung in rungs(args):
        if rung.sparsity == 0.0:
            answers = json.loads(rung.result("evaluate", "torch").read_text())["metrics"]
            found[str(rung.seed)] = {key: answers[key] for key in ("accuracy", "interval", "n")}
    return found


def document(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured, with what it takes to repeat it."""
    variants = records(args)
    first = Rung(args.seeds[0], 0.0, seed_folder(args.work, args.seeds[0]) / "sparsity-0")
    return {
        "note": "synthetic four-option questions on invented facts; not Mobile-MMLU",
        "seeds": args.seeds,
        "shape": {**SHAPE, "experts": EXPERTS, "experts_per_token": TOP_K},
        "training": {
            **asdict(Recipe()),
            "seeds": {
                str(seed): read_json(seed_folder(args.work, seed) / STAGES_FILE)["stages"]
                for seed in args.seeds
            },
        },
        "prompt_tokens": prompt_tokens(first),
        "blind_share": blind_share(),
        "threads": args.threads,
        "machine": {"processor": platform.processor(), "system": platform.platform()},
        "versions": {"torch": torch.__version__, "mobilekit": mk.__version__},
        "torch_checkpoint": dense_accuracies(args),
        "variants": variants,
        "summary": summary(variants),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder that a run goes on from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1, help="of evaluation and profiling")
    parser.add_argument("--train-threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--stop-after", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages that are not done, then print the table and draw the figure."""
    args = parse(arguments)
    torch.set_num_threads(args.train_threads)
    last = STAGES.index(args.stop_after)
    for seed in args.seeds:
        prepare(args, seed)
    for stage, work in enumerate(
        (compress, lambda r: evaluate(r, args.threads), lambda r: profile(r, args)), start=1
    ):
        for rung in rungs(args) if stage <= last else ():
            console.status(f"{STAGES[stage]}: seed {rung.seed}, {rung.experts} experts a layer")
            work(rung)
    if last < len(STAGES) - 1:
        return
    from ladder_figure import figure

    found = document(args)
    if args.json:
        atomic_write_json(args.json, found)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.figure, figure(found))
    console.emit(markdown(found))


if __name__ == "__main__":
    main()
