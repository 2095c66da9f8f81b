import json

import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.preflight.pair import check_pair, config_differences

CONFIG = {"vocab_size": 64, "hidden_size": 8, "rope_parameters": {"rope_theta": 1e4}, "dtype": "bfloat16"}


def folder(path, tokenizer="{}", **changes):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (path / "tokenizer.json").write_text(tokenizer)
    return path


def test_how_a_checkpoint_is_stored_is_no_difference(tmp_path):
    left = folder(tmp_path / "a", transformers_version="4")
    right = folder(tmp_path / "b", transformers_version="5", dtype="float32", use_cache=False)
    assert config_differences(left, right) == []
    check_pair(left, right)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"vocab_size": 96}, "vocab_size"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ],
)
def test_what_is_computed_otherwise_is_named(tmp_path, changes, key):
    with pytest.raises(ConfigError) as caught:
        check_pair(folder(tmp_path / "a"), folder(tmp_path / "b", **changes))
    assert key in caught.value.message


def test_another_tokenizer_is_a_difference(tmp_path):
    left, right = folder(tmp_path / "a"), folder(tmp_path / "b", tokenizer='{"other": 1}')
    assert [item.key for item in config_differences(left, right)] == ["tokenizer.json"]
