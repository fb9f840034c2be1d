"""Why to believe it, and how far: parity, provenance, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mobilekit.schema.manifest import Artifact, Deviation, Manifest, ParityRecord, Tolerance

from .evidence import Evidence, by_device
from .numbers import finite, percent, scientific, size
from .subjects import Subject
from .tables import Cell, Table, num, plain, table

_FEW_QUESTIONS = 1000  # an interval of 3 points to either side at even odds


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
        parity=parity_table(evidence.manifest),
        command=evidence.run.command,
        facts=tuple(_facts(evidence)),
        versions=tuple(sorted(evidence.run.versions.items())),
        files=_files(evidence),
        recipe=_recipe(evidence.run.recipe),
        limits=tuple(_limits(evidence, found)),
    )


def parity_table(manifest: Manifest | None) -> Table | None:
    """Return the parity of each artifact, or ``None`` where there is none."""
    artifacts = manifest.artifacts if manifest else ()
    if not artifacts:
        return None
    columns = (
        *("Artifact", "Verdict", "Against fp32 eager", "Against same-precision eager"),
        *("Tolerance of the verdict", "Greedy, against fp32 eager"),
    )
    return table(columns, [_parity_row(item) for item in artifacts])


def _parity_row(item: Artifact) -> list[Cell | str]:
    parity, bounds = item.parity, item.parity.tolerance
    limit = _measures("≤", "≥", bounds)
    distances = (_distance(parity.against_fp32), _distance(parity.against_same))
    return [item.id, _verdict(parity), *distances, limit, _greedy(parity)]


def _distance(deviation: Deviation | None) -> Cell:
    """Return how far the artifact is from one reference: the worst logit, mean KL, top-1."""
    if deviation is None:
        return num("–")
    return _measures("", "", deviation)


def _measures(below: str, above: str, found: Deviation | Tolerance) -> Cell:
    low, high = (f"{sign}\u00a0" if sign else "" for sign in (below, above))
    note = (
        f"KL\u00a0{low}{scientific(found.kl)}\nKL\u00a0p90\u00a0{low}{scientific(found.kl_p90)}\n"
        f"top-1\u00a0{high}{percent(found.top1)}"
    )
    return num(f"max\u00a0{low}{scientific(found.max_abs)}", note)


def _verdict(parity: ParityRecord) -> Cell:
    if not parity.executed:
        return Cell("not executed", "skip", parity.reason or "no reason recorded")
    if parity.passed is None:
        return Cell("no verdict", "skip", parity.reason or "")
    run = _evaluator(parity.evaluator)
    if parity.passed:
        return Cell("pass", "ok", run)
    where = parity.first_diverging_layer
    return Cell("fail", "fail", f"first diverging layer: {where}" if where else run)


def _evaluator(name: str | None) -> str:
    """Return who ran the artifact, and that it was not the device's runtime where it was not."""
    if not name:
        return ""
    if name.startswith("mil-numpy"):
        return f"evaluated from the saved file by\n{name}, not run by Apple\u2019s runtime"
    return f"run by {name}"


def _greedy(parity: ParityRecord) -> Cell:
    record = parity.greedy
    if record is None:
        return Cell("–")
    parts = f"{record.excused} excused\n{record.different} different"
    note = f"{parts}\n{record.new_tokens} tokens each"
    return Cell(f"{record.equal} of {record.prompts} equal", "", note)


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    run = evidence.run
    facts = [("MobileKit", run.mobilekit), ("Run started", run.created)]
    if run.models is not None:
        facts.append(("Checkpoint before", run.models.before.hash))
        if run.models.after is not None:
            facts.append(("Checkpoint after", run.models.after.hash))
    facts.extend(_devices(evidence))
    facts.extend((f"Host: {key}", plain(value)) for key, value in run.host.items())
    if evidence.manifest is not None:
        for key, value in evidence.manifest.provenance.items():
            facts.append((f"Bundle: {key}".replace("_", " "), plain(value)))
        facts.append(("Licences", ", ".join(evidence.manifest.licences) or "not stated"))
    return facts


def _devices(evidence: Evidence) -> list[tuple[str, str]]:
    """Return one line a profiled device: name, system, cores, memory, load at the start."""
    lines = []
    for name, part in by_device(evidence).items():
        device = next((r.device for r in part.results if r.kind == "profile"), {})
        loads = [finite(r.device.get("load_average_1m")) for r in part.results]
        known = [load for load in loads if load is not None]
        memory = finite(device.get("memory_bytes"))
        words = [
            name,
            "virtual machine" if device.get("is_virtual") is True else "",
            plain(device["os"]) if device.get("os") else "",
            f"{plain(device['usable_cores'])} usable cores" if device.get("usable_cores") else "",
            f"{size(memory)} memory" if memory else "",
            f"load {min(known):.1f} to {max(known):.1f} as profiling began" if known else "",
        ]
        if name:
            lines.append(("Device", ", ".join(word for word in words if word)))
    return lines


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


def _question_limits(found: Sequence[Subject]) -> list[str]:
    """Return what accuracies do not show: a small set, or one that is not the benchmark."""
    scored = [r for s in found for r in s.results if r.metrics.get("accuracy") is not None]
    counts = [n for r in scored if (n := finite(r.metrics.get("n"))) is not None]
    limits = []
    if counts and min(counts) < _FEW_QUESTIONS:
        limits.append(
            f"The question set is small ({min(counts):.0f} questions): read accuracies with their "
            "intervals."
        )
    sets = [r.metrics.get("dataset") for r in scored]
    if any(not (isinstance(one, dict) and one.get("is_mobile_mmlu") is True) for one in sets):
        limits.append(
            "A bundled sample set is MobileKit's own and is not the Mobile-MMLU benchmark; nor is "
            "a question set of one's own."
        )
    return limits


def _origin(*, quotes: bool) -> str:
    if quotes:
        return "Every figure was measured here, unless it says modelled or published."
    return "Every figure was measured here, unless it says modelled; none is quoted."


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
            "Core ML packages were not run by Apple’s Core ML runtime. Their saved program was "
            "evaluated in numpy (mil-numpy) here, or not executed where the parity table says so; "
            "they have no speed or memory figures."
        )
    if any(not a.parity.executed for a in artifacts):
        limits.append("An artifact marked “not executed” has no evidence of correctness yet.")
    if any(s.kind == "before" and s.results for s in found):
        limits.append(
            "Before is measured on the torch checkpoint, after on the exported artifact. The "
            "change contains that of the runtime as well as that of the model; the table under "
            "“Before and after” tells them apart."
        )
    if any(r.device.get("is_virtual") is True for s in found for r in s.profiles):
        limits.append(
            "The machine is a virtual one and may be shared. Its load shows in the spread of the "
            "samples; a difference inside the spread is no result."
        )
    if any(a.parity.greedy and a.parity.greedy.different for a in artifacts):
        limits.append(
            "Parity passed does not mean the same text. An int8 artifact may pass while its greedy "
            "continuations part from fp32 eager’s: read the last column of the parity table."
        )
    limits.extend(_question_limits(found))
    statuses = {r.energy.status for s in found for r in s.results if r.energy is not None}
    if "unavailable" in statuses:
        limits.append("Energy was not measurable on this machine, so no figure is given for it.")
    if classes:
        limits.append(_origin(quotes=any(one.models for one in evidence.run.published)))
    return limits or ["Nothing was measured yet, so there is nothing to conclude."]
