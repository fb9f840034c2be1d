from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError
from mobilekit.evaluate.suites.mobile_mmlu.dataset import limited, load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import OTHER, field_table, find_field
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, read_key, read_questions

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
HEADER = ["question_id", "Question", "A", "B", "C", "D"]
SECRET = "SECRETTEXT"
GOOD = ["0000000a", f"{SECRET} 1?", f"{SECRET} w", f"{SECRET} x", f"{SECRET} y", f"{SECRET} z"]


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_the_table_has_80_fields_9_categories_and_16186_questions() -> None:
    table = field_table()
    per_category: dict[str, int] = {}
    for field in table:
        per_category[field.category] = per_category.get(field.category, 0) + field.questions
    assert len({field.name for field in table}) == len(table) == 80
    assert per_category == {
        "Academic & Learning": 3198,
        "Business & Career": 1996,
        "Technology & Digital": 1522,
        "Health & Safety": 1480,
        "Lifestyle & Personal": 3352,
        "Home & Family": 1987,
        "Culture & Society": 1837,
        "Environment": 383,
        "Miscellaneous": 431,
    }
    assert sum(per_category.values()) == 16_186


@pytest.mark.parametrize(
    ("label", "name", "category"),
    [
        ("communication_and_public_speaking", "communication_skills", "Business & Career"),
        (
            "photography_basics_and_smartphone_photography",
            "photography_basics",
            "Lifestyle & Personal",
        ),
        ("environmental_and_sustainable_living", "sustainable_living", "Environment"),
        ("First Aid", "first_aid", "Health & Safety"),
        ("marketing_and_sales_strarigies", "marketing__and_sales_strarigies", "Business & Career"),
        ("Underwater  Basketry", "underwater_basketry", OTHER),
        ("", "unnamed", OTHER),
    ],
)
def test_field_names_as_data_files_write_them(label: str, name: str, category: str) -> None:
    field = find_field(label)
    assert (field.name, field.category) == (name, category)
    assert "_" not in field.words
    assert "  " not in field.words


def test_full_layout_and_pro_file_agree_where_they_overlap() -> None:
    full = load_dataset(VECTORS / "fixture_full", VECTORS / "fixture_key.csv")
    pro = load_dataset(VECTORS / "fixture_pro.csv", VECTORS / "fixture_key.csv")
    assert len(full.questions) == 12
    assert len(pro.questions) == 6
    by_id = {question.id: question for question in full.questions}
    for question in pro.questions:
        assert question == by_id[question.id]
    assert by_id["037881fe"].text.count("\n") == 1
    assert by_id["dfe43ade"].options[3] == 'Raw onion, "finely" chopped'
    assert full.key is not None
    assert "".join(full.key[i] for i in full.key) == "ABCD" * 3
    assert not full.is_mobile_mmlu
    assert full.name == "local:fixture_full"


def test_a_set_with_the_published_counts_is_recognised(tmp_path: Path) -> None:
    number = 0
    for field in field_table():
        rows = []
        for _ in range(field.questions):
            number += 1
            rows.append([f"{number:08x}", "?", "1", "2", "3", "4"])
        write(tmp_path / f"{field.name}.csv", rows)
    dataset = load_dataset(tmp_path)
    assert dataset.is_mobile_mmlu
    assert (dataset.name, dataset.licence) == ("Mobile-MMLU", "CC-BY-NC-ND-4.0")
    some = limited(dataset, 400, seed=3)
    assert len(some.questions) == 400
    counts = {field.name: 0 for field in field_table()}
    for question in some.questions:
        counts[question.field.name] += 1
    for field in field_table():
        assert abs(counts[field.name] - 400 * field.questions / 16_186) < 1
    assert limited(dataset, 400, seed=3).questions == some.questions
    assert limited(dataset, 400, seed=4).questions != some.questions


BAD_ROWS = {
    "row 3: id 0000000a is already in row 2": [GOOD, GOOD],
    "row 3: 5 cells, expected 6": [GOOD, ["0000000b", SECRET, "1", "2", "3"]],
    "row 2: question_id is empty or no identifier": [
        [f"{SECRET} is here", "?", "1", "2", "3", "4"]
    ],
    "has no question in it": [],
}


@pytest.mark.parametrize(("message", "rows"), BAD_ROWS.items())
def test_bad_rows_name_the_row_and_never_the_text(
    tmp_path: Path, message: str, rows: list[list[str]]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_questions(write(tmp_path / "first_aid.csv", rows))
    assert message in caught.value.message
    assert "first_aid.csv" in caught.value.message
    assert SECRET not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    def refuses(content: bytes, message: str) -> None:
        (tmp_path / "q.csv").write_bytes(content)
        with pytest.raises(InvalidInputError, match=message) as caught:
            read_questions(tmp_path / "q.csv")
        assert SECRET not in str(caught.value)

    refuses(b"question_id,Question,A,B,D\n", "no column C")
    refuses(b"", "no column question_id, Question")
    refuses(b"question_id,Question,A,B,C,D,A\n", "two columns of the same name")
    refuses(f"question_id,Question,A,B,C,D\n1,\xff{SECRET}".encode("latin-1"), "not UTF-8: line 2")
    refuses(f'question_id,Question,A,B,C,D\n1,"{SECRET}'.encode(), "row 2 is not CSV")
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_questions(tmp_path / "none.csv")
    with pytest.raises(InvalidInputError, match="does not exist"):
        load_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no CSV file"):
        load_dataset(tmp_path / "empty")


def test_an_id_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "first_aid.csv", [GOOD])
    write(tmp_path / "ethics.csv", [GOOD])
    with pytest.raises(
        InvalidInputError, match=r"0000000a is in ethics\.csv and in first_aid\.csv"
    ):
        load_dataset(tmp_path)


def test_a_file_that_repeats_all_fields_is_not_counted_twice(tmp_path: Path) -> None:
    others = [["0000000b", "?", "1", "2", "3", "4"], ["0000000c", "?", "1", "2", "3", "4"]]
    write(tmp_path / "test" / "first_aid.csv", [GOOD])
    write(tmp_path / "test" / "law.csv", others)
    alone = load_dataset(tmp_path)
    write(tmp_path / "test" / "all.csv", [GOOD, *others])
    both = load_dataset(tmp_path)
    assert both.questions == alone.questions
    assert len(both.questions) == 3
    write(tmp_path / "test" / "all.csv", [GOOD, ["0000000d", "?", "1", "2", "3", "4"]])
    with pytest.raises(InvalidInputError, match=r"all\.csv holds 1 questions that no other"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "test" / "all.csv").questions) == 2


def test_odd_questions_are_kept_and_counted(tmp_path: Path) -> None:
    rows = [
        GOOD,
        ["0000000b", "?", "1", "2", " ", "4"],
        ["0000000c", "?", "same", "2", "3", "same "],
        ["0000000d", " ", "", "", "3", "4"],
    ]
    dataset = load_dataset(write(tmp_path / "law.csv", rows))
    assert [question.options[2] for question in dataset.questions[1:]] == [" ", "3", "3"]
    assert dataset.record()["warnings"] == {
        "empty_question": 1,
        "empty_option": 2,
        "equal_options": 2,
    }
    assert load_dataset("sample").record()["warnings"] == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["0000000a", "E"]], "none of A, B, C, D"),
        ([["0000000a", ""]], "none of A, B, C, D"),
        ([["0000000a", "A"], ["0000000a", "B"]], "has an answer already"),
    ],
)
def test_bad_keys(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    path = write(tmp_path / "key.csv", rows, ["question_id", "answer"])
    with pytest.raises(InvalidInputError, match=message):
        read_key(path)


def test_the_text_none_is_an_option_like_any_other_and_a_byte_order_mark_is_no_text(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "ethics.csv", [["1", "?", "None", "null", "NaN", "N/A"]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_questions(path)[0].options == ("None", "null", "NaN", "N/A")


cells = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@given(
    st.lists(
        st.tuples(cells, st.lists(cells, min_size=4, max_size=4, unique_by=str.strip)), min_size=1
    )
)
def test_reading_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path_factory.mktemp("round") / "law.csv"
    write(path, [[f"{n:08x}", text, *options] for n, (text, options) in enumerate(items)])
    questions = read_questions(path)
    assert [(q.text, list(q.options)) for q in questions] == items
    assert {q.field.name for q in questions} == {"law"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "law.csv"
    path.write_bytes(b"question_id,Question,A,B,C,D\n" + content)
    try:
        questions = read_questions(path)
    except InvalidInputError:
        return
    assert all(len(question.options) == len(LETTERS) for question in questions)


def test_a_question_does_not_show_its_text() -> None:
    question = load_dataset(VECTORS / "fixture_full").questions[0]
    assert question.text not in repr(question)
    assert io.StringIO(repr(question)).read() == f"Question({question.id})"
