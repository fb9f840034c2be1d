"""What a report is made of: the run record, its plans, its bundle's manifest, its results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mobilekit.core.files import read_json
from mobilekit.schema.manifest import MANIFEST_FILE, Manifest
from mobilekit.schema.plan import PLAN_FILE, Plan, read_plans
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord, read_run


@dataclass(frozen=True)
class Evidence:
    """All that was recorded about a run; what has not happened yet is absent."""

    run: RunRecord
    plans: tuple[Plan, ...] = ()
    manifest: Manifest | None = None
    results: tuple[Result, ...] = ()


def device_of(result: Result) -> str:
    """Return the name of the device that a result comes from."""
    device = result.device
    parts = (device.get("class"), device.get("cpu") or device.get("model"))
    return ", ".join(str(part) for part in parts if part)


def by_device(evidence: Evidence) -> dict[str, Evidence]:
    """Return the evidence once a profiled device, so that no column mixes two devices.

    Profiling results are split; all else, quality included, stays whole. Without any profiling
    there is one entry, named by the device that evaluated.
    """
    profiled = [r for r in evidence.results if r.kind == "profile"]
    names = list(dict.fromkeys(device_of(r) for r in profiled))
    if not names:
        return {next((device_of(r) for r in evidence.results), ""): evidence}
    return {
        name: replace(
            evidence,
            results=tuple(
                r for r in evidence.results if r.kind != "profile" or device_of(r) == name
            ),
        )
        for name in names
    }


def read_evidence(run_dir: Path) -> Evidence:
    """Read a run directory by schema.

    Raises:
        InvalidInputError: If ``run.json`` is missing, or any document there is malformed.
    """
    run = read_run(run_dir)
    made = {step.output for step in run.steps}  # what else lies there is of an earlier recipe
    plan_file = run_dir / "checkpoint" / PLAN_FILE
    manifest_file = run_dir / "bundle" / MANIFEST_FILE
    manifest = None
    if "bundle" in made and manifest_file.is_file():
        manifest = Manifest.parse(read_json(manifest_file), str(manifest_file))
    return Evidence(
        run=run,
        plans=_plans(plan_file) if "checkpoint" in made else (),
        manifest=manifest,
        results=tuple(_results(run_dir / "results")),
    )


def _plans(path: Path) -> tuple[Plan, ...]:
    return tuple(read_plans(path)) if path.is_file() else ()


def _results(folder: Path) -> Iterator[Result]:
    """Yield the results in the order of their file names; other records lie beside them."""
    for path in sorted(folder.glob("*.json")):
        data = read_json(path)
        found = data.get("schema") if isinstance(data, dict) else None
        if isinstance(found, str) and found.startswith("mobilekit.result/"):
            yield Result.parse(data, str(path))
