"""Where SGLang is looked for, what is declared, and with what it is started."""

import sys
from pathlib import Path

import pytest

from mismatch_probe.engines.foreign_python import foreign_environment
from mismatch_probe.engines.protocol import EngineSpec
from mismatch_probe.engines.registry import engines
from mismatch_probe.engines.sglang.interpreter import sglang_python
from mismatch_probe.engines.sglang.reader import engine_arguments
from mismatch_probe.errors import ConfigError, EngineUnavailableError


def test_without_sglang_both_engines_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sglang", "sglang-server"):
        able = engines.get(name).item.able({})
        assert not able.sampling and "make sglang" in able.reason["sampling"]
    with pytest.raises(EngineUnavailableError):
        engines.get("sglang").item.environment({})


def test_a_named_interpreter_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        sglang_python({"python": str(tmp_path / "python")})
    assert sglang_python({"python": sys.executable}) == Path(sys.executable)


def test_a_server_of_somebody_else_is_trusted_with_nothing_that_it_does_not_say():
    entry = engines.get("sglang-server").item
    able = entry.able({"url": "http://127.0.0.1:1"})
    assert able.sampling and not able.routing and able.sampling_parameters == frozenset()
    told = {
        "url": "http://127.0.0.1:1",
        "routed_experts": True,
        "logprobs_mode": "processed_logprobs",
    }
    assert entry.able(told).routing and entry.able(told).sampling_parameters == {"temperature"}


def test_options_win_over_defaults_and_not_over_what_an_audit_needs(tmp_path):
    spec = EngineSpec(tmp_path, "bfloat16", 100, True, 2, 4, {})
    options = {"attention_backend": "intel_amx", "skip_tokenizer_init": False, "max_running_requests": 4}
    arguments = engine_arguments(spec, options, cuda=False)
    assert arguments["attention_backend"] == "intel_amx" and arguments["skip_tokenizer_init"] is True
    assert arguments["max_total_tokens"] == 4 * 164 and arguments["enable_return_routed_experts"] is True
    assert "device" not in engine_arguments(spec, {}, cuda=True)


def test_another_interpreter_gets_this_package_and_nothing_else(tmp_path):
    found = foreign_environment(tmp_path, {"PYTHONPATH": "elsewhere", "VIRTUAL_ENV": "here", "KEPT": "1"})
    assert found == {"KEPT": "1", "PYTHONPATH": str(tmp_path)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["mismatch_probe"]
    assert (tmp_path / "mismatch_probe" / "errors.py").is_file()
