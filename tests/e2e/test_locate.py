"""`locate` on real engines: a layer that was changed on one side is named, in the report too."""

import json
import shutil

import pytest
from running import run_cli

from mismatch_probe.assets.catalog import resolve_model

pytestmark = pytest.mark.engine


def test_a_wrong_module_on_the_training_side_is_named(embedded, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tmp_path / "wrong"
    shutil.copytree(resolve_model("tiny-qwen3-moe").path, model)
    weights = load_file(model / "model.safetensors")
    name = "model.layers.2.self_attn.k_proj.weight"
    weights[name] = weights[name] * 1.03
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    run = embedded.copy_to(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["train"]["model"] = str(model)
    (run / "manifest.json").write_text(json.dumps(manifest))

    finished = run_cli("locate", str(run), "--sequences", "3", "--format", "json")

    assert finished.status == 1, finished.stderr
    content = json.loads(finished.stdout)
    assert content["name"] == "layer 2 qkv_proj"
    assert content["first"]["finding"] == "stands out"
    assert [row["layer"] for row in content["layers"]] == [0, 1, 2, 3]
    assert content == json.loads((run / "location.json").read_text())
    assert "The sides part at layer 2 qkv_proj" in (run / "report.html").read_text()
    assert (run / "figures" / "location.png").is_file()
    assert not (run / "location").exists()
