"""Temperatures and clock rates as the system shows them; null with a reason where it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SYSFS = Path("/sys")


def read_thermal(sysfs: Path = _SYSFS) -> dict[str, Any]:
    """Return the present thermal state.

    Args:
        sysfs: Where sysfs is mounted.

    Returns:
        ``zones`` (name → °C), ``cpu_mhz`` (one a core that reports it) and ``governors``; each is
        null, with the reason in ``zones_reason`` or ``cpu_reason``, where nothing can be read.
    """
    zones = read_zones(sysfs)
    clocks = _clocks(sysfs / "devices/system/cpu")
    state: dict[str, Any] = {
        "zones": zones or None,
        "cpu_mhz": [mhz for mhz, _ in clocks] or None,
        "governors": sorted({name for _, name in clocks if name}) or None,
    }
    if not zones:
        state["zones_reason"] = "no readable thermal zone"
    if not clocks:
        state["cpu_reason"] = "no cpufreq interface"
    return state


def hottest(sysfs: Path = _SYSFS) -> float | None:
    """Return the highest temperature now in °C, or ``None`` where no zone can be read."""
    return max(read_zones(sysfs).values(), default=None)


def read_zones(sysfs: Path = _SYSFS) -> dict[str, float]:
    """Return the temperature of every readable zone in °C, by its type."""
    found: dict[str, float] = {}
    for zone in sorted((sysfs / "class/thermal").glob("thermal_zone*"), key=_number):
        millidegrees = _integer(zone / "temp")
        if millidegrees is None:
            continue
        kind = _text(zone / "type") or zone.name
        # two sensors of one type, one a socket, must not hide each other
        found[kind if kind not in found else f"{kind}:{zone.name}"] = millidegrees / 1000
    return found


def _clocks(root: Path) -> list[tuple[float, str | None]]:
    found = []
    for core in sorted(root.glob("cpu[0-9]*"), key=_number):
        khz = _integer(core / "cpufreq/scaling_cur_freq")
        if khz is not None:
            found.append((khz / 1000, _text(core / "cpufreq/scaling_governor")))
    return found


def _number(path: Path) -> int:
    digits = re.search(r"[0-9]+$", path.name)
    return int(digits[0]) if digits else 0


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,12}", text) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
