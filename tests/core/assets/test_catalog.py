"""From what a user calls a model to a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mismatch_probe.assets import catalog
from mismatch_probe.assets.catalog import (
    DEFAULT_MODEL,
    available_models,
    default_cache_dir,
    read_model_facts,
    resolve_model,
)
from mismatch_probe.errors import ConfigError


def test_known_names_are_listed_with_a_line_each() -> None:
    models = available_models()
    assert list(models) == [DEFAULT_MODEL, "qwen3-30b-a3b"]
    assert all(models.values())


def test_the_default_model_comes_with_prompts_and_a_reward() -> None:
    source = resolve_model(DEFAULT_MODEL)
    assert (source.path / "config.json").is_file()
    assert source.prompts is not None
    assert source.prompts.is_file()
    assert (source.reward, source.is_random) == ("arithmetic", False)


def test_a_local_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = resolve_model("m")
    assert source.path == (tmp_path / "m").resolve()
    assert (source.prompts, source.reward, source.is_random) == (None, None, False)


@pytest.mark.parametrize(
    ("name", "layers", "message", "hint"),
    [
        ("tiny-qwen-moe", None, "neither a known model name nor a folder", DEFAULT_MODEL),
        ("Qwen/Qwen3-30B-A3B-Base", None, "not in the Hugging Face cache", "HF_HUB_OFFLINE"),
        ("zzz", None, "neither a known model name nor a folder", "qwen3-30b-a3b"),
        ("qwen3-30b-a3b", None, "would be 61 GB", "--layers 2"),
        ("qwen3-30b-a3b", 49, "has 48 layers; 49 is not possible", "1 to 48"),
        ("qwen3-30b-a3b", 0, "0 is not possible", "1 to 48"),
        (DEFAULT_MODEL, 2, "random-weight geometries only", "leave it out"),
    ],
)
def test_what_cannot_be_found_says_how_to_mend_it(
    name: str, layers: int | None, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_model(name, layers=layers, cache_dir=tmp_path)
    assert hint in (caught.value.hint or "")


def test_an_existing_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder"):
        resolve_model(str(tmp_path))


def run_resolve(name: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Resolve in a process of its own, since the hub library reads its environment when imported."""
    script = (
        "from mismatch_probe.assets.catalog import resolve_model\n"
        f"source = resolve_model({name!r})\n"
        "print(source.path, source.note)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=clean | env,
        timeout=60,
    )


def test_a_hub_id_is_found_in_the_local_cache(tmp_path: Path) -> None:
    commit = "a" * 40
    repo = tmp_path / "hub" / "models--some--model"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    partly = run_resolve("some/model", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "only partly in the Hugging Face cache" in partly.stderr
    (snapshot / "model.safetensors").write_bytes(b"")
    whole = run_resolve("some/model", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert whole.stdout.strip() == f"{snapshot} Hugging Face cache"


def test_a_download_that_fails_is_a_config_error(tmp_path: Path) -> None:
    # Port 9 of this machine serves nothing: a real connection that is really refused.
    done = run_resolve("some/model", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("mismatch_probe.errors.ConfigError")
    assert "cannot be downloaded" in done.stderr


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISMATCH_PROBE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "mismatch-probe"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "mismatch-probe"
    monkeypatch.setenv("MISMATCH_PROBE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def test_a_geometry_is_made_once_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from name to folder, with the shipped geometry narrowed so that it takes no gigabytes."""
    narrow = json.loads((Path(catalog.__file__).parent / "geometries" / "qwen3-30b-a3b.json").read_text())
    narrow |= {"hidden_size": 64, "moe_intermediate_size": 32, "vocab_size": 512, "num_experts": 16}
    (tmp_path / "geometries").mkdir()
    (tmp_path / "geometries" / "qwen3-30b-a3b.json").write_text(json.dumps(narrow))
    monkeypatch.setattr(catalog, "files", lambda package: tmp_path)
    reports: list[str] = []
    first = resolve_model(
        "qwen3-30b-a3b", layers=2, cache_dir=tmp_path, progress=lambda what, *_: reports.append(what)
    )
    made = len(reports)
    again = resolve_model(
        "qwen3-30b-a3b", layers=2, cache_dir=tmp_path, progress=lambda what, *_: reports.append(what)
    )
    assert made == len(reports) == 4
    assert first == again
    assert first.is_random
    assert first.prompts is None
    facts = read_model_facts(first.path)
    assert (facts.num_layers, facts.num_experts, facts.top_k, facts.dtype) == (2, 16, 8, "bfloat16")
