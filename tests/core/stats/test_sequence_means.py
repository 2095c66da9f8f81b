import itertools

import numpy as np
import pytest

from mismatch_probe.stats import (
    cluster_standard_error,
    framework_metrics,
    summarise_sequences,
    summarise_tokens,
)


def test_means_over_responses_equal_a_plain_loop_and_the_dashboards(planted):
    train, rollout, offsets, clusters = planted()
    found = summarise_sequences(train - rollout, offsets, clusters, train_logprobs=train)
    rows = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    means, log_ratio = found.token_means, train - rollout
    assert means.k1.value == pytest.approx(np.mean([-log_ratio[r].mean() for r in rows]), rel=1e-10)
    assert means.k2.value == pytest.approx(np.mean([(log_ratio[r] ** 2).mean() / 2 for r in rows]), rel=1e-12)
    assert means.mean_abs_log_ratio.value == pytest.approx(
        np.mean([np.abs(log_ratio[r]).mean() for r in rows]), rel=1e-12
    )
    named = {(m.framework, m.name): m.value for m in framework_metrics(train, rollout, offsets)}
    assert means.k3.value == pytest.approx(named["slime", "mis_k3_kl"], rel=1e-12)
    assert means.k1.value == pytest.approx(named["verl", "rollout_corr/log_ppl_diff"], rel=1e-9)
    assert found.perplexity.train.value == pytest.approx(
        named["verl", "rollout_corr/training_ppl"], rel=1e-12
    )
    assert found.perplexity.rollout.value == pytest.approx(
        named["verl", "rollout_corr/rollout_ppl"], rel=1e-12
    )
    assert found.perplexity.ratio.value == pytest.approx(named["verl", "rollout_corr/ppl_ratio"], rel=1e-12)
    assert found.chi2_clamped == pytest.approx(named["verl", "rollout_corr/chi2_seq"], rel=1e-9)


def test_overflow_gives_a_reason_and_no_number():
    log_ratio = np.zeros(40)
    log_ratio[0] = 800.0
    offsets, clusters = np.arange(0, 41, 2), np.arange(20)
    found = summarise_sequences(log_ratio, offsets, clusters, train_logprobs=np.full(40, -1500.0))
    assert found.token_means.k3.value is None
    assert "float64" in found.token_means.k3.reason
    assert found.perplexity.train.value is None
    assert found.num_clamped == 1


def test_the_design_effect_is_that_of_the_cluster_robust_error(planted):
    train, rollout, offsets, clusters = planted()
    log_ratio = train - rollout
    tokens = summarise_tokens(log_ratio, rollout, train, offsets, clusters)
    by_token = np.repeat(clusters, np.diff(offsets))
    assert tokens.design_effect == pytest.approx(
        cluster_standard_error(log_ratio, by_token).design_effect, rel=1e-9
    )
    shifted = np.full(log_ratio.size, 0.25)
    assert summarise_tokens(shifted, rollout, rollout + 0.25, offsets, clusters).design_effect is None
