import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import Estimate, summarise_sequences, summarise_tokens
from mismatch_probe.stats.accumulate import DriftAccumulator
from mismatch_probe.stats.dependence import largest_block
from mismatch_probe.stats.exact_sums import ExactSums
from mismatch_probe.stats.sketches import RELATIVE_ERROR, Largest, SignedHistogram


def _trace(seed, sequences, prompts, scale=0.1, length=12):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, length, sequences)
    lengths[0] = max(lengths[0], 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rollout = -rng.exponential(1.0, offsets[-1])
    train = rollout + scale * rng.standard_t(3, rollout.size)
    return {
        "train": train,
        "rollout": rollout,
        "offsets": offsets,
        "clusters": rng.integers(0, prompts, sequences) * 3 - 2,
        "advantages": rng.normal(size=sequences),
        "entropy": rng.exponential(1.0, rollout.size),
        "token_class": rng.integers(0, 4, rollout.size),
    }


def _add(accumulator, trace, start, stop):
    part = slice(trace["offsets"][start], trace["offsets"][stop])
    accumulator.update(
        trace["train"][part],
        trace["rollout"][part],
        trace["offsets"][start : stop + 1] - trace["offsets"][start],
        trace["clusters"][start:stop],
        np.arange(start, stop),
        advantages=trace["advantages"][start:stop],
        entropy=trace["entropy"][part],
        token_class=trace["token_class"][part],
    )


def _one_shot(trace):
    log_ratio = trace["train"] - trace["rollout"]
    tokens = summarise_tokens(
        log_ratio,
        trace["rollout"],
        trace["train"],
        trace["offsets"],
        trace["clusters"],
        entropy=trace["entropy"],
        token_class=trace["token_class"],
    )
    sequences = summarise_sequences(
        log_ratio, trace["offsets"], trace["clusters"], trace["advantages"], train_logprobs=trace["train"]
    )
    return tokens, sequences


def _assert_close(got, expected, path, scale, *, loose):
    """Fields agree to 1e-12 of the sizes summed; ends of intervals, from small differences, to 1e-6."""
    if isinstance(expected, Estimate):
        assert (got.n, got.reason) == (expected.n, expected.reason), path
        _assert_close(got.value, expected.value, f"{path}.value", scale, loose=loose)
        for end in ("ci_low", "ci_high"):
            _assert_close(getattr(got, end), getattr(expected, end), f"{path}.{end}", scale, loose=1e-6)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            where = f"{path}.{field.name}"
            if where.startswith("tokens.quantiles"):
                continue
            bound = 1e-6 if field.name in ("horizon_low", "horizon_high") else loose
            _assert_close(getattr(got, field.name), getattr(expected, field.name), where, scale, loose=bound)
    elif isinstance(expected, tuple):
        assert len(got) == len(expected), path
        for place, (one, two) in enumerate(zip(got, expected, strict=True)):
            _assert_close(one, two, f"{path}[{place}]", scale, loose=loose)
    elif isinstance(expected, float):
        assert math.isclose(got, expected, rel_tol=loose, abs_tol=loose * scale), (path, got, expected)
    else:
        assert got == expected, path


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.integers(1, 14),
    st.lists(st.integers(0, 60), max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from([0.0, 1e-6, 0.1, 3.0]),
)
def test_parts_in_any_order_equal_the_whole(seed, sequences, prompts, cuts, random, scale):
    trace = _trace(seed, sequences, prompts, scale)
    bounds = sorted({0, sequences, *(min(cut, sequences) for cut in cuts)})
    parts = list(itertools.pairwise(bounds))
    block = largest_block(np.diff(trace["offsets"]), trace["clusters"])
    whole = DriftAccumulator(largest_block=block)
    for part in parts:
        _add(whole, trace, *part)
    random.shuffle(parts)
    accumulators = []
    for part in parts:
        if accumulators and random.random() < 0.5:
            _add(random.choice(accumulators), trace, *part)
        else:
            accumulators.append(DriftAccumulator(largest_block=block))
            _add(accumulators[-1], trace, *part)
    while len(accumulators) > 1:
        one = accumulators.pop(random.randrange(len(accumulators)))
        random.choice(accumulators).merge(one)
    tokens, sequences_ = accumulators[0].tokens(), accumulators[0].sequences()
    assert tokens == whole.tokens()
    assert sequences_ == whole.sequences()
    expected = _one_shot(trace)
    log_ratio = trace["train"] - trace["rollout"]
    size = float(np.exp(min(2 * max(np.abs(log_ratio).max(), 0.0), 600.0)))
    _assert_close(tokens, expected[0], "tokens", size, loose=1e-12)
    _assert_close(sequences_, expected[1], "sequences", 1.0, loose=1e-9 if scale == 3.0 else 1e-11)


def test_growth_of_the_variance_is_accumulated():
    trace = _trace(5, 200, 20, 0.05, length=200)
    block = largest_block(np.diff(trace["offsets"]), trace["clusters"])
    assert block >= 64
    accumulator = DriftAccumulator(largest_block=block)
    for start in range(0, 200, 50):
        _add(accumulator, trace, start, start + 50)
    got, expected = accumulator.sequences().length_law, _one_shot(trace)[1].length_law
    assert got.slope.value == pytest.approx(expected.slope.value, rel=1e-10)
    assert got.variance_time.num_blocks == expected.variance_time.num_blocks


def test_quantiles_hold_their_bound():
    rng = np.random.default_rng(0)
    values = rng.standard_t(2, 20_000) * 10.0 ** rng.uniform(-9, 0, 20_000)
    values[:500] = 0.0
    histogram = SignedHistogram()
    for part in np.array_split(values, 7):
        histogram.update(part)
    levels = (0.0, 0.001, 0.01, 0.3, 0.5, 0.77, 0.99, 1.0)
    np.testing.assert_allclose(histogram.quantiles(levels), np.quantile(values, levels), rtol=RELATIVE_ERROR)
    np.testing.assert_allclose(
        histogram.absolute_quantiles(levels), np.quantile(np.abs(values), levels), rtol=RELATIVE_ERROR
    )
    top = np.sort(np.abs(values))[-300:].sum()
    assert histogram.top_sum(300, np.abs) == pytest.approx(top, rel=RELATIVE_ERROR)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=50), st.randoms())
def test_exact_sums_are_correctly_rounded_in_any_order(values, random):
    terms = [v * 2.0 ** random.randint(-900, 850) for v in values]
    one, two, three = ExactSums(1), ExactSums(1), ExactSums(1)
    array = np.array(terms, dtype=np.float64)
    one.add(np.zeros(array.size, dtype=np.int64), array[:, None])
    random.shuffle(terms)
    for place, term in enumerate(terms):
        (two if place % 2 else three).add(np.zeros(1, dtype=np.int64), np.array([[term]]))
    two.merge(three, np.arange(1))
    assert one.table(1)[0, 0] == two.table(1)[0, 0] == math.fsum(terms)


def test_exact_sums_keep_rows_apart_and_refuse_what_is_not_finite():
    sums = ExactSums(2)
    sums.add(np.array([5, 0, 5]), np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 1e-30]]))
    np.testing.assert_array_equal(sums.table(6)[[0, 3, 5]], [[3.0, 4.0], [0.0, 0.0], [1.5, 2.0]])
    with pytest.raises(ConfigError):
        sums.add(np.array([0]), np.array([[np.inf, 0.0]]))


def test_largest_breaks_ties_by_coordinates():
    first, second = Largest(3, 2), Largest(3, 2)
    first.update(np.array([1.0, 2.0, 2.0, 2.0]), np.array([0.0, 9.0, 4.0, 7.0]))
    second.update(np.array([2.0, 5.0]), np.array([1.0, 2.0]))
    first.merge(second)
    np.testing.assert_array_equal(first.rows(), [[5.0, 2.0], [2.0, 1.0], [2.0, 4.0]])


def test_concentration_beyond_the_list_comes_from_the_histogram(monkeypatch):
    trace = _trace(1, 300, 10)
    monkeypatch.setattr("mismatch_probe.stats.accumulate.TOP_CAPACITY", 8)
    accumulator = DriftAccumulator(top_fraction=0.2)
    _add(accumulator, trace, 0, 300)
    log_ratio = trace["train"] - trace["rollout"]
    size = np.sort(np.abs(log_ratio))[::-1]
    count = math.ceil(0.2 * size.size)
    got = accumulator.tokens().top_share
    assert got.abs_log_ratio == pytest.approx(size[:count].sum() / size.sum(), rel=1e-3)
    assert got.k3 > 0.5


def test_overflow_stays_a_reason():
    accumulator = DriftAccumulator()
    accumulator.update([-1.0, -1.0], [-801.0, -1.0], [0, 2], [0], [0])
    tokens = accumulator.tokens()
    assert tokens.k3.value is None
    assert tokens.chi2.value is None
    assert tokens.renyi2 == pytest.approx(1600 - math.log(2))
    assert tokens.buckets.position[0].k3 is None


def test_misuse_is_refused():
    trace = _trace(2, 10, 3)
    accumulator = DriftAccumulator()
    with pytest.raises(InconclusiveError, match="no sequences"):
        accumulator.tokens()
    _add(accumulator, trace, 0, 10)
    with pytest.raises(ConfigError, match="every part"):
        accumulator.update([-1.0], [-1.0], [0, 1], [0], [99])
    with pytest.raises(ConfigError, match="settings"):
        accumulator.merge(DriftAccumulator(taus=(3.0,)))
    twice = DriftAccumulator()
    _add(twice, trace, 0, 10)
    twice.merge(accumulator)
    with pytest.raises(InconclusiveError, match="twice"):
        twice.sequences()
    with pytest.raises(InconclusiveError, match="nats apart"):
        DriftAccumulator().update([-1.0], [-9999.0], [0, 1], [0], [0])
    with pytest.raises(ConfigError):
        DriftAccumulator(largest_block=24)
