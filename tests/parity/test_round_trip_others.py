"""What is predicted of a config for OpenRLHF, SkyRL, AReaL and ms-swift is what their own corrections and losses then do."""

from __future__ import annotations

import pytest
from parity.batches import discrepancy
from parity.measured import Run, Summary
from parity.round_trip import DTYPES, FRAMEWORKS, exported, product

from mismatch_probe.export import export_config

KEEP_ALL = {"cispo", "sapo"}
# SkyRL exponentiates in float32 whatever its inputs are, and AReaL's statistics take nothing else.
NARROW = ("skyrl", "areal")


@pytest.mark.parametrize(
    ("to", "least"),
    [
        ("openrlhf", {"token_tis", "icepop", "geo_rs", "gspo", "dual_clip"}),
        ("skyrl", {"token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs", "cispo", "sapo", "dppo_kl", "gspo"}),
        ("areal", {"token_tis", "icepop", "geo_rs", "seq_mis", "k3_rs", "m2po", "gspo", "sapo"}),
        ("ms-swift", {"token_tis", "icepop", "geo_rs", "opsm", "gspo", "cispo", "sapo", "two_sided"}),
    ],
)  # fmt: skip
def test_every_method_that_can_be_exported(
    subtests: pytest.Subtests, planted: Run, to: str, least: set[str]
) -> None:
    seen = set()
    for method, config in exported(to, planted):
        with subtests.test(method=method):
            tokens = planted.tokens(DTYPES[to])
            phi = FRAMEWORKS[to](config.text, tokens).phi
            did, predicted = Summary.of(phi, tokens), Summary.predicted(config.applies, planted)
            assert predicted.apart(did) <= (1e-6 if to in NARROW else 1e-8), (predicted, did)
            assert discrepancy(phi, product(config.applies, tokens)) <= 1e-6
            assert did.kept_fraction == 1.0 if method in KEEP_ALL else 0.3 < did.kept_fraction < 1.0
            seen.add(method)
    assert least <= seen


@pytest.mark.parametrize(
    ("to", "method", "key"),
    [
        ("openrlhf", "token_tis", "--algo.advantage.is_correction_threshold "),
        ("skyrl", "seq_tis", "sequence_tis_ratio_clip_high: "),
        ("areal", "m2po", "m2_threshold: "),
        ("ms-swift", "token_tis", "rollout_importance_sampling_threshold: "),
    ],
)
def test_a_wrong_threshold_breaks_it(to: str, method: str, key: str, planted: Run) -> None:
    config = export_config(planted.result, to, method=method)
    (before,) = (line for line in config.text.splitlines() if key in line and not line.startswith("#"))
    wrong = f"{before[: before.index(key)]}{key}{0.7 * float(before.split()[-1])}"
    tokens = planted.tokens(DTYPES[to])
    did = Summary.of(FRAMEWORKS[to](config.text.replace(before, wrong), tokens).phi, tokens)
    assert Summary.predicted(config.applies, planted).apart(did) > 1e-4
