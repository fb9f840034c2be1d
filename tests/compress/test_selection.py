import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mobilekit.compress.aimer.score import choose_pruned, uniform_count
from mobilekit.compress.aimer.selection import choose_in_parts, count_removed, layer_count
from mobilekit.core.errors import UnsupportedModelError, UsageError
from mobilekit.models.families import UnitGroup


def groups(layers: int, count: int, minimum: int, partitions: int = 1) -> list[UnitGroup]:
    return [
        UnitGroup("expert", layer, count, minimum, slices=(), partitions=partitions)
        for layer in range(layers)
    ]


@settings(max_examples=400, deadline=None)
@given(
    st.floats(0, 0.999),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 20),
)
def test_count_against_brute_force(
    sparsity: float, layers: int, each: int, partitions: int, minimum: int
) -> None:
    experts = each * partitions
    assume(minimum <= experts)
    target = round(sparsity * (layers * experts))  # one product, as the code rounds it
    # one expert more or less from each part, whatever that means for the total
    legal = [r for r in range(0, experts + 1, partitions) if experts - r >= minimum]
    any_count = range(0, experts + 1, partitions)
    choice = layer_count(sparsity, layers, experts, minimum, partitions)

    def nearest(counts: Any) -> int:
        return min(counts, key=lambda removed: (abs(removed * layers - target), removed))

    assert choice.removed == nearest(legal)
    assert choice.wanted == nearest(any_count)
    assert choice.largest == max(legal)
    assert choice.target == target
    assert choice.removed % partitions == 0
    assert experts - choice.removed >= minimum


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 0.999), st.integers(1, 5), st.integers(1, 20), st.integers(1, 6))
def test_one_part_is_the_papers_rule(
    sparsity: float, layers: int, experts: int, minimum: int
) -> None:
    assume(minimum <= experts)
    paper = uniform_count(sparsity, [experts] * layers, [minimum] * layers)
    ours = layer_count(sparsity, layers, experts, minimum)
    assert (ours.removed, ours.wanted, ours.largest, ours.target) == (
        paper.removed,
        paper.wanted,
        paper.largest,
        paper.target,
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_chosen_set_against_all_subsets_of_each_part(
    partitions: int, each: int, data: st.DataObject
) -> None:
    values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 1.0])
    scores = data.draw(st.lists(values, min_size=partitions * each, max_size=partitions * each))
    count = data.draw(st.integers(0, each)) * partitions
    expected: list[int] = []
    for part in range(partitions):
        members = range(part * each, (part + 1) * each)
        subsets = list(itertools.combinations(members, count // partitions))
        best = max(round(sum(scores[i] for i in s), 9) for s in subsets)
        # among equals the lower ids go: the first of the best in lexicographic order
        expected += next(s for s in subsets if round(sum(scores[i] for i in s), 9) == best)
    found = choose_in_parts(scores, count, partitions)
    assert found == expected
    if partitions == 1:
        assert found == choose_pruned(scores, count)


def test_no_expert_slips_into_a_neighbours_group() -> None:
    # the four most removable of all are in the first group, yet each group loses two
    removable = [9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, math.inf]
    assert choose_pruned(removable, 4) == [0, 1, 2, 7]
    assert choose_in_parts(removable, 4, 2) == [0, 1, 6, 7]


@pytest.mark.parametrize(("experts", "count", "partitions"), [(7, 2, 2), (8, 3, 2), (8, 2, 0)])
def test_parts_that_cannot_be_equal(experts: int, count: int, partitions: int) -> None:
    with pytest.raises(ValueError, match="equal parts"):
        choose_in_parts([0.0] * experts, count, partitions)


def test_messages_of_a_group_limited_router() -> None:
    # 16 experts in 4 groups of which the router needs 8: two a group
    made = groups(3, 16, 8, partitions=4)
    assert count_removed(made, 0.5, clip=False) == (8, [])
    with pytest.raises(UsageError, match="leaves 4 of 16 experts a layer, fewer than the 8") as e:
        count_removed(made, 0.75, clip=False)
    assert "in its 4 groups" in e.value.message
    assert "at most 0.5" in e.value.hint
    removed, warnings = count_removed(made, 0.75, clip=True)
    assert removed == 8
    assert warnings[0].endswith("clipped to 8 removed a layer")
    removed, warnings = count_removed(made, 0.2, clip=False)
    assert removed == 4
    assert "asks for 10 of 48 experts" in warnings[0]
    assert "(and in each of its 4 groups) is 4, 12 in all" in warnings[0]


def test_minimum_that_is_no_multiple_of_the_groups_is_rounded_up() -> None:
    with pytest.raises(UsageError, match="fewer than the 8 that the router needs"):
        count_removed(groups(1, 16, 5, partitions=4), 0.75, clip=False)


def test_the_sparsity_that_the_hint_names_is_accepted() -> None:
    for experts, minimum, partitions in ((8, 2, 1), (12, 5, 3), (160, 36, 8), (7, 6, 1)):
        made = groups(5, experts, minimum, partitions)
        with pytest.raises(UsageError) as caught:
            count_removed(made, 0.99, clip=False)
        legal = float(caught.value.hint.split("at most ")[1].split(",")[0])
        count_removed(made, legal, clip=False)


def test_removing_nothing_is_said() -> None:
    removed, warnings = count_removed(groups(2, 8, 2, partitions=4), 0.1, clip=False)
    assert removed == 0
    assert warnings[-1] == "sparsity 0.1 removes no expert at all"


def test_layers_must_be_alike() -> None:
    with pytest.raises(UsageError, match=r"different numbers of experts \(6 to 8\)"):
        count_removed([*groups(1, 8, 2), *groups(1, 6, 2)], 0.5, clip=False)
    with pytest.raises(UnsupportedModelError, match="groups must be equal"):
        count_removed(groups(2, 10, 2, partitions=4), 0.5, clip=False)
    with pytest.raises(UnsupportedModelError, match="in 1 and 2"):
        count_removed([*groups(1, 8, 2, 2), *groups(1, 8, 2)], 0.5, clip=False)
