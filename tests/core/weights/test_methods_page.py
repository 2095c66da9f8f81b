"""The page of methods says what the code says, and the code says enough."""

from __future__ import annotations

import pytest

from mismatch_probe.weights import (
    FRAMEWORKS,
    describe_methods,
    framework_methods,
    get_method,
    get_method_as_coded,
)
from tools.document_methods import PAGE, page

ROWS = {row.name: row for row in describe_methods()}


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "python tools/document_methods.py"


@pytest.mark.parametrize("name", ROWS)
def test_every_method_says_formula_source_and_traps(name: str) -> None:
    row = ROWS[name]
    assert row.formula.startswith("phi") and row.source and row.traps
    assert row.summary == row.details.split("\n")[0] and row.summary.endswith(".")
    assert row.reads in (
        "none",
        "train/rollout",
        "train/old",
        "train/old * old/rollout",
        "train/old * train/rollout",
        "train/rollout, masked by old/rollout",
    )


@pytest.mark.parametrize("name", ROWS)
def test_every_word_of_a_hyperparameter_is_a_variant_that_can_be_made(name: str) -> None:
    row = ROWS[name]
    words = {key for key, value in row.parameters.items() if isinstance(value, str)}
    assert words == {variant.parameter for variant in row.variants}
    for parameter in words:
        here = [variant for variant in row.variants if variant.parameter == parameter]
        assert [v.value for v in here if v.default] == [row.parameters[parameter]]
        assert len({v.meaning for v in here}) == len(here) >= 2
        for variant in here:
            get_method(name, **{parameter: variant.value})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_listed_for_a_framework_is_what_it_makes(framework: str) -> None:
    listed = {name for name, row in ROWS.items() if framework in row.frameworks}
    assert listed == set(framework_methods(framework))
    for name in listed:
        assert get_method(name, **ROWS[name].frameworks[framework]) == get_method_as_coded(framework, name)
