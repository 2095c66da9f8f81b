"""What of the weight-sync study needs no engine."""

import torch
from safetensors.torch import load_file, save_file

from mismatch_probe.findings import CATALOGUE
from mismatch_probe.stages.ablation import refit_findings
from mismatch_probe.stages.refit import write_updated_checkpoint


def case(mean=0.0, worst=0.0, differences=(), exact=True):
    step = {"mean_abs": {"value": mean, "n": 10}, "max_abs": worst, "exact": worst == 0.0}
    return {
        "unavailable": None, "exact": exact, "decode": step, "prefill": step,
        "weights": {"differences": [{"module": name} for name in differences]},
    }  # fmt: skip


def test_an_updated_checkpoint_moves_every_matrix_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    torch.manual_seed(0)
    held = {"w": torch.randn(64, 64).to(torch.bfloat16), "norm": torch.ones(64, dtype=torch.bfloat16)}
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text("{}")
    write_updated_checkpoint(source, tmp_path / "one", scale=0.1)
    write_updated_checkpoint(source, tmp_path / "two", scale=0.1)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert torch.equal(one["w"], two["w"])
    assert torch.equal(one["norm"], held["norm"])
    assert one["w"].dtype == torch.bfloat16
    moved = (one["w"].float() - held["w"].float()).std() / held["w"].float().std()
    assert 0.08 < float(moved) < 0.12
    assert (tmp_path / "one" / "config.json").read_text() == "{}"


def test_a_load_that_changes_nothing_is_no_finding():
    assert refit_findings({"same": case(), "updated": case()}) == []


def test_each_case_has_its_code_and_names_the_modules():
    names = [f"layers.{i}.experts" for i in range(6)]
    found = refit_findings({
        "same": case(0.4, 2.0, names, exact=False),
        "updated": case(0.1, 0.5, names[:1], exact=False),
    })  # fmt: skip
    assert [item.code for item in found] == ["MP601", "MP602"]
    assert all(item.code in CATALOGUE and item.severity == "error" for item in found)
    assert "layers.*.experts (layers 0, 1, 2, 3, 4, 5)" in found[0].detail
    assert found[0].observed == 0.4


def test_weights_that_differ_count_even_where_no_read_token_moved():
    (found,) = refit_findings({"same": case(0.0, 0.0, ["head"], exact=False), "updated": case()})
    assert "head" in found.detail


def test_what_was_unavailable_is_not_a_finding():
    assert refit_findings({"same": {"unavailable": "no"}, "updated": {"unavailable": "no"}}) == []
