"""What is a secret, and that it is in nothing that is written."""

import json

import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.secrets import (
    REDACTED,
    check_given,
    is_secret_name,
    redact,
    redact_command,
    scrub_file,
    secret_values,
)

KEY = "sk-PLANTED-0123456789"


@pytest.mark.parametrize("name", ["hf_token", "api_key", "apiKey", "WANDB_API_KEY", "s3.secret-access", "password", "x_credentials"])  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "api_key_env", "monkey", "keep_sets", "num_prompts"])  # fmt: skip
def test_names_of_settings(name):
    assert not is_secret_name(name)


def test_options_are_redacted_however_deep():
    options = {
        "hf_token": KEY,
        "url": f"http://me:{KEY}@127.0.0.1:8000/v1",
        "loader": {"buckets": [{"secret_key": KEY, "name": "a"}], "api_key_env": "MY_KEY"},
        "num_key_value_heads": 4,
        "token": None,
    }
    shown = redact(options)
    assert KEY not in json.dumps(shown)
    assert shown["url"] == f"http://{REDACTED}@127.0.0.1:8000/v1"
    assert shown["loader"] == {"buckets": [{"secret_key": REDACTED, "name": "a"}], "api_key_env": "MY_KEY"}
    assert shown["num_key_value_heads"] == 4
    assert shown["token"] is None
    assert secret_values(options, {"OPENAI_API_KEY": "other-secret", "HOME": "/home/somebody"}) == {
        KEY,
        "other-secret",
    }


@pytest.mark.parametrize(
    "argument",
    [
        f"rollout.options.hf_token={KEY}",
        f'rollout.options.hf_token="{KEY}"',
        f"--set=rollout.options.api_key={KEY}",
        f'rollout.options={{hf_token = "{KEY}", seed = 1}}',
        f'rollout.options={{"api_key": "{KEY}"}}',
        f"rollout.options.url=http://me:{KEY}@host:1",
    ],
)
def test_a_command_has_no_secret(argument):
    shown = redact_command(["mismatch-probe", "audit", "--set", argument, "--out", "runs/a b"])
    assert KEY not in shown
    assert REDACTED in shown
    assert shown.endswith("'runs/a b'")


@pytest.mark.parametrize("argument", ["sampling.max_tokens=5", "rollout.options.num_key_value_heads=4", 'legs=["a"]'])  # fmt: skip
def test_a_command_keeps_its_settings(argument):
    assert redact_command([argument]).strip("'") == argument


def test_a_secret_that_was_not_kept_has_to_be_given_again():
    check_given({"seed": 1, "nested": {"a": "b"}}, "rollout.options")
    with pytest.raises(ConfigError, match=r"train.options.loader.hf_token") as caught:
        check_given(redact({"loader": {"hf_token": KEY}}), "train.options")
    assert "--set train.options.loader.hf_token" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"rollout.options.buckets"):
        check_given(redact({"buckets": [{"secret_key": KEY}]}), "rollout.options")


def test_a_log_is_scrubbed(tmp_path):
    log = tmp_path / "rollout.log"
    log.write_bytes(f"args: hf_token={KEY}\n\xff{KEY}{KEY}\nlast".encode("latin-1"))
    scrub_file(log, {KEY})
    assert log.read_bytes() == f"args: hf_token={REDACTED}\n\xff{REDACTED}{REDACTED}\nlast".encode("latin-1")
    assert list(tmp_path.iterdir()) == [log]
    before = log.stat().st_mtime_ns
    scrub_file(log, {KEY})
    scrub_file(tmp_path / "none.log", {KEY})
    assert log.stat().st_mtime_ns == before
