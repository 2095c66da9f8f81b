from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planted_drift import LawModel, Laws, draw_laws, shifted
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import validity_checks
from mismatch_probe.stats.sampling_bias import sampling_bias
from mismatch_probe.stats.validity import (
    bfloat16_spacing,
    head_lattice,
    round_to_bfloat16,
    temperature_ratio,
)
from mismatch_probe.stats.validity.identity import unrelated_distance


def _failed(laws: Laws, *, entropy: bool = True) -> set[str]:
    checks = validity_checks(
        laws.train, laws.rollout, laws.offsets, laws.clusters, entropy=laws.entropy if entropy else None
    )
    return {check.code for check in checks if check.status == "fail"}


def _draw(seed=0, prompts=16, length=80, **model) -> Laws:
    return draw_laws(LawModel(**model), prompts, 4, length, np.random.default_rng(seed))


@pytest.mark.parametrize("model", [{"noise": 0.02}, {"noise": 0.1}, {"noise": 0.15, "heavy": True}])
@pytest.mark.parametrize("seed", range(5))
def test_clean_data_pass(model, seed):
    laws = _draw(seed, **model)
    assert _failed(laws) == set()
    assert _failed(laws, entropy=False) == set()


def _with(laws, **arrays):
    return replace(laws, **arrays)


def _padded(laws):
    rollout, train = laws.rollout.copy(), laws.train.copy()
    stop = laws.offsets[4]
    rollout[stop - 4 : stop], train[stop - 4 : stop] = 0.0, [-3.0, -7.0, -1.0, -9.0]
    return _with(laws, rollout=rollout, train=train)


def _edge(laws):
    train = laws.train.copy()
    train[laws.offsets[:-1]] -= 4.0
    return _with(laws, train=train)


def _other_ids(laws):
    train = laws.train.copy()
    part = slice(laws.offsets[7], laws.offsets[8])
    train[part] = train[laws.offsets[20] :][: part.stop - part.start]
    return _with(laws, train=train)


def _swapped_rows(laws):
    lengths = np.diff(laws.offsets)
    same = next((i, j) for i in range(lengths.size) for j in range(i) if lengths[i] == lengths[j] >= 20)
    one, two = (slice(laws.offsets[i], laws.offsets[i + 1]) for i in same)
    train = laws.train.copy()
    train[one], train[two] = laws.train[two], laws.train[one]
    return _with(laws, train=train)


def _duplicated_row(laws):
    lengths = np.diff(laws.offsets)
    i, j = next((i, j) for i in range(lengths.size) for j in range(i) if lengths[i] == lengths[j] >= 20)
    rollout = laws.rollout.copy()
    rollout[laws.offsets[i] : laws.offsets[i + 1]] = rollout[laws.offsets[j] : laws.offsets[j + 1]]
    return _with(laws, rollout=rollout)


def _sentinel(laws):
    rollout = laws.rollout.copy()
    rollout[[3, 50]] = [np.nan, -9999.0]
    return _with(laws, rollout=rollout)


@pytest.mark.parametrize(
    ("code", "model", "fault"),
    [
        ("MP101", {}, _other_ids),
        ("MP101", {}, _edge),
        ("MP102", {}, _sentinel),
        ("MP102", {}, _padded),
        ("MP103", {}, lambda laws: _with(laws, train=laws.train + 1.0)),
        ("MP104", {"noise": 0.3}, lambda laws: _with(laws, train=laws.rollout, rollout=laws.train)),
        ("MP105", {}, lambda laws: shifted(laws, 1)),
        ("MP105", {}, lambda laws: shifted(laws, -2)),
        ("MP105", {}, lambda laws: shifted(laws, 1, np.array([3]))),
        ("MP106", {"rollout_temperature": 0.7}, None),
        ("MP106", {"rollout_temperature": 0.9}, None),
        ("MP106", {"train_temperature": 0.8}, None),
        ("MP107", {"top_p": 0.95}, None),
        ("MP107", {"top_p": 0.95, "noise": 0.15}, None),
        ("MP107", {"top_k": 5}, None),
        ("MP108", {}, lambda laws: _with(laws, rollout=np.zeros_like(laws.rollout))),
        ("MP109", {"bfloat16": True}, None),
        ("MP110", {}, _swapped_rows),
        ("MP110", {}, _duplicated_row),
        ("MP111", {"rollout_temperature": 0.7, "log_raw": True}, None),
        ("MP111", {"top_p": 0.9, "log_raw": True}, None),
    ],
)
def test_faults_are_found(code, model, fault):
    laws = _draw(1, **model)
    broken = laws if fault is None else fault(laws)
    assert code in _failed(broken)
    if fault is not None:
        assert code not in _failed(laws)


def test_raw_logging_is_invisible_without_entropies():
    """The mean ratio stays near 1: only the entropy shows that other tokens were drawn."""
    laws = _draw(1, rollout_temperature=0.7, log_raw=True)
    assert _failed(laws, entropy=False) == set()


def test_temperature_is_estimated():
    laws = _draw(2, rollout_temperature=0.8)
    from mismatch_probe.stats import SequenceLayout

    layout = SequenceLayout.from_arrays(laws.offsets, laws.clusters)
    ratio = temperature_ratio(laws.train, laws.rollout, layout)
    assert 0.77 < ratio.value < 0.86
    assert ratio.low < ratio.value < ratio.high < 1.0


def test_too_little_data_is_not_run_rather_than_passed():
    laws = _draw(0, prompts=2, length=6)
    checks = validity_checks(laws.train[:9], laws.rollout[:9], [0, 9], [0])
    states = {check.code: check.status for check in checks if check.name != "no padding in the responses"}
    assert states["MP104"] == states["MP106"] == states["MP107"] == states["MP111"] == "not_run"
    assert all(check.detail for check in checks)


def test_sentinels_do_not_reach_the_other_checks():
    laws = _draw(0)
    broken = _sentinel(laws)
    assert _failed(broken) == {"MP102"}
    everywhere = validity_checks(np.full(4, np.nan), np.full(4, -1.0), [0, 4], [0])
    assert [check.code for check in everywhere] == ["MP102", "MP103"]


def test_identical_sides_pass_but_say_so():
    laws = _draw(0)
    checks = validity_checks(laws.train, laws.train, laws.offsets, laws.clusters, entropy=laws.entropy)
    same = next(check for check in checks if check.code == "MP108")
    assert same.status == "pass"
    assert same.observed == 1.0
    assert "bit for bit" in same.detail
    assert not any(check.status == "fail" for check in checks)


def test_input_that_cannot_be_checked():
    with pytest.raises(InconclusiveError):
        validity_checks([], [], [0], [])
    with pytest.raises(ConfigError):
        validity_checks([-1.0], [-1.0, -2.0], [0, 1], [0])
    with pytest.raises(ConfigError):
        validity_checks([-1.0], [-1.0], [0, 1], [0], entropy=[1.0, 2.0])


def test_bfloat16_matches_exact_values(suites, check_case):
    for case in suites["bf16"]["cases"]:
        check_case(case, "bf16", float(round_to_bfloat16(case["args"]["x"])))
        check_case(case, "ulp", float(bfloat16_spacing(case["args"]["x"])))


def test_bfloat16_rounds_once():
    """Just above a tie: through float32 to nearest it would fall on the tie and round down to even."""
    assert float(round_to_bfloat16(1.0 + 2.0**-8 + 2.0**-40)) == 1.0 + 2.0**-7
    assert float(round_to_bfloat16(1.0 + 2.0**-8)) == 1.0
    import torch

    values = np.random.default_rng(0).normal(0, 20, 1000).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float64).numpy()
    np.testing.assert_array_equal(round_to_bfloat16(values), expected)


def test_lattice_histogram_peaks_at_whole_steps():
    laws = _draw(3, bfloat16=True, noise=0.02)
    found = head_lattice(laws.train, laws.rollout)
    assert found.concentration > 0.2
    counts, edges = np.array(found.counts), np.array(found.edges)
    centres = (edges[:-1] + edges[1:]) / 2
    at = {step: counts[np.argmin(np.abs(centres - step))] for step in (1.0, 1.5, -1.0, -1.5)}
    assert at[1.0] > 1.5 * at[1.5]
    assert at[-1.0] > 1.5 * at[-1.5]


def test_sampling_bias_matches_exact_values(suites, check_case):
    for case in suites["sampling_bias"]["cases"]:
        args = case["args"]
        got = sampling_bias(
            args["logits_rollout"], args["logits_train"], temperature=args["temperature"], top_k=args["top_k"]
        )
        check_case(case, "raw_vs_train_T1", got.raw_vs_train)
        check_case(case, "processed_vs_train_T1", got.processed_vs_train)
        check_case(case, "processed_vs_train_temp", got.processed_vs_train_temperature)
        check_case(case, "processed_vs_train_temp_topk_replayed", got.processed_vs_train_replayed)
        check_case(case, "train_mass_in_support", got.train_mass_in_support)
        check_case(case, "kl_true", got.kl)
    with pytest.raises(ConfigError):
        sampling_bias([1.0], [1.0], temperature=0.0)


def test_unrelated_distance_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    one, two = -rng.exponential(2, 37), -rng.exponential(2, 23)
    plain = np.minimum(np.abs(one[:, None] - two[None, :]), 3.0).mean()
    assert unrelated_distance(one, two) == pytest.approx(plain)
