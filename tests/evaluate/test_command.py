"""``mobilekit evaluate`` on questions, and on results that are there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = VECTORS / "fixture_full", VECTORS / "fixture_key.csv"
QUESTIONS = ("--suite", "mobile_mmlu", "--set", f"data={FULL}")
Command = Callable[..., tuple[int, str, str]]


def test_letters_now_and_accuracy_later(command: Command, checkpoint: Path) -> None:
    code, out, err = command("evaluate", checkpoint, *QUESTIONS, "--out", "now")
    assert code == 0, err
    assert "12 answers, no accuracy (no answer key was given)" in out
    (file,) = Path("now").glob("*.json")
    assert file.name == "evaluate-local_fixture_full-torch.json"
    code, out, err = command("evaluate", file, "--set", f"key={KEY}", "--json")
    assert code == 0, err
    (scored,) = json.loads(out)
    assert scored["metrics"]["n"] == 12
    assert "fields" not in scored["metrics"]
    with_fields = ["--set", f"key={KEY}", "--set", f"data={FULL}", "--out", "later"]
    code, out, err = command("evaluate", file, *with_fields)
    assert code == 0, err
    (later,) = Path("later").glob("*.json")
    assert len(json.loads(later.read_text(encoding="utf-8"))["metrics"]["fields"]) == 12
    code, out, err = command("evaluate", checkpoint, *QUESTIONS, "--set", f"key={KEY}", "--json")
    (at_once,) = json.loads(out)
    same = ("accuracy", "interval", "fields", "categories", "correct_ids")
    stored = json.loads(later.read_text(encoding="utf-8"))["metrics"]
    assert {name: stored[name] for name in same} == {n: at_once["metrics"][n] for n in same}


def test_against_another_result(command: Command, checkpoint: Path) -> None:
    key = ("--set", f"key={KEY}")
    assert command("evaluate", checkpoint, *QUESTIONS, *key, "--out", "first")[0] == 0
    (first,) = Path("first").glob("*.json")
    generate = ("--set", "scorer=generate", "--against", first, "--out", "second")
    code, out, err = command("evaluate", checkpoint, *QUESTIONS, *key, *generate)
    assert code == 0, err
    assert "torch → torch" in out
    assert "(exact McNemar)" in out
    stored = json.loads(Path("second/compare-torch.json").read_text(encoding="utf-8"))
    assert stored["n"] == 12
    code, out, err = command("evaluate", first, "--against", first, "--json")
    assert json.loads(out)["comparisons"][0]["agreement"] == 1
    code, out, err = command(
        "evaluate", checkpoint, "--suite", "mobile_mmlu", "--set", "limit=3", "--against", first
    )
    assert code == 2
    assert "questions in common" in err


def test_the_submission_file(command: Command, checkpoint: Path) -> None:
    code, out, err = command("evaluate", checkpoint, *QUESTIONS, "--submission", "out")
    assert code == 0, err
    (file,) = Path("out").iterdir()
    assert file.name == f"{checkpoint.name}_predictions.csv"
    rows = file.read_bytes().split(b"\r\n")
    assert rows[0] == b"question_id,predicted_answer"
    ids = [row.split(b",")[0].decode() for row in rows[1:-1]]
    assert ids == [question.id for question in load_dataset(FULL).questions]
    code, out, err = command(
        "evaluate",
        checkpoint,
        "--suite",
        "perplexity",
        "--set",
        "max_tokens=9",
        "--submission",
        "o",
    )
    assert code == 2
    assert "no letters to submit" in err


def test_answers_of_an_earlier_run_are_taken(command: Command, checkpoint: Path) -> None:
    arguments = ("evaluate", checkpoint, *QUESTIONS, "--answers", "kept", "--json")
    first = json.loads(command(*arguments)[1])
    (log,) = Path("kept").iterdir()
    assert log.name == "mobile_mmlu-torch.answers.jsonl"
    before = log.read_bytes()
    again = json.loads(command(*arguments)[1])
    assert again[0]["samples"] == first[0]["samples"]  # measured once
    assert log.read_bytes() == before


def test_a_result_without_letters_is_refused(command: Command, checkpoint: Path) -> None:
    quick = ("--suite", "perplexity", "--set", "max_tokens=9", "--out", "text")
    assert command("evaluate", checkpoint, *quick)[0] == 0
    (file,) = Path("text").glob("*.json")
    code, out, err = command("evaluate", file)
    assert code == 2
    assert "has no letters: it is of workload perplexity" in err


def test_lm_eval_tasks(command: Command) -> None:
    code, out, err = command("evaluate", "--lm-eval-task", "task", "--set", "limit=20")
    assert code == 0, err
    assert "hold the text of your questions" in out
    assert "--tasks mobilekit_sample_80" in out
    assert Path("task/_mobilekit_sample_80.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate was given"),
        (["result.json"], "result.json does not exist"),
        (["result.json", "--set", "limit=3"], "setting 'limit' is for running a model"),
        (["embedded", "--against", "none.json"], "none.json does not exist"),
        (["embedded", "--lm-eval-task", "t", "--set", "limit=0"], "'limit' is 0"),
    ],
)
def test_what_is_refused(command: Command, arguments: list[str], message: str) -> None:
    code, out, err = command("evaluate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 2
