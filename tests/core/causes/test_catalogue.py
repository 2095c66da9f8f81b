"""The catalogue of causes: complete, unambiguous, equal to its page in the docs, and on the command line."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from running import run_cli

from mismatch_probe.causes.catalogue import CAUSES, Cause, catalogue_markdown, cause_page, find_cause
from mismatch_probe.errors import ConfigError
from mismatch_probe.findings import CATALOGUE

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
def test_every_cause_says_everything(cause):
    for field in fields(Cause):
        assert getattr(cause, field.name), field.name
    assert re.fullmatch(r"MP6\d\d", cause.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cause.id)
    assert all(where and what for where, what in cause.remedies)
    # An effect is a number with its source, or says that there is none.
    assert re.search(r"\d|[Nn]o (published|isolated)", cause.effect), cause.effect


def test_codes_are_unique_and_no_finding_has_them():
    codes = [cause.code for cause in CAUSES.values()]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & set(CATALOGUE)


@pytest.mark.parametrize(
    "topic",
    [
        "raw-logprobs", "temperature", "truncated-sampling", "token-shift", "retokenised-text", "bf16-rounding", "bf16-head",
        "batch-variance", "moe-routing", "fp8-weights", "int8-weights", "attention-backend", "parallelism", "gpu-model",
        "sequence-length", "engine-self-disagreement", "stale-weights", "tail-tokens",
    ],
)  # fmt: skip
def test_known_root_causes_are_there(topic):
    assert find_cause(topic).id == topic


def test_a_cause_is_found_by_id_and_code_in_any_case():
    assert (
        find_cause("MP640") is find_cause("mp640") is find_cause("Stale-Weights") is CAUSES["stale-weights"]
    )


def test_a_misspelt_cause_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        find_cause("stale-wieghts")
    assert "stale-weights" in (error.value.hint or "")


def test_the_page_in_the_docs_is_the_catalogue():
    """Mend with: python tools/document_causes.py."""
    assert (DOCS / "causes.md").read_text(encoding="utf-8") == catalogue_markdown(CAUSES.values())


def test_explain_shows_a_cause_as_text_markdown_and_json():
    text = run_cli("explain", "temperature")
    assert text.status == 0
    assert text.stdout.strip() == cause_page(CAUSES["temperature"])
    markdown = run_cli("explain", "MP630", "--format", "markdown")
    assert markdown.stdout.startswith("# temperature (MP630)")
    data = json.loads(run_cli("explain", "MP630", "--format", "json").stdout)
    assert data["id"] == "temperature"
    assert dict(data["remedies"])["TRL"]


def test_explain_lists_the_causes_and_refuses_unknown_names():
    listed = run_cli("explain", "causes").stdout
    assert all(cause.id in listed and cause.code in listed for cause in CAUSES.values())
    refused = run_cli("explain", "stale-wieghts")
    assert refused.status == 2
    assert "stale-weights" in refused.stderr
