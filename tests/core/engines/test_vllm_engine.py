"""What of the vLLM engine needs no engine; the rest is in tests/e2e."""

import numpy as np
import pytest

from mismatch_probe.engines.registry import engines
from mismatch_probe.engines.vllm_routes import complete_gates, complete_routes
from mismatch_probe.errors import CaptureError


def routes(tokens=6, layers=2, top_k=3):
    return np.arange(tokens * layers * top_k, dtype=np.int32).reshape(tokens, layers, top_k) % 7


def test_rows_after_the_last_fed_token_are_cut_off():
    got = complete_routes(routes(8), (6, 2, 3), sequence_id=0)
    assert got.dtype == np.int16
    assert np.array_equal(got, routes(8)[:6])


@pytest.mark.parametrize(
    ("captured", "says"),
    [
        (None, "0 of 6 tokens"),
        (routes(5), "5 of 6 tokens"),
        (routes(6, layers=1), "layers x experts"),
        (routes(6, top_k=2), "layers x experts"),
        (np.where(np.arange(36).reshape(6, 2, 3) == 17, -1, routes()), "1 of 36 expert ids"),
    ],
)
def test_anything_less_than_every_route_is_an_error(captured, says):
    with pytest.raises(CaptureError, match=says) as caught:
        complete_routes(captured, (6, 2, 3), sequence_id=4)
    assert "sequence 4" in caught.value.message


def test_capabilities_are_asked_without_starting_anything():
    capabilities = engines.get("vllm").item.capabilities()
    assert capabilities.sampling
    assert capabilities.forced_decode


def test_gates_are_whole_or_not_there():
    gates = np.full((8, 2, 3), 0.25, dtype=np.float16)
    assert complete_gates(gates, 6).shape == (6, 2, 3)
    assert complete_gates(gates, 9) is None
    assert complete_gates(None, 1) is None
    gates[3, 1, 0] = np.nan
    assert complete_gates(gates, 6) is None
    assert complete_gates(gates, 3) is not None
