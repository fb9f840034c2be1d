"""The plan of an export: the estimated need of each artifact, and how many are made at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilekit.core.cache import cache_root
from mobilekit.core.memory import AvailableMemory, available_memory
from mobilekit.core.needs import Need
from mobilekit.models import describe
from mobilekit.models.inspect import read_config

from . import estimate
from .estimate import ModelFacts


@dataclass(frozen=True)
class ExportPlan:
    """What an export is estimated to need.

    Attributes:
        facts: The model's facts.
        artifacts: (target, precision) pairs in the order of work, and each worker's need.
        workers: How many are made at a time.
    """

    facts: ModelFacts
    artifacts: tuple[tuple[str, str, Need], ...]
    workers: int

    @property
    def need(self) -> Need:
        """The need of the whole export: its largest workers beside one another, and all files."""
        parent = estimate.parent_peak_bytes(self.facts)
        peaks = sorted((need.memory_bytes for *_, need in self.artifacts), reverse=True)
        beside = estimate.PARENT_BASE + sum(peaks[: self.workers])
        disk = {"output": estimate.vectors_bytes(len(self.artifacts)), "cache": 0}
        for *_, need in self.artifacts:
            for place, count in need.disk_bytes.items():
                disk[place] += count
        return Need("export", max(parent, beside), parent, disk)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The need of each artifact alone, then of the whole."""
        return (*(need for *_, need in self.artifacts), self.need)

    def headline(self, out: Path) -> str:
        """Return one line that says what is about to be done."""
        noun = "artifact" if len(self.artifacts) == 1 else "artifacts"
        count, parameters = len(self.artifacts), self.facts.parameters / 1e6
        return (
            f"Plan   {parameters:.2f} M parameters · {count} {noun}, {self.workers} at a time · "
            f"output {out}/"
        )


def facts_of(checkpoint: Path) -> ModelFacts:
    """Return the facts of a checkpoint; headers and config are read, no weight is."""
    described = describe(checkpoint)
    config = read_config(checkpoint)
    return estimate.model_facts(config, described["parameters"], described["weight_bytes"])


def plan_export(
    facts: ModelFacts,
    targets: Sequence[str],
    precisions: Sequence[str],
    context_length: int,
    *,
    memory: AvailableMemory | None = None,
) -> ExportPlan:
    """Estimate the need of every artifact, and choose how many to make at a time.

    Args:
        facts: The model's facts.
        targets: Targets, checked already.
        precisions: Precisions, checked already.
        context_length: Positions that the cache holds.
        memory: What is available; looked up where ``None``.
    """
    artifacts = []
    for precision in precisions:
        for target in targets:
            peak = estimate.worker_peak_bytes(facts, target, precision, context_length)
            size = estimate.artifact_bytes(facts, precision)
            disk = {"output": size, "cache": size}
            artifacts.append((target, precision, Need(f"{target} {precision}", peak, peak, disk)))
    memory = memory or available_memory()
    left = memory.bytes - estimate.PARENT_BASE if memory is not None else None
    cores = os.cpu_count() or 1
    workers = estimate.most_workers(
        [need.memory_bytes for *_, need in artifacts], left, cores // 2 if cores > 4 else cores
    )
    return ExportPlan(facts, tuple(artifacts), workers)


def places(out: Path) -> dict[str, Path]:
    """Return where an export writes."""
    return {"output": out, "cache": cache_root()}
