import json

import pytest

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.preflight.sides import ASPECTS, compare_sides

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 8,
    "rope_parameters": {"rope_theta": 1e4},
    "rms_norm_eps": 1e-6,
    "dtype": "bfloat16",
}
GENERATION = {"eos_token_id": 2, "temperature": 0.6, "top_k": 20}


def folder(path, *, generation=GENERATION, template="{{ x }}", jinja=None, **changes):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (path / "tokenizer.json").write_text("{}")
    (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    return path


def compared(tmp_path, config=None, **changes):
    left, right = folder(tmp_path / "a"), folder(tmp_path / "b", **changes)
    return {aspect.name: aspect for aspect in compare_sides(config or ProbeConfig(), left, right)}


def test_one_checkpoint_differs_in_nothing_and_every_aspect_says_so(tmp_path):
    found = compared(tmp_path)
    assert tuple(found) == ASPECTS
    assert all(aspect.differences == () for aspect in found.values())
    assert "bfloat16" in found["dtype"].note
    # A template in a file of its own is the same template.
    (tmp_path / "again").mkdir()
    assert compared(tmp_path / "again", template=None, jinja="{{ x }}")["chat template"].differences == ()


@pytest.mark.parametrize(
    ("aspect", "changes", "key"),
    [
        ("dtype", {"dtype": "float32"}, "checkpoint dtype"),
        ("dtype", {"quantization_config": {"bits": 8}}, "checkpoint quantization_config"),
        ("rope", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta"),
        ("norms", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("vocabulary", {"vocab_size": 96}, "vocab_size"),
        (
            "generation config",
            {"generation": {**GENERATION, "eos_token_id": [2, 3]}},
            "generation_config.eos_token_id",
        ),
        ("chat template", {"template": "{{ y }}"}, "chat template"),
        ("chat template", {"template": None}, "chat template"),
        ("architecture", {"hidden_size": 16}, "hidden_size"),
        ("architecture", {"norm_topk_prob": True}, "norm_topk_prob"),
    ],
)
def test_a_difference_is_filed_under_its_aspect_alone(tmp_path, aspect, changes, key):
    found = compared(tmp_path, **changes)
    assert [item.key for item in found[aspect].differences] == [key]
    assert all(not other.differences for name, other in found.items() if name != aspect)


def test_dtypes_and_caches_of_the_configuration_are_compared(tmp_path):
    config = ProbeConfig.model_validate(
        {"rollout": {"options": {"kv_cache_dtype": "fp8"}}, "train": {"dtype": "float32"}}
    )
    found = compared(tmp_path, config)["dtype"].differences
    assert {(item.key, item.rollout, item.train) for item in found} == {
        ("weights in use", "bfloat16", "float32"),
        ("options.kv_cache_dtype", "fp8", "absent"),
    }


def test_what_a_checkpoint_wishes_for_beyond_the_audit_is_said(tmp_path):
    config = ProbeConfig.model_validate({"sampling": {"temperature": 0.6}})
    note = compared(tmp_path, config)["generation config"].note
    assert "top_k=20" in note
    assert "temperature" not in note
