"""Every chart is well-formed, holds every mark, and shows what is missing as missing."""

from __future__ import annotations

import math
import random
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.report import charts, columns, lines, maps, svg
from mobilekit.report.numbers import milliseconds

SVG = "{http://www.w3.org/2000/svg}"


def _parse(picture: str) -> ElementTree.Element:
    root = ElementTree.fromstring(picture)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    for node in root.iter():
        for name, value in node.attrib.items():
            assert "nan" not in value.split(), (node.tag, name, value)
    return root


def _marks(root: ElementTree.Element, cls: str) -> list[ElementTree.Element]:
    return [n for n in root.iter() if cls in n.attrib.get("class", "").split()]


def _texts(root: ElementTree.Element) -> list[str]:
    return [n.text or "" for n in root.iter(f"{SVG}text")]


def _width(node: ElementTree.Element) -> float:
    return float(node.attrib["width"].rstrip("%"))


def test_bars_are_to_scale_and_missing_ones_say_why() -> None:
    items = [
        charts.Bar("before", 10.0, "10 MB", "before"),
        charts.Bar("after", 2.5, "2.5 MB"),
        charts.Bar("none", None, "", missing="not run here"),
        charts.Bar("broken", math.nan, "nan"),
    ]
    root = _parse(charts.bars("sizes", items))
    assert [_width(bar) for bar in _marks(root, "bar")] == [100, 25]
    assert len(_marks(root, "track")) == 4
    assert [n.text for n in _marks(root, "missing")] == ["not run here", "not measured"]


def test_bars_of_nothing_and_of_zeros_divide_by_nothing() -> None:
    assert not _marks(_parse(charts.bars("empty", [])), "bar")
    root = _parse(charts.bars("zeros", [charts.Bar("a", 0.0, "0")]))
    assert [_width(bar) for bar in _marks(root, "bar")] == [0]


def test_text_in_charts_is_escaped() -> None:
    evil = "</text><script>alert(1)</script>"
    for picture in (
        charts.bars(evil, [charts.Bar(evil, 1.0, evil)]),
        charts.strips(evil, [charts.Strip(evil, [1.0])], show=milliseconds),
        charts.intervals(evil, [(evil, [charts.Share(evil, 0.5, 0.4, 0.6, evil)])]),
        maps.scatter(
            evil, [maps.Point(1, evil, 1, 1, "circle", "after")], x_name=evil, y_name=evil
        ),
    ):
        root = _parse(picture)
        assert root.find(f".//{SVG}script") is None
        assert root.attrib["aria-label"] == evil


def test_intervals_place_dot_and_ends() -> None:
    share = charts.Share("all", 0.5, 0.25, 0.75, "50 %")
    gone = charts.Share("none", None, None, None, "")
    root = _parse(
        charts.intervals("accuracy", [("all", [share]), ("none", [gone])], reference=0.25)
    )
    (line,) = _marks(root, "interval")
    assert (line.attrib["x1"], line.attrib["x2"]) == ("25%", "75%")
    (dot,) = _marks(root, "dot")
    assert dot.attrib["cx"] == "50%"
    assert len(_marks(root, "reference")) == 1
    assert [n.text for n in _marks(root, "missing")] == ["not measured"]


def test_strips_show_every_sample_and_the_median() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    root = _parse(charts.strips("latency", [charts.Strip("a", values)], show=milliseconds))
    # the largest is drawn once more as the end that thinning must keep
    assert len(_marks(root, "sample")) == len(values) + 1
    assert len(_marks(root, "median")) == len(_marks(root, "box")) == 1
    assert any("median 4.00" in text for text in _texts(root))


def test_strips_thin_many_samples_but_keep_both_ends() -> None:
    values = [random.Random(3).lognormvariate(0, 1) for _ in range(5000)]
    root = _parse(charts.strips("latency", [charts.Strip("a", values)], show=milliseconds))
    shown = [float(n.attrib["x1"].rstrip("%")) for n in _marks(root, "sample")]
    assert len(shown) <= 302
    everything = charts.strips(
        "l", [charts.Strip("a", [min(values), max(values)])], show=milliseconds
    )
    ends = [float(n.attrib["x1"].rstrip("%")) for n in _marks(_parse(everything), "sample")]
    assert (min(shown), max(shown)) == (min(ends), max(ends))


@pytest.mark.parametrize("values", [[], [math.nan], [0.0, -1.0]])
def test_strips_without_samples_say_so(values: list[float]) -> None:
    root = _parse(charts.strips("latency", [charts.Strip("a", values)], show=milliseconds))
    assert "no samples" in _texts(root)


def test_strips_of_one_value_stay_inside() -> None:
    root = _parse(charts.strips("latency", [charts.Strip("a", [1.0, 1.0])], show=milliseconds))
    assert all(0 <= float(n.attrib["x1"].rstrip("%")) <= 100 for n in _marks(root, "sample"))


@given(
    st.lists(st.floats(min_value=1e-6, max_value=1e9), min_size=1, max_size=40),
    st.floats(min_value=0, max_value=1),
)
def test_quantile_equals_numpy(values: list[float], share: float) -> None:
    assert charts.quantile(sorted(values), share) == pytest.approx(np.quantile(values, share))


def test_curve_draws_finite_points_and_refuses_one() -> None:
    points = [(0, 3.5), (1, math.nan), (2, 3.25), (4, 3.0)]
    root = _parse(lines.curve("loss", points, y_name="loss", x_name="steps"))
    (path,) = _marks(root, "path")
    assert len(path.attrib["points"].split()) == 3
    assert path.attrib["points"].split()[1].startswith("500,")
    lonely = _parse(lines.curve("loss", [(0, 1.0)], y_name="loss", x_name="steps"))
    assert _texts(lonely) == ["too few points for a curve"]


def _axis() -> lines.Axis:
    return lines.span_of([0, 4], "step")


def test_a_line_breaks_at_gaps_and_a_lone_value_is_a_dot() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.5), (4, math.inf)]
    root = _parse(lines.lines("fit", [lines.Line("a", points)], _axis(), y_name="fitness"))
    assert [len(p.attrib["points"].split()) for p in _marks(root, "path")] == [2]
    assert len(_marks(root, "dot")) == 1
    nothing = _parse(lines.lines("fit", [lines.Line("a", [(0, None)])], _axis(), y_name="y"))
    assert _texts(nothing) == ["no values were recorded"]


@pytest.mark.parametrize(("low", "is_log"), [(0.011, False), (0.009, True), (0.0, False)])
def test_the_axis_is_logarithmic_beyond_a_decade(low: float, is_log: bool) -> None:
    item = lines.Line("a", [(0, 0.1), (4, low)])
    root = _parse(lines.lines("fit", [item], _axis(), y_name="fitness"))
    assert (_texts(root)[0] == "fitness, logarithmic") is is_log


def test_values_stand_where_a_logarithmic_axis_says() -> None:
    item = lines.Line("a", [(0, 100.0), (2, 1.0), (4, 0.01)])
    root = _parse(lines.lines("fit", [item], _axis(), y_name="y"))
    (path,) = _marks(root, "path")
    down = [float(point.split(",")[1]) for point in path.attrib["points"].split()]
    assert down == pytest.approx([0, 90, 180])


@given(st.lists(st.floats(1e-100, 1e100), min_size=2, max_size=6))
def test_lines_of_any_size_stay_inside_and_have_few_ticks(values: list[float]) -> None:
    item = lines.Line("a", [(float(i), v) for i, v in enumerate(values)])
    root = _parse(lines.lines("any", [item], lines.span_of([0, 5], "x"), y_name="y"))
    (path,) = _marks(root, "path")
    for point in path.attrib["points"].split():
        assert -0.5 <= float(point.split(",")[1]) <= 180.5
    assert 2 <= len(_marks(root, "grid")) <= 12


def test_ticks_of_tiny_and_of_nearly_equal_values_are_apart() -> None:
    for low, high in ((1e-14, 2e-14), (1.0, 1.0 + 1e-15), (3e-90, 3e-90)):
        marks = svg.ticks(low, high)
        assert marks == sorted(set(marks))
        assert len(marks) >= 2
    assert svg.tick(1e-14, [0.0, 1e-14]) == "1.0\u00a0×\u00a010⁻¹⁴"


def _point(number: int, x: float, y: float) -> maps.Point:
    return maps.Point(number, f"p{number}", x, y, "circle", "after")


def test_scatter_places_less_to_the_left_and_below() -> None:
    points = [_point(1, 10, 20), _point(2, 2, 30), _point(3, math.nan, 1)]
    root = _parse(maps.scatter("pareto", points, x_name="MB", y_name="perplexity"))
    placed = {
        n.find(f"{SVG}path/{SVG}title").text: (
            float(n.attrib["x"].rstrip("%")),
            float(n.attrib["y"]),
        )
        for n in root.iter(f"{SVG}svg")
        if n.find(f"{SVG}path/{SVG}title") is not None
    }
    assert set(placed) == {"p1", "p2"}
    assert placed["p2"][0] < placed["p1"][0]
    assert placed["p2"][1] < placed["p1"][1]  # pixels count downwards: worse is higher up


def test_scatter_labels_points_on_one_spot_together() -> None:
    points = [_point(2, 10, 20), _point(1, 10.01, 20), _point(3, 1, 30)]
    root = _parse(maps.scatter("pareto", points, x_name="MB", y_name="perplexity"))
    assert sorted(n.text or "" for n in _marks(root, "number")) == ["1 2", "3"]
    assert _texts(_parse(maps.scatter("none", [], x_name="", y_name=""))) == ["no points"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_frontier_equals_brute_force(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert maps.frontier(points) == sorted({p for p in points if not beaten(p)})


def test_heatmap_has_a_cell_an_expert_and_a_cross_a_pruned_one() -> None:
    rows = [
        maps.ExpertRow(0, [0.1, 0.9, None, 0.5], frozenset({1})),
        maps.ExpertRow(3, [0.5, 0.5], frozenset()),
    ]
    root = _parse(maps.heatmap("scores", rows, larger_is_removable=True))
    cells = _marks(root, "cell")
    assert len(cells) == 6
    assert len(_marks(root, "gone")) == 1
    shades = [cell.attrib["class"] for cell in cells]
    assert shades[:4] == ["cell s0", "cell s5", "cell none", "cell s3"]
    titles = [cell.find(f"{SVG}title").text for cell in cells]
    assert titles[1] == "layer 0 · expert 1 · score 0.9000 · pruned"
    assert titles[2] == "layer 0 · expert 2 · no score · kept"
    other = _parse(maps.heatmap("scores", rows, larger_is_removable=False))
    assert _marks(other, "cell")[0].attrib["class"] == "cell s5"


def test_heatmap_wraps_wide_layers_inside_the_picture() -> None:
    rows = [maps.ExpertRow(0, [i / 200 for i in range(200)], frozenset(range(100, 200)))]
    root = _parse(maps.heatmap("scores", rows, larger_is_removable=True))
    cells = _marks(root, "cell")
    assert len(cells) == 200
    assert len({cell.attrib["y"] for cell in cells}) == 4
    right = [float(c.attrib["x"].rstrip("%")) + _width(c) for c in cells]
    assert max(right) <= 100.01
    bottom = [float(c.attrib["y"]) + float(c.attrib["height"]) for c in cells]
    assert max(bottom) <= float(root.attrib["height"])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range(low: float, length: float) -> None:
    marks = svg.ticks(low, low + length)
    assert marks[0] <= low + 1e-6 * length
    assert marks[-1] >= low + length - 1e-6 * length
    assert 2 <= len(marks) <= 12


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e5))
def test_log_ticks_cover_the_range(low: float, factor: float) -> None:
    marks = svg.log_ticks(low, low * factor)
    assert marks[0] <= low * 1.0001
    assert marks[-1] >= low * factor * 0.9998
    assert marks == sorted(marks)


def test_tick_labels_have_equal_decimals() -> None:
    assert [svg.tick(v, [0, 2.5, 5.0]) for v in (0, 2.5, 5.0)] == ["0.0", "2.5", "5.0"]
    assert [svg.tick(v, [0.0, 5.0]) for v in (0.0, 5.0)] == ["0", "5"]
    assert svg.tick(0.25, [0.0, 0.25]) == "0.25"


def test_scatter_in_which_more_is_better_has_its_frontier_above() -> None:
    points = [_point(1, 1, 50), _point(2, 2, 40), _point(3, 3, 90), _point(4, 3, 60)]
    root = _parse(maps.scatter("p", points, x_name="MB", y_name="accuracy", better="higher"))
    beaten = [n.find(f"{SVG}title").text for n in _marks(root, "beaten")]
    assert sorted(beaten) == ["p2", "p4"]
    assert len(_marks(root, "frontier")) == 2
    lower = _parse(maps.scatter("p", points, x_name="MB", y_name="loss"))
    assert sorted(n.find(f"{SVG}title").text for n in _marks(lower, "beaten")) == ["p3", "p4"]


def test_scatter_draws_intervals_inside_the_picture() -> None:
    points = [
        maps.Point(1, "p1", 1, 50, "circle", "before", 20, 90),
        maps.Point(2, "p2", 2, 60, "circle", "after hollow", None, None),
        maps.Point(3, "p3", 2, 60, "circle", "after", math.nan, 70),
    ]
    root = _parse(maps.scatter("p", points, x_name="MB", y_name="accuracy", better="higher"))
    (whisker,) = _marks(root, "whisker")
    low, high = float(whisker.attrib["y1"]), float(whisker.attrib["y2"])
    assert 40 <= high < low <= 300
    assert "before" in whisker.attrib["class"].split()


def test_columns_are_to_scale_beside_the_even_line() -> None:
    groups = [
        ("A", [columns.Column("before", 0.5, "A, before"), columns.Column("after", 0.0, "a")]),
        ("B", [columns.Column("before", 0.25, "B, before"), columns.Column("after", 1.0, "b")]),
    ]
    root = _parse(columns.columns("letters", groups, reference=0.25))
    heights = [float(bar.attrib["height"]) for bar in _marks(root, "bar")]
    assert heights == pytest.approx([heights[3] * share for share in (0.5, 0, 0.25, 1)], abs=0.02)
    (line,) = _marks(root, "reference")
    bottoms = {float(b.attrib["y"]) + float(b.attrib["height"]) for b in _marks(root, "bar")}
    (bottom,) = {round(b, 1) for b in bottoms}
    assert bottom - float(line.attrib["y1"]) == pytest.approx(heights[2], abs=0.1)
    assert _texts(_parse(columns.columns("none", [], reference=0.25))) == ["no columns"]
