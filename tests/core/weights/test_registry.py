"""Names, hyperparameters, and what a batch refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights import (
    Batch,
    GradientView,
    WeightMethod,
    available_methods,
    describe_methods,
    get_method,
    register_method,
)
from mismatch_probe.weights.registry import methods

CONTRACT = [
    "reinforce",
    "token_is",
    "seq_is",
    "prefix_is",
    "vespo",
    "vespo_sqrt",
    "vespo_lin",
    "ppo_clip",
    "dapo",
    "dual_clip",
    "two_sided",
    "gspo",
    "gspo_token",
    "luspo",
    "gmpo",
    "sapo",
    "cispo",
    "token_tis",
    "seq_tis",
    "icepop",
    "seq_mis",
    "geo_rs",
    "k3_rs",
    "opsm",
    "minirl",
    "topr",
    "dppo_tv",
    "dppo_kl",
    "prime_dppo",
    "ipo",
    "drpo",
    "m2po",
]


def test_every_promised_name_is_there_and_describes_itself() -> None:
    assert set(CONTRACT) <= set(available_methods())
    for row in describe_methods():
        assert row.label and row.summary and row.reads and row.level in ("token", "sequence")
        assert isinstance(get_method(row.name, **row.parameters), WeightMethod)


def test_importing_does_not_import_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, mismatch_probe.weights as w\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(w.__path__, w.__name__ + '.')]\n"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vesp", {}, "vespo"),
        ("vespo", {"k_poss": 2.0}, "k_pos"),
        ("vespo", {"k_pos": -1.0}, "k_pos"),
        ("vespo", {"k_pos": float("nan")}, "k_pos"),
        ("vespo", {"k_pos": True}, "k_pos"),
        ("vespo", {"variant": "tlr"}, "trl"),
        ("seq_tis", {"cap": 0.0}, "cap"),
        ("ppo_clip", {"eps_low": 1.5}, "at most 1"),
        ("reinforce", {"cap": 1.0}, "takes none"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_name(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        get_method(name, **options)
    assert words in str(error.value)


def test_another_package_can_add_a_method() -> None:
    @register_method
    @dataclass(frozen=True, slots=True)
    class Halved(GradientView):
        """Half of everything: phi = 1/2."""

        name: ClassVar[str] = "test_halved"
        label: ClassVar[str] = "half"
        reads: ClassVar[str] = "none"

        def phi(self, ratios: Any) -> torch.Tensor:
            return torch.full_like(ratios.train, 0.5)

    batch = Batch.from_sequences(train_logprobs=[[-1.0]], rollout_logprobs=[[-1.0]], advantages=[2.0])
    try:
        assert get_method("test_halved").coefficients(batch).tolist() == [0.5]
        described = {row.name: row for row in describe_methods()}["test_halved"]
        assert (described.formula, described.traps, described.summary) == (
            "",
            (),
            "Half of everything: phi = 1/2.",
        )
    finally:
        methods._entries.pop("test_halved")


def test_a_batch_refuses_what_does_not_line_up() -> None:
    with pytest.raises(ConfigError, match="line up"):
        Batch.from_sequences(train_logprobs=[[-1.0, -1.0]], rollout_logprobs=[[-1.0]], advantages=[1.0])
    with pytest.raises(ConfigError, match="advantages"):
        Batch.from_sequences(train_logprobs=[[-1.0]], rollout_logprobs=[[-1.0]], advantages=[1.0, 2.0])
    with pytest.raises(ConfigError, match="offsets"):
        Batch.from_arrays(np.zeros(3), np.zeros(3), [0, 2], np.ones(1))
    with pytest.raises(ConfigError, match="NaN"):
        Batch.from_arrays(np.array([-1.0, np.nan]), np.zeros(2), [0, 2], np.ones(1))
    masked = Batch.from_arrays(np.array([-1.0, np.nan]), np.zeros(2), [0, 2], np.ones(1), mask=[1, 0])
    assert get_method("seq_is").coefficients(masked).tolist() == pytest.approx([np.exp(-1.0), 0.0])
    with pytest.raises(ConfigError, match="at least one"):
        Batch.from_sequences(train_logprobs=[], rollout_logprobs=[], advantages=[])
    with pytest.raises(ConfigError, match="aggregation"):
        get_method("vespo").loss(masked, "tokenmean")  # type: ignore[arg-type]


def test_sequence_sign_is_that_of_the_first_token_that_counts() -> None:
    batch = Batch.from_padded([[-1.0, -1.0, -1.0]], [[-1.5, -1.5, -1.5]], [[9.0, -1.0, 1.0]], [[0, 1, 1]])
    expect = get_method("vespo").coefficients(
        Batch.from_sequences(train_logprobs=[[-1.0] * 2], rollout_logprobs=[[-1.5] * 2], advantages=[-1.0])
    )
    assert get_method("vespo").coefficients(batch)[0].tolist() == [0.0, *expect.tolist()]
