"""Sums by sequence: the same however the run is cut up, whole under any log W, and honest about what cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate import Responses, Unavailable, respond_all
from mismatch_probe.simulate.families import FAMILIES, OTHER, family_of
from mismatch_probe.simulate.sums import SequenceSums, ground_of, sum_weights
from mismatch_probe.weights import GradientView, available_methods, get_method

Make = Callable[..., Responses]

# M2PO decides over a whole batch, so cutting the run up changes what it drops.
SEPARABLE = [name for name in available_methods() if name != "m2po"]


@dataclass(frozen=True, slots=True)
class Broken(GradientView):
    """Gives NaN, or raises, as a third party's method may."""

    name: ClassVar[str] = "broken"
    label: ClassVar[str] = "Broken"
    how: str = "nan"

    def phi(self, ratios):
        if self.how == "raise":
            raise ZeroDivisionError("no such thing")
        return ratios.train * float("nan")


@pytest.mark.parametrize("max_tokens", [1, 7, 64])
def test_sums_do_not_hang_on_how_the_run_is_cut(make_responses: Make, max_tokens: int) -> None:
    generator = np.random.default_rng(3)
    rows = [generator.normal(-0.02, 0.3, size) for size in generator.integers(1, 20, 25)]
    responses = make_responses(rows, advantages=generator.choice([-1.0, 0.0, 2.0], 25))
    ground = ground_of(responses)
    methods = {name: get_method(name) for name in SEPARABLE}
    whole = sum_weights(methods, responses, ground)
    cut = sum_weights(methods, responses, ground, max_tokens=max_tokens)
    for name in SEPARABLE:
        one, other = whole[name], cut[name]
        assert isinstance(one, SequenceSums) and isinstance(other, SequenceSums)
        for field in ("weight", "size", "squares", "largest", "kept", "empty", "binned"):
            assert getattr(other, field) == pytest.approx(getattr(one, field), rel=1e-12), (name, field)


def test_sums_are_those_of_the_coefficients(make_responses: Make) -> None:
    generator = np.random.default_rng(4)
    rows = [generator.normal(-0.05, 0.8, size) for size in (3, 1, 12, 40)]
    responses = make_responses(rows, advantages=[1.0, -1.0, 0.5, -2.0])
    ground = ground_of(responses)
    for name in ("drpo", "icepop", "vespo"):  # drpo gives weights below 0
        method = get_method(name)
        sums = sum_weights({name: method}, responses, ground)[name]
        assert isinstance(sums, SequenceSums)
        phi = np.split(responses.coefficients(method), responses.offsets[1:-1])
        assert sums.weight == pytest.approx([row.sum() for row in phi])
        assert sums.size == pytest.approx([np.abs(row).sum() for row in phi])
        assert sums.squares * sums.scale**2 == pytest.approx([(row**2).sum() for row in phi])
        assert sums.kept.tolist() == [(row > method.kept_above).sum() for row in phi]
        assert sums.binned.sum() == pytest.approx(np.concatenate(phi).sum())


@given(
    st.lists(
        st.tuples(st.floats(-1e4, 1e4), st.integers(1, 2000), st.sampled_from([-1.0, 0.0, 1.0])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=8, deadline=None)
def test_any_log_weight_gives_finite_numbers_without_a_warning(rows: list[tuple[float, int, float]]) -> None:
    """log W in [-1e4, 1e4], evenly spread over a response; RuntimeWarnings are errors in this project's tests."""
    log_ratio = np.concatenate([np.full(length, total / length) for total, length, _ in rows])
    rollout = np.minimum(-1.0, -1.0 - log_ratio)
    offsets = np.concatenate([[0], np.cumsum([length for _, length, _ in rows])])
    responses = Responses.of(
        rollout + log_ratio, rollout, offsets, np.arange(len(rows)), [sign for *_, sign in rows]
    )
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        made = respond_all(None, responses, resamples=20, complete=True)
    for name, response in made.items():
        assert not isinstance(response, Unavailable), name
        assert response.mean.value is not None and np.isfinite(response.mean.value), name
        assert 0.0 <= response.max_weight_share <= 1.0 + 1e-12
        assert response.ess.value is None or 0.0 <= response.ess.value <= 1.0 + 1e-9
        assert sum(bucket.n for bucket in response.by_length) == len(rows)


def test_a_very_long_response_is_one_piece(make_responses: Make) -> None:
    responses = make_responses([[-1e-4] * 100_000, [0.0]], advantages=[1.0, -1.0])
    made = respond_all(["vespo", "token_tis", "gspo"], responses, complete=True)
    assert made["gspo"].positive_mass.value == pytest.approx(np.exp(-1e-4))
    assert made["vespo"].positive_mass.value == pytest.approx(np.exp(-20.0 + 3.0), rel=1e-3)


@pytest.mark.parametrize(
    ("how", "reason"), [("nan", "finite"), ("raise", "ZeroDivisionError: no such thing")]
)
def test_a_method_that_fails_is_unavailable_and_the_others_are_not(
    make_responses: Make, how: str, reason: str
) -> None:
    responses = make_responses(sequences=8, length=5)
    made = respond_all([Broken(how=how), "vespo"], responses, complete=True)
    broken = made["broken"]
    assert isinstance(broken, Unavailable) and reason in broken.reason and broken.available is False
    assert made["vespo"].mean.value is not None
    with pytest.raises(ConfigError, match=reason):
        from mismatch_probe.simulate import respond

        respond(Broken(how=how), responses)


def test_signs_and_lengths_partition_the_whole(make_responses: Make) -> None:
    generator = np.random.default_rng(9)
    rows = [generator.normal(-0.02, 0.4, size) for size in generator.integers(1, 60, 64)]
    signs = generator.choice([-2.0, 1.0], 64)
    responses = make_responses(rows, advantages=signs)
    for name in ("vespo", "icepop"):
        got = respond_all([name], responses, complete=True)[name]
        by_sign = got.by_sign
        assert by_sign["positive"].mean.value == pytest.approx(got.positive_mass.value)
        assert by_sign["negative"].mean.value == pytest.approx(got.negative_mass.value)
        assert by_sign["positive"].sequences + by_sign["negative"].sequences == 64
        for key in ("empty_tokens", "empty_sequences"):
            assert sum(getattr(by_sign[word], key) for word in by_sign) == getattr(got, key)
            assert sum(getattr(bucket, key) for bucket in got.by_length) == getattr(got, key)
        kept = sum(by_sign[word].kept_fraction.value * by_sign[word].tokens for word in by_sign)
        assert kept == pytest.approx(got.kept_fraction.value * sum(len(row) for row in rows))
        weight, gradient, amount = 0.0, 0.0, 0.0
        for bucket in got.by_length:
            here = [i for i, row in enumerate(rows) if bucket.low <= len(row) <= bucket.high]
            assert bucket.n == len(here)
            tokens = sum(len(rows[i]) for i in here)
            weight += bucket.mean.value * (bucket.n if name == "vespo" else tokens)
            size = sum(abs(signs[i]) * len(rows[i]) for i in here)
            gradient, amount = gradient + bucket.gradient_mass.value * size, amount + size
        entries = 64 if name == "vespo" else sum(len(row) for row in rows)
        assert weight / entries == pytest.approx(got.mean.value)
        assert gradient / amount == pytest.approx(got.gradient_mass.value)


def test_every_method_has_a_family_and_none_has_two() -> None:
    listed = [name for names in FAMILIES.values() for name in names]
    assert sorted(listed) == sorted(available_methods())
    assert family_of("a_third_party's") == OTHER and family_of("vespo") == "VESPO"


def test_an_interval_over_three_orders_of_magnitude_is_not_given():
    from mismatch_probe.simulate.intervals import FEW, PromptSums, quotient

    # Log-normal weights so wide that a few prompts decide the mean.
    weight = np.exp(np.random.default_rng(3).normal(0.0, 6.0, 24))
    sums = PromptSums({"total": weight, "count": np.ones(24)}, 1000, 0)
    made = sums.estimate(("total", "count"), quotient, n=24, missing="none")
    assert made.value is not None
    assert (made.ci_low, made.ci_high) == (None, None)
    assert made.reason
    narrow = PromptSums({"total": np.linspace(1, 2, 24), "count": np.ones(24)}, 1000, 0)
    kept = narrow.estimate(("total", "count"), quotient, n=24, missing="none")
    assert kept.ci_low is not None and kept.reason != FEW
