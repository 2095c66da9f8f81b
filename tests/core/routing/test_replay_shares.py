"""Shares of a drift that replay explains."""

import numpy as np
import pytest

from mismatch_probe.routing.replay_shares import additivity, layer_shares, lead_of_first, share_explained

RNG = np.random.default_rng(0)
OWN = RNG.gamma(4.0, 0.25, 40)


def test_a_share_is_one_minus_the_ratio_of_sums_and_its_interval_never_passes_one():
    left = OWN * RNG.uniform(0.1, 0.3, 40)
    share = share_explained(OWN, left, n=400)
    assert share.value == pytest.approx(1 - left.sum() / OWN.sum())
    assert share.ci_low < share.value < share.ci_high < 1.0


def test_replay_that_leaves_nothing_explains_all():
    share = share_explained(OWN, np.zeros(40), n=400)
    assert (share.value, share.ci_low, share.ci_high) == (1.0, 1.0, 1.0)


def test_no_drift_has_no_share():
    share = share_explained(np.zeros(40), np.zeros(40), n=400)
    assert share.value is None and share.reason


def test_one_prompt_that_carries_the_drift_gives_no_interval():
    own = np.ones(40)
    own[3] = 1e4
    share = share_explained(own, own / 2, n=400)
    assert share.value == pytest.approx(0.5) and share.ci_low is None and "one prompt" in share.reason


def test_additive_layers_add_up_and_rank():
    parts = np.array([0.1, 0.5, 0.2])
    noise = 1.0 + 0.02 * RNG.standard_normal((40, 3))
    only = OWN[:, None] * (1.0 - parts * noise)
    joint = OWN * (1.0 - parts.sum())
    without = joint[:, None] + OWN[:, None] * parts * noise
    shares = layer_shares(OWN, joint, only, without, n=400)
    assert [share.rank for share in shares] == [3, 1, 2]
    assert [share.alone.value for share in shares] == pytest.approx(parts, abs=0.02)
    assert [share.last.value for share in shares] == pytest.approx(parts, abs=0.02)
    lead = lead_of_first(OWN, only, n=400)
    assert lead.value == pytest.approx(0.3, abs=0.02) and lead.ci_low > 0.2
    found = additivity(OWN, joint, only, n=400)
    assert found.ratio.value == pytest.approx(1.0, abs=0.02) and found.additive is True


@pytest.mark.parametrize(("each", "word"), [(0.6, "twice"), (0.1, "together")])
def test_layers_that_do_not_add_up_are_called_so(each, word):
    only = OWN[:, None] * (1.0 - each) * np.exp(0.01 * RNG.standard_normal((40, 3)))
    found = additivity(OWN, OWN * 0.3, only, n=400)
    assert found.ratio.value == pytest.approx(3 * each / 0.7, rel=0.05)
    assert found.additive is False and word in found.sentence and "not additive" in found.sentence


def test_too_few_prompts_leave_additivity_open():
    only = OWN[:4, None] * np.full((4, 3), 0.8)
    found = additivity(OWN[:4], OWN[:4] * 0.4, only, n=40)
    assert found.additive is None and "cannot be said" in found.sentence
    found = additivity(np.zeros(40), np.zeros(40), np.zeros((40, 3)), n=400)
    assert found.additive is None and found.ratio.value is None


def test_a_lead_that_may_be_chance_has_an_interval_around_zero():
    noise = np.random.default_rng(5).normal(0.0, 0.3, (40, 2))
    lead = lead_of_first(OWN, OWN[:, None] * np.abs(0.5 + noise), n=400)
    assert lead.value >= 0 and (lead.ci_low is None or lead.ci_low < 0)
    assert lead_of_first(OWN, OWN[:, None], n=400) is None
