from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.profile.meters import energy
from mobilekit.profile.meters.energy import EnergyUnavailableError, Reading, Recorder, Zone

RANGE = 1_000_000  # µJ


def zone(root: Path, entry: str, name: str, microjoules: str, wraps_at: str = str(RANGE)) -> Path:
    path = root / "class/powercap" / entry
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(wraps_at + "\n")
    (path / "energy_uj").write_text(microjoules + "\n")
    return path


def server(root: Path) -> None:
    """Two packages with memory, and all the entries that must not be counted."""
    (root / "class/powercap/intel-rapl").mkdir(parents=True)
    zone(root, "intel-rapl:0", "package-0", "100")
    zone(root, "intel-rapl:0:0", "core", "60")
    zone(root, "intel-rapl:0:1", "dram", "30")
    zone(root, "intel-rapl:1", "package-1", "200")
    zone(root, "intel-rapl:1:0", "dram", "40")
    zone(root, "intel-rapl:2", "psys", "999")
    zone(root, "intel-rapl-mmio:0", "package-0", "100")


def test_packages_and_their_memory_are_found_once_each(tmp_path: Path) -> None:
    server(tmp_path)
    zones = energy.find_zones(tmp_path)
    assert [z.name for z in zones] == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert [z.read() for z in zones] == [100, 30, 200, 40]
    assert {z.range_uj for z in zones} == {RANGE}


def test_no_interface_and_no_package_say_so(tmp_path: Path) -> None:
    with pytest.raises(EnergyUnavailableError, match="no powercap interface"):
        energy.find_zones(tmp_path)
    zone(tmp_path, "intel-rapl:0", "psys", "1")
    with pytest.raises(EnergyUnavailableError, match="no RAPL package counter"):
        energy.find_zones(tmp_path)


@pytest.mark.parametrize("text", ["", "garbage", "-5", "1.5", "²"])
def test_a_counter_that_is_not_a_number_is_no_zero(tmp_path: Path, text: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", text)
    with pytest.raises(EnergyUnavailableError, match="energy_uj of package-0 is not a number"):
        energy.find_zones(tmp_path)


def test_permission_denied_is_the_reason(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", "5") / "energy_uj"
    path.chmod(0)
    if os.access(path, os.R_OK):
        reason = _reason_as_nobody(tmp_path)
    else:
        with pytest.raises(EnergyUnavailableError) as caught:
            energy.find_zones(tmp_path)
        reason = str(caught.value)
    assert reason == "energy_uj of package-0 may be read by root only (permission denied)"


def _reason_as_nobody(root: Path) -> str:
    """Root may read everything: ask in a child process without that right."""
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o555)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setuid(65534)
            energy.find_zones(root)
            os.write(writer, b"readable")
        except EnergyUnavailableError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return os.read(reader, 1000).decode()


def zones_of(count: int) -> list[Zone]:
    return [Zone(f"package-{i}", Path("unused"), RANGE) for i in range(count)]


def trace(
    watts: list[float], interval: float = 0.1, start: tuple[int, int] = (0, 0)
) -> list[Reading]:
    """Readings of one zone at constant power in each interval, wrapping as the hardware does."""
    nanoseconds, counter = start
    readings = [Reading(nanoseconds, (counter % RANGE,))]
    for power in watts:
        nanoseconds += round(interval * 1e9)
        counter += round(power * interval * 1e6)
        readings.append(Reading(nanoseconds, (counter % RANGE,)))
    return readings


@given(st.lists(st.floats(0, 9.9), min_size=1, max_size=60), st.integers(0, RANGE - 1))
def test_joules_are_the_integral_of_the_power_across_wraps(watts: list[float], at: int) -> None:
    expected = sum(round(p * 0.1 * 1e6) for p in watts) / 1e6
    assert energy.joules(trace(watts, start=(0, at)), zones_of(1)) == pytest.approx(expected)


def test_zones_add_up_and_wrap_apart() -> None:
    readings = [
        Reading(0, (999_000, 10)),
        Reading(1_000_000_000, (500, 510)),  # the first wrapped: 1,500 µJ; the second took 500
        Reading(2_000_000_000, (1_500, 510)),
    ]
    assert energy.joules(readings, zones_of(2)) == pytest.approx(0.003)
    assert energy.seconds(readings) == 2.0


def test_net_energy_is_exact_on_a_known_trace() -> None:
    # three repetitions of 0.5 s at 6, 7 and 8 W over 2 W of idling, four tokens each
    runs = [trace([power] * 5) for power in (6.0, 7.0, 8.0)]
    record = energy.energy_record(zones_of(1), runs, idle_watts=2.0, tokens=4)
    per_token = np.array([2.0, 2.5, 3.0]) / 4
    assert record.status == "measured"
    assert record.joules == pytest.approx(7.5)
    assert record.joules_per_token == pytest.approx(per_token.mean())
    assert record.std == pytest.approx(per_token.std(ddof=1))
    assert (record.baseline_watts, record.source, record.scope) == (
        2.0,
        "rapl:package-0",
        "package",
    )
    assert record.interval_s == pytest.approx(1.5)
    assert record.samples == 18
    assert record.reason is None


def test_idle_power_is_the_mean_of_the_window() -> None:
    assert energy.watts(trace([2.0, 4.0] * 10), zones_of(1)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (trace([5.0] * 8, interval=0.5), "only 9 counter readings in the run, at least 10"),
        (trace([5.0] * 20, interval=0.01), "the run lasted 0.2 s, at least 1 s are needed"),
        (trace([1.9] * 20), "3.8 J in 2 s are not above the idle baseline of 2 W"),
        (trace([0.0] * 20), "0 J in 2 s are not above the idle baseline of 2 W"),
    ],
)
def test_a_window_that_proves_nothing_gives_no_joules(readings: list[Reading], reason: str) -> None:
    record = energy.energy_record(zones_of(1), [readings], idle_watts=2.0, tokens=1)
    assert record.status == "unavailable"
    assert record.joules is None
    assert record.joules_per_token is None
    assert record.reason is not None
    assert reason in record.reason


def test_an_idle_window_that_is_too_short_is_refused() -> None:
    with pytest.raises(EnergyUnavailableError, match="idle baseline lasted 0.5 s"):
        energy.watts(trace([2.0] * 50, interval=0.01), zones_of(1))


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Path]:
    """A live counter that follows the clock at 3 W, wrapping every third of a second."""
    path = zone(tmp_path, "intel-rapl:0", "package-0", "0")
    begin, stop = time.monotonic(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            value = int((time.monotonic() - begin) * 3e6) % RANGE
            (path / "next").write_text(f"{value}\n")
            os.replace(path / "next", path / "energy_uj")
            time.sleep(0.002)

    thread = threading.Thread(target=run)
    thread.start()
    yield tmp_path
    stop.set()
    thread.join()


def test_the_recorder_samples_by_itself_and_on_request(meter: Path) -> None:
    zones = energy.find_zones(meter)
    with Recorder(zones, interval=0.01) as recorder:
        first = recorder.mark()
        time.sleep(0.3)
        last = recorder.mark()
    window = recorder.readings[first : last + 1]
    assert recorder.failure is None
    assert len(window) >= 3
    assert all(a.ns < b.ns for a, b in zip(recorder.readings, recorder.readings[1:], strict=False))
    assert energy.joules(window, zones) > 0


def test_a_counter_that_vanishes_during_the_run_is_a_failure(meter: Path) -> None:
    lost = Zone("package-0", meter / "gone", RANGE)
    with Recorder([lost]) as recorder:
        pass
    assert recorder.readings == []
    assert "cannot be read" in str(recorder.failure)
