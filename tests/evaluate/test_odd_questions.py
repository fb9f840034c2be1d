"""Questions as real files have them, through every scorer: nothing fails, everything is counted."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import pytest

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS
from mobilekit.evaluate.suites.mobile_mmlu.run import SCORERS, mobile_mmlu
from mobilekit.runtime.torch import TorchRuntime

HEADER = ["question_id", "Question", *LETTERS, "Field"]
ODD = [
    ["1", "Which?", "None", "null", "NaN", "N/A", "law"],
    ["2", "", "a", "b", "c", "d", "law"],
    ["3", "Which?", "", "", "", "", "law"],
    ["4", "Which?", "same", "same", "same", "same", "law"],
    ["5", 'Two\r\nlines, "quoted"', " a ", "b\n", "é", "\U0001f600", "a field of its own"],
    ["6", "<|end|>", "</think>", "A", "B", "C", ""],
    ["7", "word " * 400, "a", "b", "c", "d", "law"],
    ["8", "Which?", "a", "b", "c", "word " * 400, "law"],
]


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([HEADER, *rows])
    return path


def key_of(path: Path, letters: dict[str, str]) -> Path:
    lines = "".join(f"{name},{letter}\n" for name, letter in letters.items())
    path.write_text(f"question_id,answer\n{lines}", encoding="utf-8")
    return path


@pytest.mark.parametrize("scorer", SCORERS)
def test_odd_questions_are_asked_and_counted(
    runtime: TorchRuntime,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scorer: str,
) -> None:
    data = write(tmp_path / "odd.csv", ODD)
    key = key_of(tmp_path / "key.csv", {row[0]: "A" for row in ODD})
    outcome = mobile_mmlu(runtime, tokenizer, data, key=key, scorer=scorer)
    metrics = outcome.metrics
    assert (metrics["asked"], metrics["n"]) == (8, 8)
    assert metrics["invalid"]["too_long"] == 1
    assert metrics["truncated"] == 1
    assert metrics["dataset"]["warnings"] == {
        "empty_question": 1,
        "empty_option": 1,
        "equal_options": 2,
    }
    said = capsys.readouterr().err
    assert "2 with equal options, asked all the same" in said
    assert metrics["categories"]["Other"]["n"] == 2
    if scorer == "cloze":
        assert metrics["cloze"]["acc_norm"]["n"] == 8
        assert metrics["ties"] >= 2  # both questions whose options are all the same


@pytest.mark.parametrize("scorer", ["loglik", "generate"])
def test_random_letters_on_4000_questions_are_at_chance(
    planted: Any, tokenizer: TextTokenizer, tmp_path: Path, scorer: str
) -> None:
    """The whole way, from a file of invented questions to the figure."""

    def pick(salt: str, name: str) -> str:
        return LETTERS[hashlib.sha256(f"{salt}{name}".encode()).digest()[0] % 4]

    names = [f"{number:08x}" for number in range(4000)]
    data = write(tmp_path / "q.csv", [[n, f"q{n}?", "1", "2", "3", "4", "law"] for n in names])
    key = key_of(tmp_path / "key.csv", {name: pick("key", name) for name in names})

    def choose(text: str) -> dict[str, float]:
        if scorer == "generate" and not text.endswith("\n"):
            return {"<|end|>": 5.0}
        letter = pick("choice", text.partition("?")[0][-8:])
        return {letter if scorer == "generate" else f" {letter}": 5.0}

    metrics = mobile_mmlu(
        planted(tokenizer, choose), tokenizer, data, key=key, scorer=scorer
    ).metrics
    assert metrics["n"] == 4000
    assert metrics["invalid_rate"] == 0
    assert metrics["accuracy"] == pytest.approx(0.25, abs=0.014)
    assert metrics["interval"][0] < 0.25 < metrics["interval"][1]
    assert metrics["position"]["total_variation"] < 0.03
