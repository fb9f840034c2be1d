from __future__ import annotations

from pathlib import Path

from mobilekit.profile.meters.thermal import hottest, read_thermal


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_zones_and_clocks_of_a_fixture_tree(tmp_path: Path) -> None:
    for number, (kind, temperature) in enumerate(
        [("x86_pkg_temp", "54000\n"), ("acpitz", "-5000\n"), ("x86_pkg_temp", "61500\n")]
    ):
        write(tmp_path / f"class/thermal/thermal_zone{number}/type", kind)
        write(tmp_path / f"class/thermal/thermal_zone{number}/temp", temperature)
    for core, khz in ((0, "1200000"), (1, "3400000"), (10, "800000")):
        write(tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
        write(tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "powersave\n")
    (tmp_path / "devices/system/cpu/cpufreq").mkdir()

    state = read_thermal(tmp_path)

    assert state == {
        "zones": {"x86_pkg_temp": 54.0, "acpitz": -5.0, "x86_pkg_temp:thermal_zone2": 61.5},
        "cpu_mhz": [1200.0, 3400.0, 800.0],
        "governors": ["powersave"],
    }
    assert hottest(tmp_path) == 61.5


def test_nothing_readable_is_null_with_reasons(tmp_path: Path) -> None:
    state = read_thermal(tmp_path)
    assert state["zones"] is None
    assert state["cpu_mhz"] is None
    assert state["zones_reason"] == "no readable thermal zone"
    assert state["cpu_reason"] == "no cpufreq interface"
    assert hottest(tmp_path) is None


def test_a_zone_that_does_not_answer_with_a_number_is_left_out(tmp_path: Path) -> None:
    for number, text in enumerate(("", "N/A", "99999999999999", "40000")):
        write(tmp_path / f"class/thermal/thermal_zone{number}/temp", text)
    (tmp_path / "class/thermal/thermal_zone4").mkdir()
    assert read_thermal(tmp_path)["zones"] == {"thermal_zone3": 40.0}
