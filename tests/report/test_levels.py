"""The section on levels: what a DarwinLM plan says, and what is left where it says nonsense."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit import report
from mobilekit.report.levels import Levels, levels
from mobilekit.report.outcome import outcome
from mobilekit.report.units import listed
from mobilekit.schema.plan import Plan
from mobilekit.schema.run import RunRecord

from .checked import check_page
from .conftest import plan as aimer_plan
from .conftest import record
from .pruned import CHANNELS, HEADS, STEPS, darwin_plan

EVIL = "<script>alert(1)</script>\"'&`|*"
LANE = 56.0


def _plan(data: dict[str, Any]) -> Plan:
    return Plan.parse(data, "plan")


def _levels(data: dict[str, Any]) -> Levels:
    found = levels(_plan(data))
    assert found is not None
    return found


def _marks(picture: str | None, cls: str) -> list[ElementTree.Element]:
    assert picture is not None
    root = ElementTree.fromstring(picture)
    assert root.attrib["aria-label"]
    return [node for node in root.iter() if cls in node.attrib.get("class", "").split()]


def _titles(picture: str | None, cls: str) -> list[str]:
    return ["".join(node.itertext()) for node in _marks(picture, cls)]


def _page(*plans: dict[str, Any], active: int = 800_000) -> str:
    run = record()
    run["models"]["after"]["active_parameters"] = active
    return report.build(RunRecord.parse(run, "run"), plans=[_plan(data) for data in plans])


def _words(page: str) -> str:
    return " ".join(" ".join(check_page(page).text).split()).replace("\u00a0", " ")


def _rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = data["scores"]["layers"]
    return rows


def test_columns_are_as_high_as_the_share_kept() -> None:
    data = darwin_plan()
    picture = _levels(data).picture
    shares = {(r["unit"], r["layer"]): r["kept"] / r["of"] for r in _rows(data)}
    drawn = [share for unit in ("head", "channel") for (u, _), share in shares.items() if u == unit]
    heights = [float(bar.attrib["height"]) for bar in _marks(picture, "fill")]
    assert heights == pytest.approx([LANE * share for share in drawn if share], abs=0.01)
    assert len(_marks(picture, "slot")) == len(shares) == 16


def test_a_removed_sub_block_is_crossed_and_named() -> None:
    found = _levels(darwin_plan())
    titles = _titles(found.picture, "removed")
    assert [title.split(" · ")[:3] for title in titles] == [
        ["layer 1", "attention", "removed whole"],
        ["layer 2", "attention", "removed whole"],
        ["layer 3", "MLP", "removed whole"],
    ]
    assert found.removed == (
        "Attention removed whole in layers 1, 2",
        "MLP removed whole in layer 3",
    )


def test_the_text_alternative_has_the_totals() -> None:
    data = darwin_plan()
    heads = sum(row["kept"] for row in _rows(data) if row["unit"] == "head")
    picture = _levels(data).picture
    assert picture is not None
    label = ElementTree.fromstring(picture).attrib["aria-label"]
    assert f"{heads} of {8 * HEADS} query heads kept" in label
    assert "Attention removed whole in layers 1, 2" in label


def test_the_table_has_the_exact_numbers() -> None:
    data = darwin_plan()
    found = _levels(data).table
    assert found is not None
    assert len(found.rows) == 16
    row = _rows(data)[1]
    layer, units, level, kept, error = found.rows[1]
    assert (layer.text, units.text) == ("0", "channels")
    assert level.text == f"{row['level']} of {STEPS}"
    assert kept.text == f"{row['kept']} of {CHANNELS}"
    assert float(error.text) == pytest.approx(row["errors"][row["level"]], rel=1e-3)


def test_edits_decide_and_an_edited_layer_has_no_chosen_level() -> None:
    data = darwin_plan()
    row = next(row for row in _rows(data) if row["layer"] == 5 and row["unit"] == "head")
    data["edits"] = [
        {**edit, "indices": [0]} if (edit["unit"], edit["layer"]) == ("head", 5) else edit
        for edit in data["edits"]
    ]
    assert row["kept"] != 1
    found = _levels(data)
    title = next(t for t in _titles(found.picture, "slot") if t.startswith("layer 5 · attention"))
    assert "1 of 16 query heads kept" in title
    assert "edited by hand" in title
    _, words, chart = found.curves[0]
    assert "no dot for layers 5: they were edited by hand" in words
    assert len(_marks(chart, "dot")) == 7
    assert len(_marks(chart, "thin")) == 8


def test_what_was_taken_is_counted_for_each_kind() -> None:
    data = darwin_plan()
    heads = sum(row["kept"] for row in _rows(data) if row["unit"] == "head")
    facts = dict(outcome(_plan(data), []))
    share = f"{(1 - heads / (8 * HEADS)) * 100:.1f}"
    assert facts["query heads"] == f"{8 * HEADS} → {heads} (−{share}\u00a0%)"
    assert facts["attention removed whole"] == "in 2 of 8 layers: layers 1, 2"
    assert facts["MLP removed whole"] == "in 1 of 8 layers: layer 3"
    assert facts["parameters"].startswith("40.0\u00a0M → 25.0\u00a0M (−37.5")


def test_key_value_heads_are_told_from_query_heads() -> None:
    data = darwin_plan(4)
    text = json.dumps(data).replace('"head"', '"kv_head"')
    facts = dict(outcome(_plan(json.loads(text)), []))
    assert "key-value heads" in facts
    assert "query heads" not in facts


def test_a_plan_of_experts_counts_experts() -> None:
    words = _words(_page(aimer_plan()))
    assert "experts 64 → 48 (−25.0 %)" in words
    assert "channels" not in words


def test_a_removal_without_scores_is_still_counted_and_drawn() -> None:
    data = darwin_plan()
    data["scores"] = {}
    found = _levels(data)
    assert len(_marks(found.picture, "removed")) == 3
    assert len(_marks(found.picture, "none")) == len(data["edits"]) - 3
    assert dict(outcome(_plan(data), []))["MLP removed whole"].endswith("layer 3")


def test_a_dense_model_has_levels_and_no_experts() -> None:
    page = _page(darwin_plan())
    words = _words(page)
    assert 'href="#levels"' in page
    assert 'href="#experts"' not in page
    assert "No experts were scored" not in words
    assert "routed experts" not in words
    assert "parameters removed of original 37.5 %" in words
    assert "embedded" in words
    assert "SHA-256 5e5e5e5e5e5e…" in words
    assert "layer 9 keeps its 2 head" in words
    assert "2 × “remove attention”" in words


def test_experts_and_levels_stand_side_by_side() -> None:
    page = _page(aimer_plan(), darwin_plan())
    words = _words(page)
    assert 'href="#levels"' in page
    assert 'href="#experts"' in page
    assert page.count('class="chart heatmap"') == page.count('class="chart levels"') == 1
    assert "through as many experts. But each token runs through fewer parameters" in words
    assert "query heads, channels and whole sub-blocks are gone" in words
    assert "hardly change" not in words


def test_a_run_without_levels_has_no_such_section() -> None:
    assert 'id="levels"' not in _page(aimer_plan())
    assert 'id="levels"' not in _page()


def test_a_token_is_called_cheaper_only_where_its_parameters_fell() -> None:
    assert "Each token runs through fewer parameters (1.07 M before" in _words(_page(darwin_plan()))
    assert "runs through fewer" not in _words(_page(darwin_plan(), active=1_066_240))


def test_fitness_of_parent_and_best_is_drawn_on_a_logarithmic_axis() -> None:
    found = _levels(darwin_plan()).search
    assert found is not None
    assert [len(node.attrib["points"].split()) for node in _marks(found.chart, "path")] == [60, 60]
    assert "logarithmic" in found.chart
    facts = dict(found.facts)
    assert facts["tokens of fine-tuning"] == "93.6\u00a0M"
    assert facts["tokens of comparing"] == "4.44\u00a0M"
    assert facts["search time"] == "31\u00a0min\u00a030\u00a0s"
    assert "not on held-out text" in found.note
    assert "draws its data anew" in found.note


def test_within_a_decade_the_axis_is_linear() -> None:
    data = darwin_plan()
    for entry in data["scores"]["search"]["generations"]:
        entry["fitness"], entry["parent"] = 0.5, 0.6
    found = _levels(data).search
    assert found is not None
    assert "logarithmic" not in found.chart


def test_a_child_beats_its_parent_only_where_it_is_lower() -> None:
    data = darwin_plan()
    for number, entry in enumerate(data["scores"]["search"]["generations"]):
        entry["parent"] = 1.0
        entry["fitness"] = 0.9 if number % 4 == 0 else 1.0
    found = _levels(data).search
    assert found is not None
    assert dict(found.facts)["a child beat its parent"] == "in 15 of 60"


def test_a_generation_without_a_value_is_a_gap_that_is_named() -> None:
    data = darwin_plan()
    generations = data["scores"]["search"]["generations"]
    generations[20]["fitness"] = None
    del generations[3]["seconds"]
    found = _levels(data).search
    assert found is not None
    lengths = [len(node.attrib["points"].split()) for node in _marks(found.chart, "after")]
    assert lengths == [20, 39]
    assert "A gap is a generation" in found.note
    assert dict(found.facts)["search time"].endswith("in 59 of 60")


def test_one_generation_is_two_dots() -> None:
    found = _levels(darwin_plan(generations=1)).search
    assert found is not None
    assert len(_marks(found.chart, "dot")) == 2
    assert dict(found.facts)["search"] == "1 generation"


def test_without_a_search_a_sentence_says_so() -> None:
    assert _levels(darwin_plan(generations=0)).search is None
    assert "records no search" in _words(_page(darwin_plan(generations=0)))


@pytest.mark.parametrize("recorded", ["in units", "in columns"])
def test_error_curves_run_over_the_share_removed(recorded: str) -> None:
    data = darwin_plan()
    grid = data["scores"]["levels"]["head"]
    if recorded == "in units":
        data["scores"]["levels"]["head"] = [gone // 64 for gone in grid]
    title, _, chart = _levels(data).curves[0]
    assert title == "Attention: query heads"
    drawn = _marks(chart, "thin")
    assert len(drawn) == len(_marks(chart, "dot")) == 8
    for line in drawn:
        across = [float(point.split(",")[0]) for point in line.attrib["points"].split()]
        assert across == pytest.approx([1000 * gone / 64 / HEADS for gone in grid], abs=0.01)


def test_the_chosen_level_is_marked_where_the_line_has_it() -> None:
    data = darwin_plan(1)
    _, _, chart = _levels(data).curves[1]
    (line,), (dot,) = _marks(chart, "thin"), _marks(chart, "dot")
    level = next(r["level"] for r in _rows(data) if r["unit"] == "channel")
    across, down = map(float, line.attrib["points"].split()[level].split(","))
    assert float(dot.attrib["cx"].rstrip("%")) == pytest.approx(8 + 0.092 * across, abs=0.02)
    assert float(dot.attrib["cy"]) == pytest.approx(38 + down, abs=0.02)


def test_a_layer_with_another_grid_has_a_dot_and_no_line() -> None:
    data = darwin_plan()
    row = next(row for row in _rows(data) if row["layer"] == 6 and row["unit"] == "channel")
    row["errors"] = row["errors"][:-1]
    _, words, chart = _levels(data).curves[1]
    assert "no line for layers 6" in words
    assert len(_marks(chart, "thin")) == 7
    assert len(_marks(chart, "dot")) == 8


@pytest.mark.parametrize(("layers", "labels"), [(1, 1), (9, 9), (41, 9), (80, 16)])
def test_any_number_of_layers_is_drawn_in_bands(layers: int, labels: int) -> None:
    picture = _levels(darwin_plan(layers)).picture
    slots = _marks(picture, "slot")
    assert len(slots) == 2 * layers
    ends = [float(s.attrib["x"].rstrip("%")) + float(s.attrib["width"].rstrip("%")) for s in slots]
    assert max(ends) <= 100
    assert len({s.attrib["y"] for s in slots}) == 2 * -(-layers // 40)
    assert len(_marks(picture, "tick")) == labels


def test_a_plan_that_removes_nothing_says_so() -> None:
    data = {**darwin_plan(), "scores": {}, "edits": []}
    found = _levels(data)
    assert (found.picture, found.table, found.curves, found.search) == (None, None, (), None)
    assert "records no levels and changes no layer" in _words(_page(data))


def test_markup_in_a_plan_stays_text() -> None:
    data = darwin_plan(skipped=[EVIL, {EVIL: EVIL}])
    data["config"] = {EVIL: EVIL}
    data["summary"][EVIL] = EVIL
    data["scores"]["calibration"] = {"name": EVIL, EVIL: EVIL, "sha256": EVIL}
    data["scores"]["levels"][EVIL] = [0, 1]
    data["scores"]["search"][EVIL] = EVIL
    _rows(data)[0]["unit"] = EVIL
    _rows(data)[1]["layer"] = EVIL
    _rows(data)[2]["errors"] = [EVIL] * 11
    page = _page(data)
    found = check_page(page)
    assert found.tags.count("script") == 1
    assert "<script>alert" not in page
    assert sum("<script>alert(1)</script>" in text for text in found.text) >= 6


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.sampled_from([10**400, 2**53, -1, "head", "channel", "", EVIL])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([1e308, -1e308, 5e-324, 1e-14]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["train", "fitness", "sha256", "tokens"]), inner)
    ),
    max_leaves=8,
)
COUNT = st.integers(-1, 12) | ODD
LAYER = st.fixed_dictionaries(
    {},
    optional={
        "layer": COUNT,
        "unit": st.sampled_from(["head", "kv_head", "channel"]) | ODD,
        "level": COUNT,
        "kept": COUNT,
        "of": COUNT,
        "errors": st.lists(st.floats(0, 2) | ODD, max_size=5) | ODD,
    },
)
GENERATION = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("generation", "fitness", "parent", "tokens", "seconds"), ODD)
)
SCORES = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.lists(LAYER | ODD, max_size=6) | ODD,
        "levels": st.dictionaries(st.sampled_from(["head", "channel"]), ODD) | ODD,
        "search": st.fixed_dictionaries({"generations": st.lists(GENERATION | ODD)}) | ODD,
        "skipped": ODD,
        "calibration": ODD,
    },
)
EDITS = st.lists(
    st.fixed_dictionaries(
        {
            "op": st.just("keep"),
            "unit": st.sampled_from(["head", "kv_head", "channel"]),
            "layer": st.integers(0, 12),
            "indices": st.sets(st.integers(0, 15), min_size=1).map(sorted),
        }
    )
    | st.fixed_dictionaries(
        {
            "op": st.just("remove"),
            "unit": st.sampled_from(["attention", "mlp", "block"]),
            "layer": st.integers(0, 12),
        }
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(SCORES, EDITS)
def test_nothing_in_a_plan_breaks_the_section(scores: Any, edits: Any) -> None:
    plan = _plan({**darwin_plan(), "scores": scores, "edits": edits})
    found = levels(plan)
    assert found is not None
    pictures = [found.picture, found.search.chart if found.search else None]
    pictures += [chart for _, _, chart in found.curves]
    for picture in (p for p in pictures if p):
        for node in ElementTree.fromstring(picture).iter():
            for key in ("x", "y", "width", "height", "cx", "cy", "points", "x1", "y1"):
                for word in re.split(r"[ ,%]", node.attrib.get(key, "0")):
                    assert math.isfinite(float(word or 0)), (node.tag, key, word)
    for _, words in outcome(plan, []):
        assert "nan" not in words


@settings(max_examples=12, deadline=None)
@given(SCORES, EDITS)
def test_nothing_in_a_plan_breaks_the_page(scores: Any, edits: Any) -> None:
    check_page(_page({**darwin_plan(), "scores": scores, "edits": edits}))


def test_the_plan_is_left_as_it_is() -> None:
    data = darwin_plan()
    before = copy.deepcopy(data)
    _page(data)
    assert data == before


def test_runs_of_layers_are_written_as_ranges() -> None:
    assert listed([3, 1, 2, 7, 8, 11]) == "1 to 3, 7, 8, 11"
    assert listed([5, 5]) == "5"
