"""What is predicted of a config for TRL is what TRL then does: its parser loads it, and its trainer's sampling and loss run with it."""

from __future__ import annotations

import pytest
import torch
import yaml
from parity.batches import discrepancy
from parity.conftest import DTYPES
from parity.measured import Run, Summary
from parity.round_trip import apart, config_of, exported, product, through_trl

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import export_config
from mismatch_probe.export.annotated import Value
from mismatch_probe.export.applied.trl import methods
from mismatch_probe.weights import framework_methods

KEEP_ALL = {"cispo", "sapo", "vespo"}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo")
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
IS = "vllm_importance_sampling_"


def allowed(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float32 else 1e-8


@DTYPES
@pytest.mark.usefixtures("dtype_of_numbers")
def test_every_method_that_can_be_exported(
    subtests: pytest.Subtests, planted: Run, dtype: torch.dtype
) -> None:
    seen = set()
    for method, config in exported("trl", planted):
        with subtests.test(method=method):
            tokens = planted.tokens(dtype)
            done = through_trl(config.text, tokens)
            did, predicted = Summary.of(done.phi, tokens), Summary.predicted(config.applies, planted)
            assert predicted.apart(did) <= allowed(dtype), (predicted, did)
            assert discrepancy(done.phi, product(config.applies, tokens)) <= 1e-6
            assert did.kept_fraction == 1.0 if method in KEEP_ALL else 0.3 < did.kept_fraction < 1.0
            keys = yaml.safe_load(config.text)
            if keys.get(f"{IS}mode") == "token_truncate":
                assert done.weights is not None
                capped = done.weights[tokens.mask] >= keys[f"{IS}clip_max"] * (1 - 1e-6)
                assert bool(capped.any()), "nothing was truncated"
            seen.add(method)
    assert set(framework_methods("trl")) <= seen


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.usefixtures("dtype_of_numbers")
def test_losses_and_modes_that_no_export_writes(
    subtests: pytest.Subtests, planted: Run, dtype: torch.dtype
) -> None:
    """Every loss_type, every mode with two bounds, and OPSM on top: read the same way, they come to what TRL does."""
    given: list[dict[str, Value]] = [
        *({"loss_type": loss, f"{IS}mode": "token_truncate", f"{IS}clip_max": 1.3} for loss in LOSSES),
        *({f"{IS}mode": mode, f"{IS}clip_max": 1.5} for mode in MODES),
        *({f"{IS}mode": mode, f"{IS}clip_min": 0.7, f"{IS}clip_max": 1.5} for mode in MODES if mode != "sequence_truncate"),
        *({"loss_type": "grpo", "importance_sampling_level": "sequence", f"{IS}mode": mode} for mode in MODES if mode != "token_mask"),
        *({"loss_type": loss, "off_policy_mask_threshold": 0.02} for loss in ("dapo", "sapo", "cispo")),
        {},
    ]  # fmt: skip
    for keys in given:
        with subtests.test(**keys):
            text, entries = config_of({"use_vllm": True, **keys})
            tokens = planted.tokens(dtype)
            done = through_trl(text, tokens)
            assert Summary.predicted(methods(entries), planted).apart(Summary.of(done.phi, tokens)) <= 1e-8


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": "cispo", "importance_sampling_level": "sequence"},
        {"loss_type": "sapo", "importance_sampling_level": "sequence"},
        {"importance_sampling_level": "sequence", "delta": 4.0},
        {"importance_sampling_level": "sequence", f"{IS}mode": "token_mask"},
        {f"{IS}mode": "sequence_truncate", f"{IS}clip_min": 0.5},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_what_no_method_stands_for_is_not_guessed(keys: dict[str, Value]) -> None:
    with pytest.raises(ConfigError, match="no method stands for"):
        methods(config_of(keys)[1])


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.usefixtures("dtype_of_numbers")
@pytest.mark.parametrize("method", ["token_tis", "vespo", "seq_mis"])
def test_a_wrong_threshold_breaks_it(method: str, dtype: torch.dtype, planted: Run) -> None:
    config = export_config(planted.result, "trl", method=method)
    assert apart("trl", config, planted, dtype) <= 1e-8
    written = f"{IS}clip_max: {yaml.safe_load(config.text)[f'{IS}clip_max']}"
    assert written in config.text
    tokens = planted.tokens(dtype)
    did = Summary.of(through_trl(config.text.replace(written, f"{IS}clip_max: 1.05"), tokens).phi, tokens)
    assert Summary.predicted(config.applies, planted).apart(did) > 1e-4
