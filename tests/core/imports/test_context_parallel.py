"""Responses cut over context-parallel ranks: every token is on one rank, and stitching gives the response back."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.imports.context_parallel import response_spans, stitch_shards


@given(size=st.integers(1, 8), prompt=st.integers(1, 40), response=st.integers(1, 60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stitching_undoes_the_cut(golden_module: ModuleType, size: int, prompt: int, response: int) -> None:
    total, values = prompt + response, np.arange(response, dtype=np.float64)
    held = [span for rank in range(size) for span in response_spans(rank, size, total, response)]
    assert sorted(place for begin, end in held for place in range(begin, end)) == list(range(response))
    shards = {rank: golden_module.zigzag(values, rank, size, total).numpy() for rank in range(size)}
    assert np.array_equal(stitch_shards(shards, size, total, response, "log_probs"), values)
    shards[size - 1] = np.append(shards[size - 1], 0.0)
    with pytest.raises(ConfigError, match="log_probs"):
        stitch_shards(shards, size, total, response, "log_probs")
