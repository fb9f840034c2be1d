"""Put packages, probes, devices and machine together, and say what follows from them."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import Any

from mobilekit.core import console

from .machine import Machine, look
from .packages import CORE, PackageRecord, check_packages
from .probe import LIMIT_SECONDS, Finding, probe

# what stands in for a runtime that is not on this system
_NUMERIC_CHECK = {"coreml": "checked by a numpy evaluator of the saved program"}


@dataclass(frozen=True)
class PartReport:
    """The core or one target.

    Attributes:
        name: "core" or a target.
        works: Whether export to it (for the core: all that needs no target) works here.
        reason: Why not, or ``None``.
        cannot_run: Why an artifact cannot be run by its own runtime here, or ``None``.
        numeric_check: What checks an artifact where it cannot be run, or ``None``.
        is_broken: Whether something is installed that does not work, rather than absent.
        install: The command that brings or mends it.
        facts: What the part says of itself.
    """

    name: str
    works: bool
    reason: str | None
    cannot_run: str | None
    numeric_check: str | None
    is_broken: bool
    install: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found."""

    mobilekit: str
    python: str
    parts: tuple[PartReport, ...]
    packages: tuple[PackageRecord, ...]
    devices: tuple[dict[str, Any], ...]
    machine: Machine

    @property
    def core(self) -> PartReport:
        """What everything needs."""
        return self.parts[0]

    @property
    def exit_code(self) -> int:
        """3 where the core does not work, 1 where an installed target is broken, else 0."""
        if not self.core.works:
            return 3
        return 1 if any(part.is_broken for part in self.parts) else 0

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON values."""
        return dataclasses.asdict(self)


def examine(*, limit: float = LIMIT_SECONDS) -> Diagnosis:
    """Check versions, import every installed target in a process of its own, look at the machine.

    Args:
        limit: Seconds after which an import counts as hung.

    Raises:
        MissingDependencyError: If MobileKit itself is not installed.
    """
    import mobilekit
    from mobilekit.export.backends import BACKENDS
    from mobilekit.profile import list_devices

    packages = check_packages()
    parts = [CORE, *BACKENDS.names()]
    there = [p for p in parts if not any(r.state == "missing" for r in _of(packages, p))]
    with console.progress(len(there), "import what is installed") as bar:
        console.status(f"Importing {', '.join(there)}, each in a process of its own …")
        found = probe(there, limit=limit, on_done=lambda part: bar.advance(1, note=part))
    return Diagnosis(
        mobilekit=mobilekit.__version__,
        python=platform.python_version(),
        parts=tuple(_report(p, _of(packages, p), found.get(p)) for p in parts),
        packages=tuple(packages),
        devices=tuple(list_devices()),
        machine=look(),
    )


def _of(packages: list[PackageRecord], part: str) -> list[PackageRecord]:
    return [record for record in packages if record.part == part]


def _report(name: str, packages: list[PackageRecord], finding: Finding | None) -> PartReport:
    wrong = [record for record in packages if record.state == "out of range"]
    absent = [record.name for record in packages if record.state == "missing"]
    reason = None
    if absent:
        reason = f"not installed: {', '.join(absent)}"
    elif finding is not None and finding.broken is not None:
        reason = finding.broken
    elif wrong:
        reason = ", ".join(f"{r.name} {r.installed} is not {r.required}" for r in wrong)
    is_partial = bool(absent) and len(absent) < len(packages)
    return PartReport(
        name=name,
        works=reason is None,
        reason=reason,
        cannot_run=finding.cannot_run if finding and reason is None else reason,
        numeric_check=_NUMERIC_CHECK.get(name) if reason is None else None,
        is_broken=reason is not None and (not absent or is_partial),
        install=f"pip install 'mobilekit[{name}]'" if name != CORE else "pip install mobilekit",
        facts=finding.facts if finding else {},
    )
