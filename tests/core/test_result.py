import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.result import RESULT_SCHEMA_VERSION, read_result, to_json
from mismatch_probe.stats.estimate import Estimate


@dataclass(frozen=True)
class Outer:
    estimate: Estimate
    rows: tuple[int, ...]
    array: np.ndarray


def test_results_become_plain_json():
    made = to_json(Outer(Estimate(1.5, 1.0, 2.0, 7), (1, 2), np.array([1.0, np.nan])))
    assert made == {
        "estimate": {"value": 1.5, "ci_low": 1.0, "ci_high": 2.0, "n": 7}, "rows": [1, 2], "array": [1.0, None]
    }  # fmt: skip
    json.dumps(made, allow_nan=False)


def test_a_reason_is_kept_where_there_is_one():
    assert to_json(Estimate(None, None, None, 0, "nothing"))["reason"] == "nothing"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_json_cannot_say_is_null(value):
    assert to_json(value) is None


def test_numpy_scalars_keep_their_kind():
    assert to_json([np.int16(3), np.bool_(True), np.float64(0.5)]) == [3, True, 0.5]
    assert isinstance(to_json(np.bool_(True)), bool)


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError):
        to_json(object())


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 0}', "{" * 100_000])
def test_a_damaged_result_is_a_clear_error(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RunDirectoryError):
        read_result(path)


def test_a_missing_result_says_what_to_run(tmp_path):
    with pytest.raises(RunDirectoryError) as caught:
        read_result(tmp_path / "result.json")
    assert "mismatch-probe measure" in (caught.value.hint or "")


def test_a_result_comes_back(tmp_path):
    (tmp_path / "result.json").write_text(
        json.dumps({"schema_version": RESULT_SCHEMA_VERSION, "verdict": "pass"})
    )
    assert read_result(tmp_path / "result.json")["verdict"] == "pass"
