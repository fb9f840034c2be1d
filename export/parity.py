"""Parity: does the artifact say what the checkpoint says?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilekit.core.errors import (
    CheckFailedError,
    InvalidInputError,
    NotExecutableError,
    UsageError,
)
from mobilekit.metrics.language import kl_divergences
from mobilekit.runtime import TokenLogits, open_artifact
from mobilekit.schema.bundle import Bundle
from mobilekit.schema.manifest import (
    Artifact,
    Deviation,
    GreedyRecord,
    Manifest,
    ParityRecord,
    Tolerance,
)

from . import vectors as parity_vectors
from .vectors import Answer, Vectors

EAGER_FP32 = "eager-fp32"
NOT_THE_MODEL = "the program that was lowered: it does not compute what the checkpoint does"
AFTER_LAST_LAYER = "after the last layer (final norm or lm_head)"


# The float program that is lowered computes what the checkpoint computes, up to the order of sums
# (1e-12) and, in Core ML, to a cache in fp16 (2e-6 on the embedded model).
PROGRAM_KL = 1e-4
PROGRAM_TOKENS = 8


def measure(
    runtime: TokenLogits, vectors: Vectors, same: Answer, *, precision: str, tolerance: Tolerance
) -> ParityRecord:
    """Run an artifact on the vectors and compare it with both references.

    Args:
        runtime: The artifact, open.
        vectors: The bundle's vectors.
        same: Answer of the same-precision reference.
        precision: The artifact's precision, for the reference's name.
        tolerance: What ``passed`` is decided by, against the same-precision reference.
    """
    answer = parity_vectors.replay(runtime, vectors)
    against_fp32 = deviation(EAGER_FP32, vectors.eager, answer)
    against_same = deviation(f"eager-{precision}", same, answer)
    excused = min(against_fp32.max_abs, tolerance.max_abs) if precision == "fp32" else 0.0
    return ParityRecord(
        executed=True,
        evaluator=f"{runtime.name} {runtime.version}",
        against_fp32=against_fp32,
        against_same=against_same,
        # at a lower precision a divergence is a loss of precision, not a near-tie to be excused
        greedy=compare_greedy(vectors, answer, excused),
        tolerance=tolerance,
        passed=within(against_same, tolerance, steps=vectors.tokens.size),
    )


def within(found: Deviation, tolerance: Tolerance, *, steps: int) -> bool:
    """Tell whether a deviation is inside its bounds.

    One step may always differ in its best token: of few steps, one is more than any share.
    """
    flips = round((1.0 - found.top1) * steps)
    return (
        found.max_abs <= tolerance.max_abs
        and found.kl <= tolerance.kl
        and found.kl_p90 <= tolerance.kl_p90
        and (found.top1 >= tolerance.top1 or flips <= 1)
    )


def deviation(name: str, reference: Answer, answer: Answer) -> Deviation:
    """Return how far two answers are apart; a logit of either that is not finite is infinitely far.

    The maximum is over all recorded logits, KL their mean, top-1 over every step.
    """
    if not (np.isfinite(answer.logits).all() and np.isfinite(reference.logits).all()):
        huge = float(np.finfo(np.float32).max)
        return Deviation(reference=name, max_abs=huge, kl=huge, kl_p90=huge, top1=0.0)
    steps = kl_divergences(reference.logits, answer.logits)
    difference = np.abs(reference.logits.astype(np.float64) - answer.logits)
    return Deviation(
        reference=name,
        max_abs=float(difference.max()),
        kl=float(steps.mean()),
        kl_p90=float(np.quantile(steps, 0.9)),
        top1=float((reference.argmax == answer.argmax).mean()),
    )


def compare_greedy(vectors: Vectors, answer: Answer, error: float) -> GreedyRecord:
    """Compare greedy continuations with eager's.

    A first divergence is excused where eager's own top-2 gap is below twice the measured error:
    either token is then within the error of being the most likely.
    """
    equal = excused = 0
    for p in range(len(vectors.prompts)):
        differs = np.flatnonzero(answer.argmax[p] != vectors.tokens[p])
        if not len(differs):
            equal += 1
        elif vectors.gaps[p, differs[0]] < 2 * error:
            excused += 1
    prompts, new_tokens = vectors.tokens.shape
    return GreedyRecord(
        prompts=prompts,
        new_tokens=new_tokens,
        equal=equal,
        excused=excused,
        different=prompts - equal - excused,
    )


def verify(
    bundle: Bundle, *, checkpoint: Path | None = None, only: str | None = None
) -> dict[str, ParityRecord]:
    """Repeat the parity check of a bundle.

    Args:
        bundle: An open bundle.
        checkpoint: The checkpoint it was exported from, to name the first diverging layer of an
            artifact that fails.
        only: Id, target or back end of the one artifact to check; all where ``None``.

    Returns:
        The new record of each artifact that was checked, by id.

    Raises:
        CheckFailedError: If a file's checksum is wrong.
        UsageError: If there is no artifact ``only``, or the checkpoint is another one.
    """
    if checkpoint is not None and not is_origin(bundle.manifest, checkpoint):
        raise UsageError(
            f"{checkpoint} is not the checkpoint that {bundle.name} was exported from",
            hint="Give the one it was made of, or leave --model out.",
        )
    check_files(bundle)
    if bundle.manifest.vectors is None:
        raise InvalidInputError(
            f"{bundle.name} has no parity vectors", hint="Export the bundle anew."
        )
    vectors = parity_vectors.read(bundle.path(bundle.manifest.vectors))
    chosen = [bundle.artifact(only)] if only else list(bundle.manifest.artifacts)
    return {item.id: _verify_one(bundle, item, vectors, checkpoint) for item in chosen}


def is_origin(manifest: Manifest, checkpoint: Path) -> bool:
    """Tell whether a bundle was exported from a checkpoint; true where it does not say."""
    from mobilekit.models import checkpoint_hash

    made_from = manifest.provenance.get("checkpoint")
    return made_from is None or made_from == checkpoint_hash(checkpoint)


def check_files(bundle: Bundle) -> None:
    """Check every file against the manifest.

    Raises:
        CheckFailedError: With the first file that is missing or changed.
    """
    try:
        bundle.check_all()
    except InvalidInputError as error:
        raise CheckFailedError(error.message, hint=error.hint) from None


def _verify_one(
    bundle: Bundle, item: Artifact, vectors: Vectors, checkpoint: Path | None
) -> ParityRecord:
    same, tolerance = _same(vectors, item, bundle), item.parity.tolerance
    try:
        runtime = open_artifact(bundle, item)
        record = measure(runtime, vectors, same, precision=item.precision, tolerance=tolerance)
    except NotExecutableError as error:
        return ParityRecord(executed=False, reason=error.message, tolerance=tolerance)
    if record.passed or checkpoint is None:
        return record
    layer = diagnose(bundle.manifest, bundle.artifact_path(item), item, vectors, checkpoint)
    return record.model_copy(update={"first_diverging_layer": layer})


def _same(vectors: Vectors, item: Artifact, bundle: Bundle) -> Answer:
    if item.id not in vectors.same:
        raise InvalidInputError(
            f"{bundle.name} has no same-precision reference for {item.id}",
            hint="Export the bundle anew.",
        )
    return vectors.same[item.id]


def diagnose(
    manifest: Manifest, path: Path, item: Artifact, vectors: Vectors, checkpoint: Path
) -> str:
    """Name the first layer of an artifact that diverges from its reference."""
    from mobilekit.models import load
    from mobilekit.models.families import family_of

    from .backends import BACKENDS
    from .backends.base import ExportSpec
    from .precision import Precision

    target = item.id.split("-")[0]
    model = load(checkpoint, device="cpu", dtype="float32")
    precision = Precision(item.precision, tuple(item.overrides.items()))
    spec = ExportSpec(precision, int(manifest.model["context_length"]))
    prompt = list(vectors.prompts[0])
    layer = BACKENDS.get(target).diagnose(path, model, family_of(model), spec, prompt)
    return layer or AFTER_LAST_LAYER


__all__ = [
    "AFTER_LAST_LAYER",
    "check_files",
    "compare_greedy",
    "deviation",
    "diagnose",
    "is_origin",
    "measure",
    "verify",
]
