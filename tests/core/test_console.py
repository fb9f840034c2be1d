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
