from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.runtime.torch import TorchRuntime

from .conftest import same_metrics

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = VECTORS / "fixture_full", VECTORS / "fixture_key.csv"


class Stopped(Exception):
    """Stands for Ctrl-C."""


class StopsAfter:
    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self, amount: float = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


def start(runtime: Any, tokenizer: TextTokenizer, log: Path, questions: int = 5) -> None:
    with pytest.raises(Stopped):
        mobile_mmlu(
            runtime, tokenizer, FULL, key=KEY, resume_file=log, progress=StopsAfter(questions)
        )


def test_an_interrupted_run_ends_with_the_same_record(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    log = tmp_path / "deep" / "answers.jsonl"
    whole = mobile_mmlu(runtime, tokenizer, FULL, key=KEY)
    start(runtime, tokenizer, log)
    kept = log.read_bytes()
    assert kept.count(b"\n") == 1 + 5
    with log.open("ab") as stream:
        stream.write(b'{"id": "cut by a ki')  # kill -9 in the middle of a line
    seen: list[float] = []

    def count(amount: float = 1, note: str = "") -> None:
        seen.append(amount)

    given = {"key": KEY, "resume_file": log, "progress": count}
    resumed = mobile_mmlu(runtime, tokenizer, FULL, **given)  # type: ignore[arg-type]
    assert seen == [5] + [1] * (12 - 5)
    assert same_metrics(resumed, whole)
    assert resumed.letters == whole.letters
    assert log.read_bytes().startswith(kept)
    again = mobile_mmlu(runtime, tokenizer, FULL, **given)  # type: ignore[arg-type]
    assert again == resumed  # timings included: they were measured once
    assert seen == [5] + [1] * (12 - 5) + [12]


def test_the_file_holds_ids_letters_and_logprobs_but_no_text(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    log = tmp_path / "answers.jsonl"
    start(runtime, tokenizer, log)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
    names = {"id", "letter", "logprobs", "tokens", "ns", "dropped", "tie", "reason", "order"}
    assert all(set(row) == names for row in rows)
    for source in (FULL / "test").glob("*.csv"):
        text = source.read_text(encoding="utf-8").splitlines()[1].split(",")[1]
        assert text.strip('"') not in log.read_text(encoding="utf-8")


def test_answers_of_another_run_are_refused(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    log = tmp_path / "answers.jsonl"
    start(runtime, tokenizer, log)
    before = log.read_bytes()
    for changed in ({"limit": 3}, {"model_id": "other"}, {"data": VECTORS / "fixture_pro.csv"}):
        settings = {"data": FULL, "key": KEY, "resume_file": log, **changed}
        with pytest.raises(InvalidInputError, match="another run"):
            mobile_mmlu(runtime, tokenizer, **settings)
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a letter to my mother", "holds no answers of a run"),
        (b"not json\n", "line 1 is not JSON"),
        (b"{}\n", "another run"),
    ],
)
def test_a_file_that_is_not_ours_stays_as_it_is(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path, content: bytes, message: str
) -> None:
    log = tmp_path / "letter.txt"
    log.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        mobile_mmlu(runtime, tokenizer, FULL, resume_file=log)
    assert log.read_bytes() == content


def test_a_damaged_answer_is_refused(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    log = tmp_path / "answers.jsonl"
    start(runtime, tokenizer, log)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join([*lines[:2], lines[2].replace('"letter"', '"lettre"'), *lines[3:]]))
    with pytest.raises(InvalidInputError, match="line 3"):
        mobile_mmlu(runtime, tokenizer, FULL, key=KEY, resume_file=log)
