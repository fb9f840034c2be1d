"""Build a bundle: every target and precision of one checkpoint, run and compared, in one place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import atomic_directory
from mobilekit.core.needs import Need, check_needs
from mobilekit.core.optional import require_distribution
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.models import checkpoint_hash, load, max_positions, require_tokenizer, resolve
from mobilekit.models.families import Phase, StateForm, family_for_class, family_of
from mobilekit.models.inspect import class_name, read_config
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.manifest import LayerPrecision, Manifest

from . import vectors as parity_vectors
from .backends import BACKENDS
from .facts import model_facts
from .job import Job, Outcome
from .offers import check_offered
from .pool import run_jobs
from .precision import Precision, check_overrides, weight_layers
from .preflight import ExportPlan, facts_of, places, plan_export
from .seal import VECTORS_FILE, seal

if TYPE_CHECKING:
    from torch import nn

TARGETS = ("executorch", "onnx", "coreml")
PRECISIONS = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class _Request:
    checkpoint: Path
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    context_length: int
    overrides: tuple[tuple[str, LayerPrecision], ...]


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    targets: Sequence[str] = TARGETS,
    precisions: Sequence[str] = ("fp32", "int8"),
    context_length: int = 512,
    overrides: Mapping[str, LayerPrecision] | None = None,
    recipe: dict[str, Any] | None = None,
    ignore_estimates: bool = False,
) -> Manifest:
    """Export a checkpoint to a bundle directory, every artifact verified.

    An artifact whose parity fails is in the bundle with ``passed`` false; the caller decides.

    Args:
        checkpoint: Checkpoint directory or "embedded"; it needs a tokenizer.
        out: Bundle directory to create.
        targets: Of ``executorch``, ``onnx``, ``coreml``.
        precisions: Of ``fp32``, ``fp16``, ``int8``, ``int4``; what each target has differs.
        context_length: Positions that the key-value cache holds.
        overrides: Precision of single layers of the quantized artifacts: a shell-style pattern
            over layer paths ("lm_head", "model.layers.0.*") to "float", "int8" or "int4"; the
            first that matches wins.
        recipe: The recipe that led here, kept in the manifest.
        ignore_estimates: Go on, with a warning, where memory or disk is estimated not to suffice.

    Raises:
        UsageError: Unknown target or precision, an override that matches no layer, a context
            that the model does not have, or memory or disk that is estimated not to suffice.
        InvalidInputError: A damaged checkpoint, or one without a tokenizer.
        UnsupportedModelError: A class that no program can be captured of.
        MissingDependencyError: A target whose packages are not installed.
    """
    request = _check(checkpoint, targets, precisions, context_length, overrides or {})
    plan = _plan(request)
    check_needs([plan.need], places(Path(out)), ignore_estimates=ignore_estimates)
    model = load(request.checkpoint, device="cpu", dtype="float32")
    _check_overrides(model, request)
    with atomic_directory(Path(out)) as bundle:
        vectors = _record_vectors(model, request)
        parity_vectors.write(vectors, bundle / VECTORS_FILE)
        del model
        scratch = bundle / ".work"
        outcomes = _make_artifacts(request, plan, bundle, scratch)
        for name in outcomes:
            answer = scratch / f"{name}.safetensors"
            vectors.same[name] = parity_vectors.read_answer(answer)
        parity_vectors.write(vectors, bundle / VECTORS_FILE)
        shutil.rmtree(scratch)
        return seal(request.checkpoint, bundle, context_length, outcomes, recipe)


def prepare(
    checkpoint: str | Path,
    *,
    targets: Sequence[str] = TARGETS,
    precisions: Sequence[str] = ("fp32", "int8"),
    context_length: int = 512,
) -> ExportPlan:
    """Check a request, and estimate what it needs; nothing is exported.

    Args:
        checkpoint: As for :func:`build`, like the others.
        targets: Targets.
        precisions: Precisions.
        context_length: Positions that the key-value cache holds.

    Raises:
        MobileKitError: As :func:`build`, as far as the checkpoint's headers tell.
    """
    return _plan(_check(checkpoint, targets, precisions, context_length, {}))


def _plan(request: _Request) -> ExportPlan:
    check_context(request.checkpoint, request.context_length)
    facts = facts_of(request.checkpoint)
    return plan_export(facts, request.targets, request.precisions, request.context_length)


def _check(
    checkpoint: str | Path,
    targets: Sequence[str],
    precisions: Sequence[str],
    context_length: int,
    overrides: Mapping[str, LayerPrecision],
) -> _Request:
    if not targets or not precisions:
        raise UsageError("nothing to export", hint="Name at least one target and one precision.")
    check_offered(targets, precisions)
    for target in targets:
        backend = BACKENDS.get(target)
        for package in backend.packages:
            require_distribution(package, extra=backend.extra)
    path = resolve(checkpoint)
    family_for_class(class_name(path, read_config(path))).check_exportable()
    require_tokenizer(path)
    return _Request(
        path, tuple(targets), tuple(precisions), context_length, tuple(overrides.items())
    )


def check_context(checkpoint: Path, context_length: int) -> None:
    """Refuse a context that the model has no positions for.

    Raises:
        UsageError: With both numbers.
    """
    most = max_positions(checkpoint)
    if context_length < 8 or (most is not None and context_length > most):
        room = "8 and more" if most is None else f"8 to {most}"
        raise UsageError(
            f"context length {context_length} was asked for, but the model has positions for "
            f"{room}",
            hint=f"Choose a context length of {room}: --context-length, or "
            "export.context_length in a recipe.",
        )


def _check_overrides(model: nn.Module, request: _Request) -> None:
    if not request.overrides:
        return
    phase = Phase("forward", StateForm.RESIDENT, request.context_length)
    program = family_of(model).export_program(model, phase)
    check_overrides(dict(request.overrides), weight_layers(program))


def _record_vectors(model: nn.Module, request: _Request) -> parity_vectors.Vectors:
    new_tokens = min(parity_vectors.NEW_TOKENS, request.context_length // 2)
    prompts = _prompts(request, new_tokens)
    console.detail(f"  eager continues {len(prompts)} prompts by {new_tokens} tokens")
    return parity_vectors.record(TorchRuntime(model), prompts, new_tokens)


def _prompts(request: _Request, new_tokens: int) -> list[list[int]]:
    """Cut prompts of different lengths out of the held-out text, the last one a long one."""
    from mobilekit.data.corpora import heldout_text

    tokenizer = load_tokenizer(request.checkpoint)
    text = heldout_text()
    count = parity_vectors.NUM_PROMPTS - 1
    longest = max(1, min(48, request.context_length // 2))
    prompts = []
    for i in range(count):
        start = i * len(text) // count
        ids = tokenizer.encode(text[start : start + 16 * longest])
        prompts.append(ids[: max(1, longest * (i + 1) // count)])
    # the last token that is generated is never fed
    full = min(request.context_length - new_tokens + 1, parity_vectors.LONGEST_PROMPT)
    return [*prompts, tokenizer.encode(text[: 16 * full])[:full]]


def artifact_id(target: str, precision: Precision) -> str:
    """Return the id of an artifact: target, back end, precision."""
    mixed = "-mixed" if precision.is_mixed else ""
    return f"{target}-{BACKENDS.get(target).backend}-{precision.name}{mixed}"


def _make_artifacts(
    request: _Request, plan: ExportPlan, bundle: Path, scratch: Path
) -> dict[str, tuple[Job, Outcome]]:
    threads = max(1, (os.cpu_count() or 1) // plan.workers)
    made = [
        _job(request, target, precision, bundle, scratch, threads, need)
        for target, precision, need in plan.artifacts
    ]
    jobs = {Path(job.out).name: job for job in made}
    with console.progress(len(jobs), "lower and verify") as bar:

        def on_done(name: str, outcome: Outcome) -> None:
            bar.advance(1, note=name)
            console.status(f"  {name:30} {_summary(outcome)}")

        outcomes = run_jobs(jobs, workers=plan.workers, on_done=on_done)
    ordered = sorted(jobs, key=lambda name: _order(jobs[name]))
    return {name: (jobs[name], outcomes[name]) for name in ordered}


def _order(job: Job) -> tuple[int, int]:
    return TARGETS.index(job.target), PRECISIONS.index(job.precision)


def _summary(outcome: Outcome) -> str:
    assert outcome.lowered is not None
    assert outcome.parity is not None
    parity = outcome.parity
    took = "cached" if outcome.cached else f"{outcome.lowered.seconds:.1f} s"
    if not parity.executed or parity.against_same is None:
        return f"{took:>8}   not run: {parity.reason}"
    verdict = "ok" if parity.passed else f"FAILED at {parity.first_diverging_layer}"
    error, top1 = parity.against_same.max_abs, parity.against_same.top1
    return f"{took:>8}   parity max|Δ| {error:.1e}, top-1 {top1:.1%}   {verdict}"


def _job(
    request: _Request,
    target: str,
    precision: str,
    bundle: Path,
    scratch: Path,
    threads: int,
    need: Need,
) -> Job:
    overrides = request.overrides if Precision(precision).is_quantized else ()
    name = artifact_id(target, Precision(precision, overrides))
    facts = model_facts(request.checkpoint)
    return Job(
        checkpoint=str(request.checkpoint.resolve()),
        checkpoint_hash=checkpoint_hash(request.checkpoint),
        target=target,
        precision=precision,
        overrides=overrides,
        context_length=request.context_length,
        vectors=str((bundle / VECTORS_FILE).resolve()),
        out=str((bundle / name).resolve()),
        answer=str((scratch / f"{name}.safetensors").resolve()),
        outcome=str((scratch / f"{name}.json").resolve()),
        threads=threads,
        bos_token_id=facts.bos_token_id,
        eos_token_ids=facts.eos_token_ids,
        pad_token_id=facts.pad_token_id,
        estimated_peak_bytes=need.memory_bytes,
    )
