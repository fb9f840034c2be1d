"""No word of a question leaves the user's own files, whatever is run and whatever fails."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
KEY = VECTORS / "fixture_key.csv"
MARK = "ZQXV"
COLUMNS = ("Question", "A", "B", "C", "D")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture with a marker in every text; some questions odd, so that warnings are given."""
    folder = tmp_path_factory.mktemp("marked")
    for file in (VECTORS / "fixture_full" / "test").glob("*.csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row.update({name: f"{MARK} {row[name]} {MARK}" for name in COLUMNS})
            if file.stem == "accounting":
                row["B"] = row["A"]
        with (folder / file.name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def check(folder: Path, *said: str) -> None:
    for text in said:
        assert MARK not in text
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert MARK.encode() not in path.read_bytes(), path
        assert MARK not in path.name


@pytest.mark.parametrize(
    "settings", [["scorer=loglik", "rotations=4"], ["scorer=generate"], ["scorer=cloze"]]
)
def test_nothing_written_or_said_holds_text(
    command: Command, checkpoint: Path, marked: Path, tmp_path: Path, settings: list[str]
) -> None:
    given = [f"data={marked}", f"key={KEY}", *settings]
    pairs = [part for one in given for part in ("--set", one)]
    places = ("--out", "out", "--submission", "submission", "--answers", "answers", "--verbose")
    code, out, err = command("evaluate", checkpoint, "--suite", "mobile_mmlu", *pairs, *places)
    assert code == 0, err
    assert "1 with equal options" in err
    check(tmp_path, out, err)
    assert len(list(tmp_path.rglob("*.*"))) >= 3
    code, out, err = command(
        "evaluate", checkpoint, "--suite", "mobile_mmlu", *pairs, "--json", "--answers", "answers"
    )
    check(tmp_path, out, err)
    (result,) = (tmp_path / "out").glob("evaluate-*.json")
    code, out, err = command(
        "evaluate", result, "--set", f"key={KEY}", "--set", f"data={marked}", "--against", result
    )
    assert code == 0, err
    check(tmp_path, out, err)


def test_a_whole_run_with_its_report_holds_no_text(
    command: Command, checkpoint: Path, marked: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"version: 1\nmodel: {{source: {checkpoint}}}\nexport: null\n"
        f"evaluate: [{{suite: mobile_mmlu, data: {marked}, key: {KEY}}}]\n",
        encoding="utf-8",
    )
    code, out, err = command("run", "recipe.yaml", "--out", "ran")
    assert code == 0, err
    assert (tmp_path / "ran" / "report.html").is_file()
    check(tmp_path, out, err)


def test_an_lm_eval_task_says_nothing_of_it_either(
    command: Command, marked: Path, tmp_path: Path
) -> None:
    settings = ("--set", f"data={marked}", "--set", f"key={KEY}")
    code, out, err = command("evaluate", "--lm-eval-task", "task", *settings)
    assert code == 0, err
    assert MARK not in out + err
    for path in (tmp_path / "task").glob("*.yaml"):
        assert MARK not in path.read_text(encoding="utf-8")  # only the data beside it hold text


def _cut(text: str) -> str:
    return text[: len(text) // 2] + '"' + text[len(text) // 2 :]


DAMAGES: dict[str, Callable[[str], str]] = {
    "an open quote": _cut,
    "a column less": lambda text: text.replace(
        "question_id,Question,A,B", "question_id,Question,A"
    ),
    "an id that is text": lambda text: text.replace("\n", f"\n{MARK} is no id,", 1),
    "a cell more": lambda text: text.rstrip("\r\n") + f",{MARK}\n",
    "a repeated row": lambda text: text + text.split("\n", 1)[1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_error_shows_text(
    command: Command, checkpoint: Path, marked: Path, tmp_path: Path, damage: str
) -> None:
    broken = shutil.copytree(marked, tmp_path / "broken")
    file = broken / "law.csv"
    file.write_text(DAMAGES[damage]((marked / "first_aid.csv").read_text(encoding="utf-8")))
    code, out, err = command(
        "evaluate", checkpoint, "--suite", "mobile_mmlu", "--set", f"data={broken}"
    )
    assert code == 2, err
    assert MARK not in out + err


def test_a_crash_with_its_traceback_shows_no_text(
    command: Command, checkpoint: Path, marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilekit.evaluate.suites.mobile_mmlu import loglik

    def broken(*given: object, **more: object) -> None:
        raise RuntimeError(f"broken with {given!r}")

    monkeypatch.setattr(loglik, "fit", broken)
    code, out, err = command(
        "evaluate", checkpoint, "--suite", "mobile_mmlu", "--set", f"data={marked}"
    )
    assert code != 0
    assert MARK not in out + err
