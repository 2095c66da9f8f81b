import json
from pathlib import Path

import numpy as np
import pytest

VECTORS = Path(__file__).parents[2] / "vectors" / "stats.json"


@pytest.fixture(scope="session")
def check_case():
    """Asserts the suite's own criterion: |got - expect| <= rtol |expect| + 1e-300."""

    def check(case, key, got):
        expect = case["expect"][key]
        if isinstance(expect, bool) or expect is None:
            assert got == expect, key
            return
        np.testing.assert_allclose(
            got, expect, rtol=case["rtol"], atol=1e-300, err_msg=f"{key} of {str(case['args'])[:80]}"
        )

    return check


@pytest.fixture(scope="session")
def suites():
    return json.loads(VECTORS.read_text())["suites"]


@pytest.fixture
def planted():
    """Tokens with Gaussian drift N(-v/2, v) on log-probabilities of a plausible shape, by prompt."""

    def make(prompts=16, samples=4, length=60, variance=2e-3, seed=0):
        rng = np.random.default_rng(seed)
        lengths = np.maximum(1, (length * np.exp(rng.normal(0, 0.4, prompts * samples))).astype(int))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rollout = -rng.exponential(0.8, offsets[-1]) - 0.3
        log_ratio = np.sqrt(variance) * rng.normal(size=offsets[-1]) - variance / 2
        return rollout + log_ratio, rollout, offsets, np.repeat(np.arange(prompts), samples)

    return make
