"""What was measured, by what was run: the checkpoint before, the one after, every artifact.

Percentiles come from the raw samples. Decode rates of different workloads are never compared: one
workload is chosen for the whole page.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mobilekit.schema.manifest import Artifact
from mobilekit.schema.result import MemoryRecord, Result, Sample

from .charts import quantile
from .evidence import Evidence
from .numbers import finite

Phase = Literal["load", "first", "prefill", "decode", "question"]


@dataclass(frozen=True)
class Spread:
    """Percentiles of raw samples, milliseconds a sample (a token, where decoding)."""

    p10: float
    p50: float
    p90: float
    p99: float
    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Subject:
    """One thing that was run, with all its results."""

    id: str
    kind: Literal["before", "after"]
    bytes: int | None
    artifact: Artifact | None
    results: tuple[Result, ...]
    decode_workload: str = ""

    @property
    def name(self) -> str:
        """Return how the report calls it."""
        if self.artifact is not None:
            return self.id
        return {"before": "before · torch", "after": "after · torch"}.get(self.id, self.id)

    @property
    def profiles(self) -> list[Result]:
        """Return the profiling results, in file order."""
        return [r for r in self.results if r.kind == "profile"]

    @property
    def evaluations(self) -> list[Result]:
        """Return the evaluation results, in file order."""
        return [r for r in self.results if r.kind == "evaluate"]

    @property
    def runtime(self) -> str:
        """Return the name of the runtime that ran it, empty where none did."""
        ran = (r.runtime.get("name") for r in self.results if not r.metrics.get("skipped"))
        return next((str(name) for name in ran if name), "")

    @property
    def precision(self) -> str:
        """Return the precision that its runtime reports, empty where it reports none."""
        known = (r.runtime.get("precision") for r in self.profiles)
        return next((str(value) for value in known if value), "")

    @property
    def skipped(self) -> str | None:
        """Return why the device could not run it, where it could not."""
        reasons = (r.metrics.get("skipped") for r in self.profiles)
        return next((str(reason) for reason in reasons if reason), None)

    @property
    def throttled(self) -> bool:
        """Tell whether a result says that the device slowed down while it ran."""
        records = (r.thermal.get("throttling") for r in self.profiles)
        return any(isinstance(r, dict) and r.get("flag") is True for r in records)

    def samples(self, phase: Phase, workload: str | None = None) -> list[Sample]:
        """Return the raw samples of a phase, of one workload or of all.

        Without a prompt the first decoding step makes the first token: it is no time *between*
        tokens and is left out, as in ``Result.metrics``.
        """
        return [
            s
            for r in self.profiles
            if workload in (None, r.workload.id)
            for s in r.samples
            if s.phase == phase
            and not (phase == "decode" and s.token == 0 and r.workload.prompt_tokens == 0)
        ]

    def memory(self) -> MemoryRecord | None:
        """Return the record with the highest peak among the profiling results."""
        records = [r.memory for r in self.profiles if r.memory is not None]
        known = [m for m in records if m.peak_bytes is not None]
        if known:
            return max(known, key=lambda m: m.peak_bytes or 0)
        return records[0] if records else None

    def decode_rate(self) -> float | None:
        """Return decoded tokens a second: the median over repetitions that the device reports."""
        reported = reported_rate(self.profiles, "decode", self.decode_workload)
        return reported or throughput(self.samples("decode", self.decode_workload))

    def decode_ms(self) -> list[float]:
        """Return milliseconds a decoded token, one value a sample."""
        return per_token_ms(self.samples("decode", self.decode_workload))

    def figure(self, name: str) -> float | None:
        """Return the first finite value of a metric over all results."""
        values = (scalar(r.metrics.get(name)) for r in self.results)
        return next((value for value in values if value is not None), None)


def scalar(value: object) -> float | None:
    """Return a number, or the central value of a record of percentiles."""
    if isinstance(value, dict):
        keys = ("value", "p50", "median", "mean")
        return next((v for k in keys if (v := finite(value.get(k))) is not None), None)
    return finite(value)


def reported_rate(results: Sequence[Result], phase: Phase, workload: str) -> float | None:
    """Return the median rate over repetitions that the results of one workload state."""
    chosen = (r.metrics.get(f"{phase}_tokens_per_s") for r in results if r.workload.id == workload)
    return next((v for value in chosen if (v := scalar(value)) is not None), None)


def throughput(samples: Sequence[Sample]) -> float | None:
    """Return tokens a second over all samples: total tokens by total time."""
    elapsed = sum(s.ns for s in samples)
    return sum(s.tokens for s in samples) / elapsed * 1e9 if elapsed else None


def per_token_ms(samples: Sequence[Sample]) -> list[float]:
    """Return milliseconds a token of each sample."""
    return [s.ns / s.tokens / 1e6 for s in samples]


def spread(values: Sequence[float]) -> Spread | None:
    """Return percentiles (linear between neighbours), mean, deviation; None for no samples."""
    if not values:
        return None
    ordered = sorted(values)
    p10, p50, p90, p99 = (quantile(ordered, q) for q in (0.1, 0.5, 0.9, 0.99))
    mean = statistics.fmean(ordered)
    std = statistics.stdev(ordered) if len(ordered) > 1 else None
    return Spread(p10, p50, p90, p99, mean, std, len(ordered))


def overlap(one: Spread | None, two: Spread | None) -> bool:
    """Tell whether each median lies within p10 to p90 of the other's samples."""
    if one is None or two is None:
        return False
    return one.p10 <= two.p50 <= one.p90 and two.p10 <= one.p50 <= two.p90


def subjects(evidence: Evidence) -> list[Subject]:
    """Return what the report compares: before, after, then the artifacts in manifest order."""
    models = evidence.run.models
    found: list[Subject] = []
    if models is not None:
        found.append(_subject(evidence, "before", models.before.weight_bytes))
        measured = any(r.artifact.id == "after" for r in evidence.results)
        changed = models.after is not None and models.after.hash != models.before.hash
        if models.after is not None and (changed or measured):
            found.append(_subject(evidence, "after", models.after.weight_bytes))
    for artifact in evidence.manifest.artifacts if evidence.manifest else ():
        size = sum(record.bytes for record in artifact.files)
        found.append(_subject(evidence, artifact.id, size, artifact))
    known = {subject.id for subject in found}
    rest = dict.fromkeys(r.artifact.id for r in evidence.results if r.artifact.id not in known)
    sizes = {r.artifact.id: r.artifact.bytes for r in evidence.results}
    return found + [_subject(evidence, name, sizes[name]) for name in rest]


def _subject(
    evidence: Evidence, name: str, size: int | None, artifact: Artifact | None = None
) -> Subject:
    results = tuple(r for r in evidence.results if r.artifact.id == name)
    kind: Literal["before", "after"] = "before" if name == "before" else "after"
    return Subject(name, kind, size, artifact, results, decode_workload(evidence.results))


def decode_workload(results: Sequence[Result]) -> str:
    """Return the workload by which decode speeds are compared: the one most subjects ran."""
    ran = [r for r in results if any(s.phase == "decode" for s in r.samples)]
    tally: dict[str, set[str]] = {}
    for result in ran:
        tally.setdefault(result.workload.id, set()).add(result.artifact.id)
    return max(sorted(tally), key=lambda name: len(tally[name]), default="")


def baseline(found: Sequence[Subject]) -> Subject | None:
    """Return the model that went in, where there is one."""
    return next((s for s in found if s.id == "before"), None)


def shipped(found: Sequence[Subject]) -> Subject | None:
    """Return the artifact that the headline is about, or the checkpoint after compression.

    It is the smallest artifact whose parity passed, among those with the most kinds of results.
    """
    passed = [s for s in found if s.artifact is not None and s.artifact.parity.passed]
    if passed:
        return max(passed, key=lambda s: (len(_measured_kinds(s)), -(s.bytes or 0)))
    return next((s for s in found if s.id == "after"), None)


def _measured_kinds(subject: Subject) -> set[str]:
    return {r.kind for r in subject.results if not r.metrics.get("skipped")}


def added_bytes(record: MemoryRecord | None) -> int | None:
    """Return the memory that a model adds to its process: peak less baseline, where both are known.

    The baseline holds the interpreter and its imports, which are not on a phone.
    """
    if record is None or record.peak_bytes is None or record.baseline_bytes is None:
        return None
    return record.peak_bytes - record.baseline_bytes
