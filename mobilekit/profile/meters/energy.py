"""Joules from the RAPL counters of Linux, or the reason why there are none.

RAPL counts a whole processor package, not a process: the idle power of the same session is
subtracted, and the record says so. Counters wrap at ``max_energy_range_uj``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilekit.schema.result import EnergyRecord

MIN_SAMPLES = 10
MIN_SECONDS = 1.0
INTERVAL_SECONDS = 0.1
_SYSFS = Path("/sys")


class EnergyUnavailableError(Exception):
    """There is no honest joule figure; the text says why."""


@dataclass(frozen=True)
class Zone:
    """One counter: its name, its directory, and the value (µJ) at which it wraps."""

    name: str
    path: Path
    range_uj: int

    def read(self) -> int:
        """Return the counter in µJ.

        Raises:
            EnergyUnavailableError: If it cannot be read.
        """
        return _counter(self.path / "energy_uj", self.name)


@dataclass(frozen=True)
class Reading:
    """All counters at one moment: monotonic nanoseconds, and µJ in the order of the zones."""

    ns: int
    microjoules: tuple[int, ...]


def find_zones(sysfs: Path = _SYSFS) -> tuple[Zone, ...]:
    """Return the package counters and the memory counters beside them.

    ``core`` and ``uncore`` are parts of their package, ``psys`` contains it, and
    ``intel-rapl-mmio`` is a second door to the same counter: none of them is counted.

    Raises:
        EnergyUnavailableError: If there is no counter, or one cannot be read.
    """
    root = sysfs / "class/powercap"
    if not root.is_dir():
        raise EnergyUnavailableError("no powercap interface")
    zones: dict[str, Zone] = {}
    for path in sorted(root.glob("intel-rapl:*")):
        name = _name(path)
        if not (name.startswith("package-") or name == "dram"):
            continue
        parent = _name(root / path.name.rpartition(":")[0]) if name == "dram" else ""
        label = f"{parent}/{name}" if parent else name
        zone = Zone(label, path, _counter(path / "max_energy_range_uj", label))
        zone.read()  # a counter that only root may read is found out here, not during the run
        zones[label] = zone
    if not any(name.startswith("package-") and "/" not in name for name in zones):
        raise EnergyUnavailableError("no RAPL package counter in the powercap interface")
    return tuple(zones[name] for name in sorted(zones))


def _name(path: Path) -> str:
    try:
        return (path / "name").read_text().strip()
    except OSError:
        return ""


def _counter(path: Path, zone: str) -> int:
    try:
        text = path.read_text().strip()
    except PermissionError:
        raise EnergyUnavailableError(
            f"{path.name} of {zone} may be read by root only (permission denied)"
        ) from None
    except OSError as error:
        raise EnergyUnavailableError(
            f"{path.name} of {zone} cannot be read: {error.strerror}"
        ) from None
    if not (text.isascii() and text.isdigit()):
        raise EnergyUnavailableError(f"{path.name} of {zone} is not a number")
    return int(text)


class Recorder:
    """Reads all zones ten times a second in the background, and whenever it is told to.

    Use it as a context manager around what is measured; ``readings`` is complete afterwards.
    """

    def __init__(
        self,
        zones: Sequence[Zone],
        *,
        interval: float = INTERVAL_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.zones = tuple(zones)
        self.readings: list[Reading] = []
        self.failure: EnergyUnavailableError | None = None
        self._interval, self._clock = interval, clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Recorder:
        self.mark()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mark()

    def mark(self) -> int:
        """Take a reading now and return its index."""
        with self._lock:
            try:
                values = tuple(zone.read() for zone in self.zones)
            except EnergyUnavailableError as error:
                self.failure = error
            else:
                self.readings.append(Reading(self._clock(), values))
            return len(self.readings) - 1

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self.mark()


def joules(readings: Sequence[Reading], zones: Sequence[Zone]) -> float:
    """Return the energy between the first and the last reading, in J, over all zones.

    A counter that went down has wrapped once; at ten readings a second it cannot wrap twice.
    """
    total = 0
    for before, after in zip(readings, readings[1:], strict=False):
        for zone, old, new in zip(zones, before.microjoules, after.microjoules, strict=True):
            total += new - old if new >= old else new - old + zone.range_uj
    return total / 1e6


def seconds(readings: Sequence[Reading]) -> float:
    """Return the time between the first and the last reading."""
    return (readings[-1].ns - readings[0].ns) / 1e9 if readings else 0.0


def watts(readings: Sequence[Reading], zones: Sequence[Zone]) -> float:
    """Return the mean power of a window.

    Raises:
        EnergyUnavailableError: If the window is too short to say.
    """
    _require_window(len(readings), seconds(readings), "idle baseline")
    return joules(readings, zones) / seconds(readings)


def energy_record(
    zones: Sequence[Zone],
    repetitions: Sequence[Sequence[Reading]],
    *,
    idle_watts: float,
    tokens: int,
) -> EnergyRecord:
    """Return what the repetitions took beyond idling.

    Args:
        zones: The counters.
        repetitions: Readings of each repetition, from its start to its end.
        idle_watts: Power without the work, measured in the same session.
        tokens: Tokens that one repetition processed.

    Returns:
        A measured record: net joules of all repetitions together; joules a token, and their
        sample standard deviation over the repetitions. Unavailable, with the reason, where the
        window is too short or the work is lost in the idle power.

    Source: E_net = E - P_idle T.
    """
    lengths = [seconds(r) for r in repetitions]
    count = sum(len(r) for r in repetitions)
    try:
        _require_window(count, math.fsum(lengths), "run")
    except EnergyUnavailableError as error:
        return unavailable(str(error))
    gross = [joules(r, zones) for r in repetitions]
    net = [e - idle_watts * t for e, t in zip(gross, lengths, strict=True)]
    if math.fsum(net) <= 0:
        return unavailable(
            f"{math.fsum(gross):.3g} J in {math.fsum(lengths):.3g} s are not above the idle "
            f"baseline of {idle_watts:.3g} W"
        )
    per_token = [e / tokens for e in net]
    mean = math.fsum(per_token) / len(per_token)
    squares = math.fsum((e - mean) ** 2 for e in per_token)
    return EnergyRecord(
        status="measured",
        joules=math.fsum(net),
        joules_per_token=mean,
        std=math.sqrt(squares / (len(net) - 1)) if len(net) > 1 else None,
        source="rapl:" + "+".join(zone.name for zone in zones),
        scope="package",
        baseline_watts=idle_watts,
        interval_s=math.fsum(lengths),
        samples=count,
    )


def unavailable(reason: str) -> EnergyRecord:
    """Return the record of a figure that cannot be had."""
    return EnergyRecord(status="unavailable", reason=reason)


def _require_window(samples: int, length: float, what: str) -> None:
    if samples < MIN_SAMPLES:
        raise EnergyUnavailableError(
            f"only {samples} counter readings in the {what}, at least {MIN_SAMPLES} are needed"
        )
    if length < MIN_SECONDS:
        raise EnergyUnavailableError(
            f"the {what} lasted {length:.2g} s, at least {MIN_SECONDS:g} s are needed"
        )
