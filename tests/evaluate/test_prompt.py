from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.prompt import loglik_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import Question

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"


def test_prompts_are_the_golden_bytes() -> None:
    questions = {q.id: q for q in load_dataset(VECTORS / "fixture_full").questions}
    golden = json.loads((VECTORS / "loglik_prompts.json").read_text(encoding="utf-8"))
    for entry in golden:
        prompt = loglik_prompt(questions[entry["question_id"]])
        assert prompt.text.encode() == entry["prompt"].encode()


@given(st.text(), st.tuples(st.text(), st.text(), st.text(), st.text()))
def test_the_parts_of_a_prompt_are_the_question(
    text: str, options: tuple[str, str, str, str]
) -> None:
    prompt = loglik_prompt(Question("1", text, options, find_field("online_privacy")))
    intro = "The following are multiple choice questions (with answers) about online privacy.\n\n"
    assert prompt.head.startswith(intro)
    assert prompt.head[len(intro) : -1] == text.strip()
    a, b, c, d = options
    assert prompt.options == f"A. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
