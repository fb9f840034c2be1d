"""The budget: does at least one artifact fit the phone it is meant for?"""

from __future__ import annotations

from pathlib import Path

from mobilekit.core.files import read_json
from mobilekit.recipe import Budget
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.result import Result


def check_budget(budget: Budget | None, root: Path) -> list[str]:
    """Return what is over the budget, empty where at least one artifact fits.

    Args:
        budget: Limits and the device whose measured peaks count, or ``None``.
        root: Directory of a run that made a bundle.
    """
    if budget is None:
        return []
    peaks = _added_peaks(root, budget.device)
    reasons = []
    for item in open_bundle(root / "bundle").manifest.artifacts:
        size = item.total_bytes / 1e6
        over = []
        if budget.file_mb is not None and size > budget.file_mb:
            over.append(f"{size:.1f} MB file")
        if budget.peak_memory_mb is not None:
            peak = peaks.get(item.id)
            if peak is None or peak / 1e6 > budget.peak_memory_mb:
                over.append("peak not measured" if peak is None else f"{peak / 1e6:.0f} MB peak")
        if not over:
            return []
        reasons.append(f"{item.id}: {', '.join(over)}")
    limits = [f"{budget.file_mb} MB file"] if budget.file_mb else []
    limits += [f"{budget.peak_memory_mb} MB peak"] if budget.peak_memory_mb else []
    return [f"no artifact fits the budget of {', '.join(limits)} ({'; '.join(reasons)})"]


def _added_peaks(root: Path, device: str) -> dict[str, int]:
    """Return what each artifact adds to its process at its peak: peak less baseline.

    The baseline holds Python and its imports, which are not on a phone.
    """
    peaks: dict[str, int] = {}
    for path in sorted((root / "results").glob(f"profile-{device}-*.json")):
        result = Result.parse(read_json(path), str(path))
        memory = result.memory
        if memory is None or memory.peak_bytes is None or memory.baseline_bytes is None:
            continue
        added = memory.peak_bytes - memory.baseline_bytes
        peaks[result.artifact.id] = max(peaks.get(result.artifact.id, 0), added)
    return peaks
