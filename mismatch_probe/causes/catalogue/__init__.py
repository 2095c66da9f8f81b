"""The causes that the tool knows: symptom, test, knob, published effect, and what to change."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from mismatch_probe.causes.catalogue.cause import Cause
from mismatch_probe.causes.catalogue.data import DATA
from mismatch_probe.causes.catalogue.numerics import NUMERICS
from mismatch_probe.causes.catalogue.page import catalogue_markdown, cause_markdown, cause_page
from mismatch_probe.causes.catalogue.routing import ROUTING
from mismatch_probe.causes.catalogue.sampling import SAMPLING
from mismatch_probe.causes.catalogue.weights import WEIGHTS
from mismatch_probe.errors import ConfigError

__all__ = ["CAUSES", "Cause", "catalogue_markdown", "cause_markdown", "cause_page", "find_cause"]

CAUSES: Mapping[str, Cause] = MappingProxyType(
    {cause.id: cause for family in (DATA, SAMPLING, WEIGHTS, NUMERICS, ROUTING) for cause in family}
)
"""By id, in the order in which a diagnosis would look."""


def find_cause(name: str) -> Cause:
    """The cause of an id or a code, whatever the case.

    Raises:
        ConfigError: There is none; the hint names the nearest.
    """
    wanted = name.strip().lower()
    for cause in CAUSES.values():
        if wanted in (cause.id, cause.code.lower()):
            return cause
    nearest = difflib.get_close_matches(wanted, CAUSES, n=1)
    raise ConfigError(
        f"unknown cause {name!r}",
        hint=f"did you mean {nearest[0]}?" if nearest else "mismatch-probe explain causes",
    )
