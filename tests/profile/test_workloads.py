from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.core.errors import UsageError
from mobilekit.profile import workloads
from mobilekit.schema.result import Workload

LENGTHS = st.integers(0, workloads.MAX_TOKENS)


@given(LENGTHS, LENGTHS)
def test_every_name_reads_back(prompt: int, new: int) -> None:
    name = workloads.format_workload(prompt, new)
    if not name:
        return
    parsed = workloads.parse(name)
    assert (parsed.id, parsed.prompt_tokens, parsed.new_tokens) == (name, prompt, new)


@given(st.text(alphabet="ptg+0123456789 ,PT²٣\n", max_size=14))
def test_what_parses_is_the_canonical_name(text: str) -> None:
    try:
        parsed = workloads.parse(text)
    except UsageError as error:
        assert error.exit_code == 2
        assert "pp128" in error.hint or "fit" in error.hint
    else:
        assert workloads.format_workload(parsed.prompt_tokens, parsed.new_tokens) == text


@pytest.mark.parametrize(
    "text",
    ["", "+", "pp", "tg", "pp0", "tg0", "pp01", "pp-1", "pp1.5", "pp128+", "+tg64", "pp128tg64",
     "pp1+pp2", "tg1+tg2", "pp٣", "pp128\n", "pp 128", "bench", "pp1+tg0", "pp99999999"],
)  # fmt: skip
def test_wrong_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown workload"):
        workloads.parse(text)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("PP128", "pp128"), ("tg64+pp128", "pp128+tg64"), ("pp128tg64", "pp128+tg64"),
     ("pp128,tg64", "pp128+tg64"), ("pp 128", "pp128")],
)  # fmt: skip
def test_near_misses_name_what_was_meant(given: str, meant: str) -> None:
    with pytest.raises(UsageError, match="did you mean") as caught:
        workloads.parse(given)
    assert f"'{meant}'" in caught.value.message


def test_a_length_beyond_reason_is_refused_with_the_limit() -> None:
    with pytest.raises(UsageError, match="longer than 1000000"):
        workloads.parse("pp1000001")


def test_no_workload_and_a_repeated_one_are_refused() -> None:
    with pytest.raises(UsageError, match="no workload"):
        workloads.parse_all([])
    with pytest.raises(UsageError, match="'tg4' was given twice"):
        workloads.parse_all(["tg4", "pp4", "tg4"])


@pytest.mark.parametrize(("name", "fits"), [("pp128", 128), ("tg128", 128), ("pp100+tg28", 128)])
def test_positions_are_counted_exactly(name: str, fits: int) -> None:
    workload = workloads.parse(name)
    workloads.check_fits(workload, fits)
    with pytest.raises(UsageError, match=f"needs {fits} positions, but the context has {fits - 1}"):
        workloads.check_fits(workload, fits - 1)


def test_tokens_are_the_same_every_time_and_cover_the_vocabulary() -> None:
    workload = Workload(id="pp3000+tg7", prompt_tokens=3000, new_tokens=7)
    prompt, new = workloads.random_tokens(workload, 50)
    again = workloads.random_tokens(workload, 50)
    assert prompt.shape == (3000,)
    assert new.shape == (7,)
    assert prompt.dtype == new.dtype == np.int64
    assert set(prompt.tolist()) == set(range(50))
    assert np.array_equal(prompt, again[0])
    assert np.array_equal(new, again[1])
