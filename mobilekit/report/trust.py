"""Why to believe it, and how far: parity, provenance, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mobilekit.schema.manifest import Artifact, Deviation, ParityRecord

from .evidence import Evidence
from .numbers import percent, scientific, size
from .subjects import Subject
from .tables import Cell, Table, num, plain, table


@dataclass(frozen=True)
class Trust:
    """What the sections on parity, provenance and limits show."""

    parity: Table | None
    command: str
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    files: Table | None
    recipe: str
    limits: tuple[str, ...]


def trust(evidence: Evidence, found: Sequence[Subject]) -> Trust:
    """Return the tables and sentences on evidence."""
    return Trust(
        parity=_parity(evidence),
        command=evidence.run.command,
        facts=tuple(_facts(evidence)),
        versions=tuple(sorted(evidence.run.versions.items())),
        files=_files(evidence),
        recipe=_recipe(evidence.run.recipe),
        limits=tuple(_limits(evidence, found)),
    )


def _parity(evidence: Evidence) -> Table | None:
    artifacts = evidence.manifest.artifacts if evidence.manifest else ()
    if not artifacts:
        return None
    columns = (
        "Artifact",
        "Verdict",
        "max|Δ| vs fp32 eager",
        "max|Δ| vs same precision",
        "Tolerance",
        "Mean KL",
        "Top-1",
        "Greedy",
    )
    return table(columns, [_parity_row(item) for item in artifacts])


def _parity_row(item: Artifact) -> list[Cell | str]:
    parity = item.parity
    near = parity.against_same or parity.against_fp32
    return [
        item.id,
        _verdict(parity),
        num(_largest(parity.against_fp32)),
        num(_largest(parity.against_same)),
        num(f"≤\u00a0{scientific(parity.tolerance.max_abs)}", _other_bounds(parity)),
        num(scientific(near.kl) if near else "–"),
        num(percent(near.top1) if near else "–"),
        _greedy(parity),
    ]


def _largest(deviation: Deviation | None) -> str:
    return scientific(deviation.max_abs) if deviation else "–"


def _verdict(parity: ParityRecord) -> Cell:
    if not parity.executed:
        return Cell("not executed", "skip", parity.reason or "no reason recorded")
    if parity.passed is None:
        return Cell("no verdict", "skip", parity.reason or "")
    run = f"run by {parity.evaluator}" if parity.evaluator else ""
    if parity.passed:
        return Cell("pass", "ok", run)
    where = parity.first_diverging_layer
    return Cell("fail", "fail", f"first diverging layer: {where}" if where else run)


def _other_bounds(parity: ParityRecord) -> str:
    bounds = parity.tolerance
    return f"KL ≤ {scientific(bounds.kl)}, top-1 ≥ {percent(bounds.top1)}"


def _greedy(parity: ParityRecord) -> Cell:
    record = parity.greedy
    if record is None:
        return Cell("–")
    parts = f"{record.excused} near-tie, {record.different} different"
    note = f"{parts}; {record.new_tokens} tokens each"
    return Cell(f"{record.equal} of {record.prompts} equal", "", note)


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    run = evidence.run
    facts = [("MobileKit", run.mobilekit), ("Run started", run.created)]
    if run.models is not None:
        facts.append(("Checkpoint before", run.models.before.hash))
        if run.models.after is not None:
            facts.append(("Checkpoint after", run.models.after.hash))
    facts.extend((f"Host: {key}", plain(value)) for key, value in run.host.items())
    if evidence.manifest is not None:
        for key, value in evidence.manifest.provenance.items():
            facts.append((f"Bundle: {key}".replace("_", " "), plain(value)))
        facts.append(("Licences", ", ".join(evidence.manifest.licences) or "not stated"))
    return facts


def _files(evidence: Evidence) -> Table | None:
    manifest = evidence.manifest
    if manifest is None:
        return None
    records = [record for item in manifest.artifacts for record in item.files]
    records += [*manifest.tokenizer, *([manifest.vectors] if manifest.vectors else [])]
    rows: list[list[Cell | str]] = [
        [r.path, num(size(r.bytes)), Cell(r.sha256, "hash")] for r in records
    ]
    return table(("File", "Size", "SHA-256"), rows) if rows else None


def _recipe(recipe: dict[str, Any]) -> str:
    """Return the recipe as YAML, ready to run again."""
    if not recipe:
        return ""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=88)


def _limits(evidence: Evidence, found: Sequence[Subject]) -> list[str]:
    """Return what the figures do not show, as far as it applies to this run."""
    limits = []
    classes = {str(r.device.get("class", "")) for s in found for r in s.results}
    if any(name.startswith("host") for name in classes):
        limits.append(
            "Host figures are not phone figures. Speed and memory were taken on the machine named "
            "above; a phone has other cores, caches, memory bandwidth and thermal limits."
        )
    artifacts = evidence.manifest.artifacts if evidence.manifest else ()
    packages = [a for a in artifacts if a.format == "mlpackage"]
    if any(a.parity.evaluator != "coreml" for a in packages):
        limits.append(
            "Core ML packages were not run by Core ML here. Their saved program was evaluated "
            "numerically on this machine, or not executed where the parity table says so; they "
            "have no speed or memory figures."
        )
    if any(not a.parity.executed for a in artifacts):
        limits.append("An artifact marked “not executed” has no evidence of correctness yet.")
    if any(s.kind == "before" and s.results for s in found):
        limits.append(
            "Before is measured on the torch checkpoint, after on the exported artifact. The "
            "change contains that of the runtime as well as that of the model."
        )
    if any(r.metrics.get("accuracy") is not None for s in found for r in s.results):
        limits.append(
            "The question set is small: read accuracies with their intervals. A bundled sample set "
            "is MobileKit's own and is not the Mobile-MMLU benchmark."
        )
    statuses = {r.energy.status for s in found for r in s.results if r.energy is not None}
    if "unavailable" in statuses:
        limits.append("Energy was not measurable on this machine, so no figure is given for it.")
    if classes:
        limits.append("Every figure was measured here, unless it says modelled; none is quoted.")
    return limits or ["Nothing was measured yet, so there is nothing to conclude."]
