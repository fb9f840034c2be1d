"""One evolutionary search over integer levels, for every method that searches; and its rivals.

A state gives each member of each group a level. Offspring pass levels on within a group, so that
its sum stays as it is; they are compared in stages, the last one against the parent::

    groups = (Group("attention", (10,) * 32), Group("mlp", (10,) * 32))
    settings = EvolutionSettings(offspring=16, generations=200, survivors=(8, 4, 2, 1))
    with launched(device):  # of train.ranks; does nothing without torchrun
        found = evolve(uniform(groups, 5), groups, fanned_out(evaluate), settings,
                       state_path=workdir / "search.json", identity={"checkpoint": digest})

``random_states`` and ``allocate`` choose levels without a search: at random, and by the least sum
of errors within a budget.
"""

from .allocation import Allocation, allocate
from .mutation import mutate, offspring
from .ranks import Evaluate, EvaluateMany, fanned_out, from_first, place
from .record import GenerationRecord, SearchRecord
from .sampling import count_states, random_states
from .search import EvolutionResult, evolve
from .settings import EvolutionSettings
from .space import Accept, Group, State, sums, uniform

__all__ = [
    "Accept",
    "Allocation",
    "Evaluate",
    "EvaluateMany",
    "EvolutionResult",
    "EvolutionSettings",
    "GenerationRecord",
    "Group",
    "SearchRecord",
    "State",
    "allocate",
    "count_states",
    "evolve",
    "fanned_out",
    "from_first",
    "mutate",
    "offspring",
    "place",
    "random_states",
    "sums",
    "uniform",
]
