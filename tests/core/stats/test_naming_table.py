from mismatch_probe.stats import framework_metrics
from tools.naming_table import DOCUMENT, naming_table, with_table


def test_the_documented_names_are_those_that_are_computed():
    document = DOCUMENT.read_text()
    assert with_table(document) == document, "run: python -m tools.naming_table"


def test_every_framework_has_its_rows():
    table = naming_table()
    for row in framework_metrics([-1.0, -2.0], [-1.1, -2.0], [0, 2]):
        assert f"| {row.framework} | `{row.name}` |" in table
