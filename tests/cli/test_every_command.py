"""Every command once as people and once as programs use it; none may forget the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilekit.cli.main import COMMANDS

from .conftest import Said, write_recipe

AIMER = ["--method", "aimer"]
NEW = ["--out", "new"]
ONNX = ["--target", "onnx", "--precision", "fp32", "--context-length", "64"]
QUICK = ["--set", "max_tokens=64", "--suite", "perplexity"]
TRAIN = ["--set", "objective=[next_token]", "--set", "tokens=1000"]

FAST: dict[str, list[str]] = {
    "init": ["new.yaml"],
    "run": ["recipe.yaml", *NEW],
    "plan": ["MOE", *AIMER, *NEW],
    "compress": ["MOE", *AIMER, *NEW],
    "evaluate": ["MOE", *QUICK, *NEW],
    "report": ["ran"],
    "tokens": ["recipe.yaml", "--tokenizer", "MOE", "--out", "new.npy"],
    "methods": [],
    "devices": [],
    "doctor": [],
}
# tests/test_demo.py runs the demo, tests/hub asks a server of its own
ELSEWHERE = ("demo", "pull", "push")
SLOW: dict[str, list[str]] = {
    "recover": ["MOE", *TRAIN, *NEW],
    "export": ["MOE", *ONNX, *NEW],
    "profile": ["MOE", "--workload", "pp8", "--repetitions", "1", *NEW],
    "verify": ["BUNDLE"],
}


def test_no_command_is_left_out() -> None:
    assert sorted([*FAST, *SLOW, *ELSEWHERE]) == sorted(COMMANDS)


@pytest.fixture
def check(shelf: Path, tmp_path: Path, mobilekit: Callable[..., Said]) -> Callable[..., None]:
    write_recipe(
        tmp_path / "recipe.yaml",
        model={"source": str(shelf / "moe")},
        compress=[{"method": "aimer"}],
    )

    def run(verb: str, arguments: list[str], *, as_json: bool) -> None:
        if verb == "report":
            assert mobilekit("run", "recipe.yaml", "--out", "ran").code == 0
        given = [str(shelf / "moe") if a == "MOE" else a for a in arguments]
        said = mobilekit(verb, *given, *(["--json"] if as_json else []))
        assert said.code == 0, said
        assert not (verb == "verify" and said.warnings), said
        if as_json:
            json.loads(said.out)
        else:
            assert said.out.strip()
            assert not said.out.lstrip().startswith(("{", "["))

    return run


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize("verb", FAST)
def test_a_command_answers(verb: str, as_json: bool, check: Callable[..., None]) -> None:
    check(verb, FAST[verb], as_json=as_json)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize("verb", SLOW)
def test_a_slow_command_answers(
    verb: str, as_json: bool, good_bundle: Path, check: Callable[..., None]
) -> None:
    arguments = [str(good_bundle) if a == "BUNDLE" else a for a in SLOW[verb]]
    check(verb, arguments, as_json=as_json)
