"""Why to believe it, and how far: parity, provenance, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        recipe=_outline(evidence.run.recipe),
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
        "Run by",
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
        num(f"≤\u00a0{scientific(parity.tolerance.max_abs)}"),
        num(scientific(near.kl) if near else "–"),
        num(percent(near.top1) if near else "–"),
        _greedy(parity),
        parity.evaluator or "–",
    ]


def _largest(deviation: Deviation | None) -> str:
    return scientific(deviation.max_abs) if deviation else "–"


def _verdict(parity: ParityRecord) -> Cell:
    if not parity.executed:
        return Cell("not executed", "skip", parity.reason or "no reason recorded")
    if parity.passed is None:
        return Cell("no verdict", "skip", parity.reason or "")
    if parity.passed:
        return Cell("pass", "ok")
    where = parity.first_diverging_layer
    return Cell("fail", "fail", f"first diverging layer: {where}" if where else "")


def _greedy(parity: ParityRecord) -> Cell:
    record = parity.greedy
    if record is None:
        return Cell("–")
    note = f"{record.excused} near-tie, {record.different} different; {record.new_tokens} tokens each"
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
        provenance = evidence.manifest.provenance.items()
        facts.extend((f"Bundle: {key}".replace("_", " "), plain(value)) for key, value in provenance)
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


def _outline(value: object, depth: int = 0) -> str:
    """Return nested settings as indented ``key: value`` lines."""
    pad = "  " * depth
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            nested = isinstance(item, dict | list) and item and not _is_flat(item)
            lines.append(
                f"{pad}{key}:\n{_outline(item, depth + 1)}" if nested else f"{pad}{key}: {_leaf(item)}"
            )
        return "\n".join(lines)
    if isinstance(value, list):
        return "\n".join(f"{pad}- {_leaf(item)}" for item in value)
    return f"{pad}{_leaf(value)}"


def _is_flat(value: object) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _leaf(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_leaf(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_leaf(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _limits(evidence: Evidence, found: Sequence[Subject]) -> list[str]:
    """Return what the figures do not show, as far as it applies to this run."""
    limits = []
    classes = {str(r.device.get("class", "")) for s in found for r in s.results}
    if any(name.startswith("host") for name in classes) or not classes:
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
            "Before is measured on the torch checkpoint, after on the exported artifact. The change "
            "therefore contains the change of runtime as well as that of the model."
        )
    if any(r.metrics.get("accuracy") is not None for s in found for r in s.results):
        limits.append(
            "The question set is small: read accuracies with their intervals. A bundled sample set "
            "is MobileKit's own and is not the Mobile-MMLU benchmark."
        )
    statuses = {r.energy.status for s in found for r in s.results if r.energy is not None}
    if "unavailable" in statuses:
        limits.append("Energy was not measurable on this machine, so no figure is given for it.")
    limits.append("Every figure on this page was measured in this run; none is quoted from a paper.")
    return limits
