"""Merging into a user's config: what was there stays, what is exported is read back, and nothing is done twice."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from core.export.reading import load
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import ExportedConfig, export_config
from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.merge import merge_config

Make = Callable[..., dict[str, Any]]

YAML = """\
# my run
defaults:
  - _self_

algorithm:   # what we optimise
  gamma: 1.0   # keep
  rollout_correction:
    # chosen by hand
    rollout_is: sequence  # was token
    rollout_is_threshold: 2.0
actor_rollout_ref:
  rollout:
    temperature: 1
    name: 'vllm'
trainer: {n_gpus: 8, logger: ["console", 'wandb']}
"""
TOML = """\
# top
max_steps = 20

[trainer.loss]
type = "default" # keep
dppo_mask_low = 0.1 # by hand

[orchestrator]
batch_size = 128
"""


def at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def paths(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [
        path for key, value in tree.items() for path in paths(value, f"{prefix}.{key}" if prefix else key)
    ]


def test_a_yaml_config_keeps_its_lines_and_gets_the_keys(make_result: Make) -> None:
    exported = export_config(make_result(noise=0.1), "verl", method="geo_rs")
    merged = merge_config(YAML, exported)
    read = yaml.safe_load(merged.text)
    for entry in exported.entries:
        assert at(read, entry.key) == entry.value and type(at(read, entry.key)) is type(entry.value)
    before, after = YAML.splitlines(), merged.text.splitlines()
    kept = [line for line in before if "rollout_is" not in line and "temperature" not in line]
    assert [line for line in after if line in kept] == kept
    assert any("# was token" in line for line in after) and "    # chosen by hand" in after
    assert set(merged.changed) == {
        "algorithm.rollout_correction.rollout_is",
        "actor_rollout_ref.rollout.temperature",
    }
    # A new key carries the measurement that set it, a changed one what its owner wrote.
    line = after.index(next(line for line in after if "rollout_rs_threshold" in line))
    assert after[line - 1].lstrip().startswith("#") and "fit that leaves" in "".join(after[line - 4 : line])
    assert merge_config(merged.text, exported).text == merged.text


def test_a_toml_config_keeps_its_lines_and_gets_the_keys(make_result: Make) -> None:
    exported = export_config(make_result(explained=0.8), "prime-rl", method="prime_dppo")
    merged = merge_config(TOML, exported)
    read = tomllib.loads(merged.text)
    assert all(at(read, entry.key) == entry.value for entry in exported.entries)
    after = merged.text.splitlines()
    kept = [line for line in TOML.splitlines() if "dppo_mask_low" not in line and line]
    assert [line for line in after if line in kept] == kept
    assert "dppo_mask_low = 0.2 # by hand" in after
    assert merged.changed == ("trainer.loss.dppo_mask_low",)
    assert merge_config(merged.text, exported).text == merged.text


@pytest.mark.parametrize(
    ("to", "empty"), [("verl", ""), ("ms-swift", "# mine\n"), ("roll", "{}\n"), ("prime-rl", "")]
)
def test_an_empty_config_gets_what_an_export_says(make_result: Make, to: str, empty: str) -> None:
    exported = export_config(make_result(noise=0.1), to)
    merged = merge_config(empty, exported)
    assert load(ExportedConfig(merged.text, exported.format)) == load(exported)
    assert merged.text.startswith(empty.replace("{}\n", ""))
    assert set(merged.added) == {entry.key for entry in exported.entries}


def test_line_ends_of_windows_stay(make_result: Make) -> None:
    exported = export_config(make_result(), "verl")
    merged = merge_config(YAML.replace("\n", "\r\n"), exported).text
    assert merged.count("\n") == merged.count("\r\n") > YAML.count("\n")
    assert merged.replace("\r\n", "\n") == merge_config(YAML, exported).text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm: [1\n", "no YAML"),
        ("- a\n- b\n", "no mapping"),
        ("algorithm: ppo\n", "algorithm is no table"),
        ("base: &c {rollout_is: null}\nalgorithm:\n  rollout_correction: *c\n", "shared with another place"),
    ],
)
def test_a_config_that_cannot_take_the_keys_is_refused(make_result: Make, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge_config(text, export_config(make_result(), "verl"))


def test_arguments_and_broken_toml_are_refused(make_result: Make) -> None:
    with pytest.raises(ConfigError, match="no file can be merged with"):
        merge_config("", export_config(make_result(), "slime"))
    with pytest.raises(ConfigError, match="no TOML"):
        merge_config("[trainer\n", export_config(make_result(), "prime-rl"))


values = st.one_of(
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(-1e12, 1e12, allow_nan=False).map(lambda value: float(f"{value:.10g}")),
    st.sampled_from(["0.5_5.0", "on", "null", "a: b", "R3", "1e-3", ""]),
)
keys = st.sampled_from(["a", "b", "c", "d.e", "d.f", "d.g.h", "i.j"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.dictionaries(keys, values, min_size=1, max_size=5))
def test_any_keys_are_set_and_no_other_is_touched(before: dict[str, Any], new: dict[str, Any]) -> None:
    """In YAML as PyYAML reads it, and in TOML as tomllib does."""
    tree: dict[str, Any] = {}
    for path, value in before.items():
        *parents, leaf = path.split(".")
        here = tree
        for name in parents:
            here = here.setdefault(name, {})
        here[leaf] = value
    entries = tuple(Entry(key, value, "why") for key, value in new.items())
    import tomlkit

    for form, text, read in (
        ("yaml", yaml.safe_dump(tree), yaml.safe_load),
        ("toml", tomlkit.dumps(tree), tomllib.loads),
    ):
        merged = merge_config(text, ExportedConfig("", form, (), entries))
        after = read(merged.text)
        assert set(paths(after)) == {*before, *new}
        for path, value in {**before, **new}.items():
            got = at(after, path)
            assert got == value and isinstance(got, bool) == isinstance(value, bool), form
        assert merge_config(merged.text, ExportedConfig("", form, (), entries)).text == merged.text
