"""Settings of the search: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from mobilekit.compress.evolution import EvolutionSettings
from mobilekit.core.errors import InvalidInputError, UsageError


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = EvolutionSettings()
    assert (settings.offspring, settings.generations, settings.seed) == (16, 200, 0)
    assert settings.survivors == (8, 4, 2, 1)
    assert settings.evaluations == (16, 8, 4, 3)


def test_one_stage_looks_at_the_offspring_and_the_parent() -> None:
    assert EvolutionSettings(offspring=1, survivors=(1,)).evaluations == (2,)


@pytest.mark.parametrize(
    ("survivors", "message"),
    [
        ((8, 4, 2), "2 are left after the last stage"),
        ((4, 8, 1), "a stage that removes nobody"),
        ((4, 4, 1), "a stage that removes nobody"),
        ((0, 1), "a stage that removes nobody"),
        ((17, 1), "begins with 17, but 'offspring' is 16"),
    ],
)
def test_stages_that_do_not_narrow_down_to_one_are_refused(
    survivors: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        EvolutionSettings(survivors=survivors)


@pytest.mark.parametrize(
    "given",
    [
        {"survivors": []},
        {"survivors": [2.5, 1]},
        {"survivors": 1},
        {"offspring": 0},
        {"offspring": "16"},
        {"generations": 0},
        {"seed": -1},
        {"ofspring": 8},
        {"survivors": [8, 4, 2]},
    ],
)
def test_bad_settings_are_explained(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="settings") as caught:
        EvolutionSettings.parse(given, "settings")
    assert len(str(caught.value).splitlines()) == 2
