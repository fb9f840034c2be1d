"""One artifact in a process of its own: lower it, run it, compare it.

A process of its own keeps the converters' chatter out of the terminal, frees their memory, and
turns a crash or an out-of-memory kill inside one of them into an error with a name.
``python -m mobilekit.export.worker JOB.json`` writes the outcome where the job says.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core import stopping
from mobilekit.core.errors import InvalidInputError, MobileKitError, NotExecutableError
from mobilekit.core.files import atomic_write, atomic_write_json, read_json
from mobilekit.core.memory import peak_rss_bytes
from mobilekit.core.processes import end_with_parent
from mobilekit.runtime import RUNTIMES
from mobilekit.schema.bundle import entry_point
from mobilekit.schema.manifest import Deviation, ParityRecord

from .job import Job, LoweredRecord, Outcome

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.models.families import Family

    from .backends.base import Backend, ExportSpec, Routing
    from .vectors import Vectors


def main(job_path: str) -> int:
    """Do one job; expected errors go into the outcome, a crash leaves none."""
    job = Job.parse(read_json(Path(job_path)), job_path)
    end_with_parent()
    stopping.listen()  # so that a half-written entry of the cache goes when the parent stops it
    try:
        outcome = make(job)
    except MobileKitError as error:
        described = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        outcome = Outcome(error=described)
    atomic_write_json(Path(job.outcome), outcome.model_dump(mode="json"))
    return 0


def make(job: Job) -> Outcome:
    """Lower, run the artifact and its reference on the vectors, and compare them."""
    import torch

    from .backends import BACKENDS
    from .lowering import lower

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    _check_unchanged(job)
    backend = BACKENDS.get(job.target)
    record, cached = lower(job, backend)
    parity = _parity(job, record, backend)
    return Outcome(lowered=record, parity=parity, cached=cached, peak_rss_bytes=peak_rss_bytes())


def _check_unchanged(job: Job) -> None:
    """Refuse a checkpoint that is no longer the one that the parity vectors were made from."""
    from mobilekit.models import checkpoint_hash

    if checkpoint_hash(Path(job.checkpoint)) != job.checkpoint_hash:
        raise InvalidInputError(
            f"the checkpoint {job.checkpoint} changed while it was being exported",
            hint="Let whatever writes it finish, then export again.",
        )


def _routing(model: Any, family: Family) -> Routing:
    groups = family.units(model, "expert") if "expert" in family.units_of else []
    if any(group.partitions > 1 for group in groups):
        return "groups"
    return "experts" if groups else "dense"


def _parity(job: Job, record: LoweredRecord, backend: Backend) -> ParityRecord:
    """Compare the written files with eager; name the first diverging layer where it fails."""
    from mobilekit.models import load
    from mobilekit.models.families import family_of

    from . import vectors as parity_vectors
    from .lowering import spec_of
    from .parity import AFTER_LAST_LAYER, NOT_THE_MODEL, PROGRAM_KL, measure

    model: Any = load(job.checkpoint, device="cpu", dtype="float32")
    family, spec = family_of(model), spec_of(job)
    vectors = parity_vectors.read(Path(job.vectors))
    same = parity_vectors.replay(backend.reference(model, family, spec), vectors)
    atomic_write(Path(job.answer), parity_vectors.pack_answer(same))
    path = entry_point(Path(job.out), next(iter(record.files)))
    tolerance = backend.tolerance(dataclasses.replace(spec, routing=_routing(model, family)))
    try:
        runtime = RUNTIMES.get(backend.format)(
            path,
            context_length=job.context_length,
            vocab_size=int(model.config.vocab_size),
            threads=job.threads,
        )
        parity = measure(runtime, vectors, same, precision=job.precision, tolerance=tolerance)
    except NotExecutableError as error:
        return ParityRecord(executed=False, reason=error.message, tolerance=tolerance)
    program = program_deviation(backend, model, family, spec, vectors)
    parity = parity.model_copy(update={"program": program})
    if program.kl > PROGRAM_KL:
        return parity.model_copy(update={"passed": False, "first_diverging_layer": NOT_THE_MODEL})
    if parity.passed:
        return parity
    prompt = list(vectors.prompts[0])
    layer = backend.diagnose(path, model, family, spec, prompt) or AFTER_LAST_LAYER
    return parity.model_copy(update={"first_diverging_layer": layer})


def program_deviation(
    backend: Backend, model: nn.Module, family: Family, spec: ExportSpec, vectors: Vectors
) -> Deviation:
    """Compare the program that was lowered, in float, with the checkpoint itself.

    An artifact and its reference are made of the same program, so that a fault of the program
    would be on both sides of every other comparison.
    """
    from . import vectors as parity_vectors
    from .parity import EAGER_FP32, PROGRAM_TOKENS, deviation
    from .precision import Precision

    some = parity_vectors.excerpt(vectors, PROGRAM_TOKENS)
    plain = dataclasses.replace(spec, precision=Precision("fp32"))
    answer = parity_vectors.replay(backend.reference(model, family, plain), some)
    return deviation(EAGER_FP32, some.eager, answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
