"""One artifact in a process of its own, so that its memory and its cold start are its own.

``python -m mobilekit.profile.worker JOB.json`` imports only the runtime that the artifact needs
and writes what it measured where the job says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mobilekit.core.errors import MobileKitError, NotExecutableError
from mobilekit.core.files import atomic_write_json, read_json
from mobilekit.core.processes import end_with_parent
from mobilekit.runtime import TokenLogits

from . import workloads
from .job import Job, Outcome, Problem, RuntimeFacts
from .measure import Plan, measure
from .opening import imported_libraries, prepare


def main(job_path: str) -> int:
    """Do one job; expected errors go into the outcome, a crash leaves none."""
    job = Job.parse(read_json(Path(job_path)), job_path)
    end_with_parent()
    try:
        outcome = profile(job)
    except MobileKitError as error:
        problem = Problem(kind=type(error).__name__, message=error.message, hint=error.hint)
        outcome = Outcome(error=problem)
    atomic_write_json(Path(job.outcome), outcome.model_dump(mode="json"))
    return 0


def profile(job: Job) -> Outcome:
    """Measure what the job names.

    Raises:
        NotExecutableError: If only an evaluator can run it here, whose speed means nothing.
    """
    prepared = prepare(job.source, job.artifact, job.threads)
    with open(job.ticks, "ab", buffering=0) as ticks:
        plan = Plan(
            workloads=workloads.parse_all(job.workloads),
            repetitions=job.repetitions,
            warmup=job.warmup,
            sysfs=Path(job.sysfs),
            on_repetition=lambda: _tick(ticks),
        )
        result = measure(lambda: _native(prepared.load()), plan)
    return Outcome(
        runtime=_facts(result.runtime, job, prepared.precision),
        cold=result.cold,
        measured=tuple(result.measured),
        is_peak_reset=result.is_peak_reset,
        idle_drift_watts=result.idle_drift_watts,
    )


def _tick(stream: Any) -> None:
    os.write(stream.fileno(), b".")


def _native(runtime: TokenLogits) -> TokenLogits:
    if runtime.name == "mil-numpy":
        raise NotExecutableError(
            "Core ML runs on macOS only; evaluating the program in numpy says nothing about speed",
            hint="Profile this artifact on a Mac or an iPhone.",
        )
    return runtime


def _facts(runtime: TokenLogits, job: Job, precision: str | None) -> RuntimeFacts:
    model = getattr(runtime, "model", None)
    dtype = str(getattr(model, "dtype", "")).removeprefix("torch.") or None
    return RuntimeFacts(
        name=runtime.name,
        version=runtime.version,
        threads=job.threads,
        precision=precision or dtype,
        libraries=imported_libraries(),
        context_length=runtime.context_length,
        vocab_size=runtime.vocab_size,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
