"""A shift of the signs is claimed where the data carry it, and only there."""

import pytest

from mismatch_probe.sign_balance import shifted_for_sure


def ends(low, high):
    return {"value": 0.5, "ci_low": low, "ci_high": high, "n": 100}


def method(ratio, positive=None, negative=None):
    signs = {"positive": {"kept_fraction": positive}, "negative": {"kept_fraction": negative}}
    return {"mass_ratio": ratio, "by_sign": signs if positive else {}}


@pytest.mark.parametrize(
    ("given", "claimed"),
    [
        (method(ends(0.3, 0.9)), True),
        (method(ends(1.1, 3.0)), True),
        (method(ends(0.3, 1.2)), False),
        # An interval of the ratio decides, whatever is kept.
        (method(ends(0.3, 1.2), ends(0.9, 1.0), ends(0.0, 0.1)), False),
        # One prompt carries all that is left of a sign, so that the ratio has no interval.
        (method(ends(None, None), ends(0.96, 1.0), ends(0.001, 0.06)), True),
        (method(ends(None, None), ends(0.001, 0.06), ends(0.96, 1.0)), True),
        (method(ends(None, None), ends(0.4, 0.6), ends(0.5, 0.7)), False),
        (method(ends(None, None), ends(None, None), ends(0.5, 0.7)), False),
        (method(ends(None, None)), False),
        (method(None), False),
        ({"available": False, "reason": "it failed"}, False),
    ],
)
def test_what_is_claimed(given, claimed):
    assert shifted_for_sure(given) is claimed
