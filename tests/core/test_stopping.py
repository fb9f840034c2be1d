from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mobilekit.core import stopping


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stopping, "_received", [])
    # a shell starts what it runs in the background with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wrapped(*, explicitly: bool) -> Exception:
    """Return what transformers' lazy importer makes of a Ctrl-C."""
    try:
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise ModuleNotFoundError("Qwen3MoeForCausalLM") from (error if explicitly else None)
    except ModuleNotFoundError as error:
        return error


@pytest.mark.parametrize("explicitly", [True, False])
def test_an_interrupt_that_a_library_wrapped_is_still_one(explicitly: bool) -> None:
    assert stopping.exit_code(wrapped(explicitly=explicitly)) == 130
    assert stopping.exit_code(ValueError()) is None
    looped = ValueError()
    looped.__context__ = looped
    assert stopping.exit_code(looped) is None


def test_a_signal_whose_exception_was_lost_is_not_forgotten() -> None:
    with pytest.raises(KeyboardInterrupt):
        stopping._stop(signal.SIGTERM, None)
    assert stopping.exit_code(ValueError()) == 143


def test_a_second_kind_of_signal_does_not_cut_the_clean_up_short() -> None:
    with pytest.raises(KeyboardInterrupt):
        stopping._stop(signal.SIGINT, None)
    stopping._stop(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):  # who presses twice is in a hurry
        stopping._stop(signal.SIGINT, None)
    assert stopping.exit_code(ValueError()) == 130


WHILE_IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
signal.signal(signal.{name}, signal.SIG_DFL)
from mobilekit.cli.entry import main
main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_a_signal_while_the_program_still_imports_is_two_lines(
    name: str, code: int, said: str
) -> None:
    command = [sys.executable, "-c", WHILE_IMPORTING.replace("{name}", name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.splitlines() == [f"error: {said}", "Nothing was written; run it again."]


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from mobilekit.core import stopping; stopping.listen(); "
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_postponed_signal_arrives_when_the_block_ends(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda n, _: heard.append(n))
    try:
        with stopping.postponed() as held:
            assert held.number is None
            signal.raise_signal(number)
            assert held.number == number
            assert heard == []
        assert heard == [number]
        signal.raise_signal(number)  # heard as it was before
        assert heard == [number] * 2
    finally:
        signal.signal(number, before)


def interrupted_twice(*, patient: bool, reached: list[str]) -> None:
    with stopping.postponed(patient=patient):
        signal.raise_signal(signal.SIGINT)
        reached.append("once")
        signal.raise_signal(signal.SIGINT)
        reached.append("twice")


def test_asked_twice_it_does_not_wait() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice(patient=False, reached=reached)
    assert reached == ["once"]
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice(patient=True, reached=reached)
    assert reached == ["once", "once", "twice"]


def fails_while_asked_to_stop() -> None:
    with stopping.postponed():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")


def test_a_block_that_fails_tells_of_its_own_failure() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"):
        fails_while_asked_to_stop()
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.postponed() as held:
            signal.raise_signal(signal.SIGINT)
            assert held.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_hears_no_signals_and_needs_none() -> None:
    found: list[int | None] = []

    def work() -> None:
        with stopping.postponed() as held:
            found.append(held.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
