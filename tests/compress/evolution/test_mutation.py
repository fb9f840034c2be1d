"""Mutation: sums and bounds hold, offspring are distinct, draws have the paper's chances."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.compress.evolution import Group, State, mutate, offspring, sums, uniform
from mobilekit.compress.evolution.mutation import draw_flips, draw_group, neighbours
from mobilekit.compress.evolution.space import check_state
from mobilekit.core.seeds import generator

from .toy import every_state

WIDE = (Group("attention", (10,) * 12), Group("mlp", (10, 8, 6, 0) * 3))


def _chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    return sum((counts[key] - want) ** 2 / want for key, want in expected.items())


def test_flips_are_drawn_five_to_three_to_one() -> None:
    stream = generator(0, "flips")
    counts = Counter(draw_flips(stream) for _ in range(9000))
    assert set(counts) == {1, 2, 3}
    assert _chi_square(counts, {1: 5000, 2: 3000, 3: 1000}) < 13.8  # 0.1 % with 2 degrees


def test_groups_are_drawn_by_their_size() -> None:
    groups = (Group("a", (2,) * 6), Group("b", (2,) * 3), Group("c", (2,)))
    stream = generator(0, "groups")
    counts = Counter(draw_group(groups, stream) for _ in range(5000))
    assert _chi_square(counts, {0: 3000, 1: 1500, 2: 500}) < 13.8


def _switches(one: State, other: State) -> int:
    """The fewest switches between two states of the same sums."""
    pairs = zip(one, other, strict=True)
    return sum(sum(max(0, b - a) for a, b in zip(x, y, strict=True)) for x, y in pairs)


def test_a_thousand_mutations_in_a_row_keep_sums_and_bounds() -> None:
    stream, state = generator(1, "walk"), ((5,) * 12, (5, 5, 5, 0) * 3)
    wanted, moves = sums(state), Counter[int]()
    for _ in range(1000):
        child = mutate(state, WIDE, stream)
        check_state(child, WIDE)
        assert sums(child) == wanted
        moves[_switches(state, child)] += 1
        state = child
    assert set(moves) == {0, 1, 2, 3}
    assert moves[1] > moves[2] > moves[3] > 0


def test_a_mutation_depends_on_its_generator_alone() -> None:
    state = ((5,) * 12, (5, 5, 5, 0) * 3)
    first = [mutate(state, WIDE, generator(s, "same")) for s in range(20)]
    assert first == [mutate(state, WIDE, generator(s, "same")) for s in range(20)]
    assert len(set(first)) > 10


def _inner(most: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Levels with room below and above: not all at one bound."""
    levels = st.tuples(*(st.integers(0, highest) for highest in most))
    return levels.filter(lambda chosen: 0 < sum(chosen) < sum(most))


groups_and_parent = st.lists(
    st.lists(st.integers(1, 3), min_size=2, max_size=3), min_size=1, max_size=2
).flatmap(
    lambda shapes: st.tuples(
        st.just(tuple(Group(str(i), tuple(most)) for i, most in enumerate(shapes))),
        st.tuples(*(_inner(tuple(most)) for most in shapes)),
    )
)


@settings(deadline=None, max_examples=60)
@given(problem=groups_and_parent, count=st.integers(1, 40), seed=st.integers(0, 99))
def test_offspring_are_distinct_neighbours_and_all_of_them_where_they_are_few(
    problem: tuple[tuple[Group, ...], State], count: int, seed: int
) -> None:
    groups, parent = problem
    children = offspring(parent, groups, count, generator(seed, "children"))
    near = [s for s in every_state(groups, sums(parent)) if 0 < _switches(parent, s) <= 3]
    assert set(neighbours(parent, groups)) == set(near)
    assert len(set(children)) == len(children) == min(count, len(near))
    assert set(children) <= set(near)


def test_neighbours_come_once_and_from_near_to_far() -> None:
    groups = (Group("a", (4, 4, 4)), Group("b", (4, 4)))
    near = list(neighbours(uniform(groups, 2), groups))
    assert len(set(near)) == len(near)
    distances = [_switches(uniform(groups, 2), state) for state in near]
    assert distances == sorted(distances)
    assert set(distances) == {1, 2, 3}


def test_a_narrow_budget_is_searched_with_method_once_draws_find_nothing() -> None:
    groups = (Group("attention", (10,) * 12),)
    parent = uniform(groups, 5)
    wanted = ((4, *(5,) * 10, 6),)
    asked = Counter[State]()

    def accept(state: State) -> bool:
        asked[state] += 1
        return state == wanted

    assert offspring(parent, groups, 2, generator(0, "x"), accept=accept) == [wanted]
    assert max(asked.values()) == 1
    assert parent not in asked


def test_only_accepted_offspring_are_given() -> None:
    parent = ((5,) * 12, (5, 5, 5, 0) * 3)

    def accept(state: State) -> bool:
        return state[0] == parent[0]

    children = offspring(parent, WIDE, 16, generator(0, "x"), accept=accept)
    assert len(children) == 16
    assert all(accept(child) for child in children)
