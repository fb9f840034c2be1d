from __future__ import annotations

from collections.abc import Iterator

import pytest

from mobilekit.core import console


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    console.configure()


def test_a_log_tells_that_a_phase_began(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(3, "held-out loss before", announce=True) as bar:
        bar.advance()
    assert capsys.readouterr().err == "  held-out loss before\n"
    with console.progress(3, "quick") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_quiet_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    with console.progress(3, "held-out loss before", announce=True):
        pass
    assert capsys.readouterr().err == ""


HEADERS = ("artifact", "size", "verdict")
ROWS = [("onnx-cpu-fp32", "1.00 MB", "ok"), ("coreml-fp32", "2.00 MB", "")]


def test_a_table_wider_than_the_terminal_becomes_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(console, "_columns", lambda: 31)
    console.table(HEADERS, ROWS)
    assert capsys.readouterr().out == (
        "onnx-cpu-fp32\n  size      1.00 MB\n  verdict   ok\ncoreml-fp32\n  size      2.00 MB\n"
    )
    monkeypatch.setattr(console, "_columns", lambda: 33)
    console.table(HEADERS, ROWS)
    assert capsys.readouterr().out.splitlines()[1] == "onnx-cpu-fp32   1.00 MB   ok"


def test_a_table_in_a_file_stays_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(HEADERS, [("x" * 200, "1", "ok")])
    assert len(capsys.readouterr().out.splitlines()) == 2
