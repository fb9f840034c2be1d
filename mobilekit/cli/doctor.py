"""``mobilekit doctor``: what works here, and how to get what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import Answer, command, megabytes

if TYPE_CHECKING:
    from mobilekit.doctor import Diagnosis
    from mobilekit.doctor.examine import PartReport

EPILOG = "Examples: mobilekit doctor   ·   mobilekit doctor --json"


@command
def main() -> Answer:
    """Check what is installed, and say what works here.

    Compares versions with the tested ones, imports each target in a process of its own, and looks
    at devices, memory, disk and cache. Exit 0: the core works, and a target that is not installed
    says how to get it. Exit 1: something is installed that does not work. Exit 3: the core lacks a
    package, or has one out of range.
    """
    from mobilekit import doctor

    found = doctor.examine()
    rows = [
        [r.part, r.name, r.installed or "–", r.tested or "–", r.required, r.state]
        for r in found.packages
    ]
    lines = [f"MobileKit {found.mobilekit}, Python {found.python}", ""]
    lines += [line for part in found.parts for line in _part(part)]
    lines += ["", *_machine(found), ""]
    return Answer(
        found.to_json(),
        lines=lines,
        headers=("part", "package", "installed", "tested", "range", "state"),
        rows=rows,
        exit_code=found.exit_code,
    )


def _part(part: PartReport) -> list[str]:
    """Return one line on a part, and a second one on how to get it where it does not work."""
    if not part.works:
        return [f"{part.name:11}no    {part.reason}", f"{'':17}{part.install}"]
    if part.name == "core":
        return [f"{part.name:11}ok    compression, recovery, evaluation of checkpoints"]
    if part.cannot_run is None:
        return [f"{part.name:11}ok    export works; artifacts run here"]
    check = f"; {part.numeric_check}" if part.numeric_check else ""
    return [f"{part.name:11}ok    export works; cannot run here: {part.cannot_run}{check}"]


def _machine(found: Diagnosis) -> list[str]:
    machine, gpus = found.machine, found.core.facts.get("gpus", [])
    features = ", ".join(machine.features or ()) or "features unknown"
    memory = "memory unknown"
    if machine.available_bytes is not None and machine.memory_bytes is not None:
        available, total = machine.available_bytes / 1e9, machine.memory_bytes / 1e9
        memory = f"{available:.1f} of {total:.1f} GB available ({machine.available_source})"
    disk = ", ".join(f"{size / 1e9:.1f} GB ({place})" for place, size in machine.disk.items())
    cache = machine.cache
    lines = [
        f"processor  {machine.architecture}, {machine.cores} cores: {features}",
        f"gpu        {', '.join(gpus) or 'none that torch sees'}",
        f"memory     {memory}",
        f"free disk  {disk}",
        f"cache      {cache['path']}: {megabytes(cache['bytes'])}, {cache['artifacts']} artifacts",
    ]
    return lines + [
        f"device     {d['name']}: {'ready' if d['available'] else d['reason']}"
        for d in found.devices
    ]
