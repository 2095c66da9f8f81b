"""Exports to frameworks that cannot be installed here, key by key against tables of what their sources read."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core.export.reading import load

import mismatch_probe.export
from mismatch_probe.errors import ConfigError
from mismatch_probe.export import ExportedConfig, available_exporters, export_config
from mismatch_probe.export.target import Target
from mismatch_probe.weights import available_methods

Make = Callable[..., dict[str, Any]]
TABLES = json.loads(
    (Path(__file__).parents[2] / "vectors" / "framework_keys.json").read_text(encoding="utf-8")
)
KINDS = {"float": float, "int": int, "bool": bool, "str": str, "list": list}


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.")
            continue
        yield path, value
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                yield from leaves(item, f"{path}.")


def word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def wrong_keys(name: str, exported: ExportedConfig) -> list[str]:
    """Keys that the framework does not have, and values that are not of the kind that it reads."""
    table, wrong = TABLES[name]["keys"], []
    tree = load(exported)
    flat = tree.items() if exported.format == "bash" else leaves(tree)
    for key, value in flat:
        if key not in table:
            wrong.append(key)
            continue
        read = value
        if exported.format == "bash":
            given = [value] if isinstance(value, str) else value
            if not table[key]:
                wrong += [key] if given else []
                continue
            read = word(given[0]) if len(given) == 1 else given
        choices = [f"={read}", "null" if read is None else ""]
        right = any(kind in choices or (kind in KINDS and type(read) is KINDS[kind]) for kind in table[key])
        wrong += [] if right else [key]
    return wrong


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_key_and_value_is_one_that_the_source_reads(make_result: Make, name: str) -> None:
    written: set[str] = set()
    for noise, explained, top_k in ((0.1, None, -1), (0.3, 0.8, 50), (0.02, 0.1, -1)):
        result = make_result(noise=noise, explained=explained)
        result["provenance"]["sampling"]["top_k"] = top_k
        for method in available_methods():
            try:
                exported = export_config(result, name, method=method)
            except ConfigError as error:
                assert "cannot express" in str(error)
                continue
            assert wrong_keys(name, exported) == [], method
            written |= {entry.key for entry in exported.entries}
    # Keys of the table that nothing writes would be dead letters: lists are written whole.
    assert {key for key in TABLES[name]["keys"] if ".filters." not in key} == written


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_planted_key_is_found(make_result: Make, name: str) -> None:
    exported = export_config(make_result(explained=0.8), name)
    assert wrong_keys(name, exported) == []
    leaf = exported.entries[0].key.rpartition(".")[2]
    bad = ExportedConfig(exported.text.replace(leaf, f"{leaf}_x"), exported.format)
    assert [key for key in wrong_keys(name, bad) if key.endswith("_x")]


def test_mis_never_normalises_what_the_helper_cannot(make_result: Make) -> None:
    """tis_batch_normalize is the default of its YAML and an error with tis_level geometric; nor does it reject without use_tis."""
    for method in ("token_tis", "seq_tis", "icepop", "seq_mis", "geo_rs"):
        keys = load(export_config(make_result(noise=0.1), "slime-mis", method=method))
        assert keys["tis_batch_normalize"] is False and keys["use_tis"] is True
        assert load(export_config(make_result(noise=0.1), "miles-mis", method=method)) == keys
    assert keys["use_rs"] is True and keys["rs_level"] == "geometric"
    assert keys["rs_lower_bound"] < keys["rs_upper_bound"]


def test_caps_of_cispo_are_relative_or_absolute_as_each_framework_reads_them(make_result: Make) -> None:
    result = make_result()
    one = {
        to: load(export_config(result, to, method="cispo"))
        for to in ("trl", "ms-swift", "skyrl", "slime", "nemo-rl")
    }
    relative = (
        one["skyrl"]["trainer"]["algorithm"]["cispo"]["cispo_eps_clip_high"],
        float(one["slime"]["eps-clip-high"][0]),
        one["nemo-rl"]["loss_fn"]["ratio_clip_max"],
    )
    absolute = (one["trl"]["epsilon_high"], one["ms-swift"]["epsilon_high"])
    assert relative == (0.28, 0.28, 0.28) and absolute == (1.28, 1.28)


def test_areal_is_not_given_what_it_refuses(make_result: Make) -> None:
    with pytest.raises(ConfigError, match="binary_kl"):
        export_config(make_result(), "areal", method="kpop")
    shifted = make_result(noise=0.1)
    shifted["recommendation"]["candidates"]["geo_rs"]["parameters"] = {"low": 0.5, "high": 0.9}
    with pytest.raises(ConfigError, match="above 1"):
        export_config(shifted, "areal", method="geo_rs")


def test_what_cannot_be_expressed_is_said_and_stood_in_for(make_result: Make) -> None:
    exported = export_config(make_result(), "slime")
    assert "cannot express 'vespo'" in exported.notes[0] and "token_tis was written" in exported.notes[0]
    assert "token_tis in the place of vespo" in " ".join(exported.text.replace("\n#", " ").split())
    assert load(export_config(make_result(), "prime-rl"))["trainer"]["loss"]["dppo_mask_high"] == 0.2
    with pytest.raises(ConfigError, match="slime-mis"):
        export_config(make_result(), "slime", method="seq_tis")


def test_measured_sampling_is_written_or_missed(make_result: Make) -> None:
    result = make_result()
    result["provenance"]["sampling"].update(top_p=0.9, top_k=50)
    assert load(export_config(result, "trl"))["top_k"] == 50
    assert load(export_config(result, "areal"))["gconfig"] == {"temperature": 0.8, "top_p": 0.9, "top_k": 50}
    assert any("top_k" in note and "50" in note for note in export_config(result, "openrlhf").notes)
    notes = export_config(result, "prime-rl").notes
    assert any("0.9" in note for note in notes) and any("50" in note for note in notes)


def test_another_installed_version_is_named(make_result: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mismatch_probe.export.target.version", lambda _: "0.8.2")
    assert any("verl 0.8.2 is installed here" in note for note in export_config(make_result(), "verl").notes)
    monkeypatch.setattr("mismatch_probe.export.target.version", lambda _: "0.9.7")
    assert not any("installed" in note for note in export_config(make_result(), "verl").notes)


def test_the_page_says_what_each_exporter_says_of_itself() -> None:
    page = (Path(__file__).parents[3] / "docs" / "exports.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    targets = {
        item.name: item
        for module in pkgutil.iter_modules(mismatch_probe.export.__path__)
        for item in vars(importlib.import_module(f"mismatch_probe.export.{module.name}")).values()
        if isinstance(item, Target)
    }
    assert set(targets) == set(available_exporters())
    assert {name for name, target in targets.items() if not target.loaded} == set(TABLES)
    for name, target in targets.items():
        (row,) = [line for line in rows if f"`{name}`" in line.split("|")[1]]
        assert ("not loaded by the framework" in row) is not target.loaded, name
        assert "the same" in row or target.versions[0] in row or TABLES[name]["commit"] in row, name
