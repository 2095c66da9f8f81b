"""A user's mistakes: one clear line, the documented status, nothing half-written."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
from running import run_cli

from mismatch_probe.assets.catalog import resolve_model


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def refused(out: Path, *arguments: str, **options):
    finished = run_cli("audit", "--out", str(out), *arguments, **options)
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert not out.exists(), list(out.rglob("*"))
    return finished


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny-qwen-moe"], "tiny-qwen3-moe"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--model", "qwen3-30b-a3b"], "--layers"),
        (["--rollout", "vlm"], "vllm"),
        (["--train", "transformer"], "transformers"),
        (["--set", "sampling.temprature=1"], "sampling.temperature"),
        (["--set", "sampling.max_tokens=100000"], "positions"),
        (["--prompts", "missing.jsonl"], "does not exist"),
        (["--model", "a", "--set", "model=tiny-qwen3-moe", "--resume", "--force"], "exclude"),
        (["--resume"], "nothing to resume"),
        (["tiny-qwen3-moe", "--model", "other"], "two models"),
    ],
)
def test_mistakes_are_one_clear_line(out, arguments, says):
    finished = refused(out, *arguments, HF_HUB_OFFLINE="1")
    assert finished.status == 2
    assert says in finished.stderr


def test_an_empty_prompt_file(out, tmp_path):
    (tmp_path / "p.jsonl").write_text("")
    finished = refused(out, "--prompts", str(tmp_path / "p.jsonl"))
    assert finished.status == 2
    assert "no prompts" in finished.stderr


def test_a_dense_model_asked_for_routing(out, dense_model, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("1+1=\n")
    finished = refused(out, "--model", str(dense_model), "--prompts", str(prompts), "--set", "routing=true")
    assert finished.status == 2
    assert "dense" in finished.stderr


def test_two_sides_that_are_not_one_model(out, dense_model):
    finished = refused(out, "--set", f"train.model={dense_model}")
    assert finished.status == 2
    assert "not one model" in finished.stderr


def test_a_vocabulary_that_differs(out, tmp_path):
    source = resolve_model("tiny-qwen3-moe").path
    other = tmp_path / "other"
    other.mkdir()
    for file in source.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    finished = refused(out, "--set", f"train.model={other}")
    assert finished.status == 2
    assert "tokenizer.json" in finished.stderr


def test_a_directory_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    finished = run_cli("audit", "--out", str(tmp_path), "--force")
    assert finished.status == 2
    assert "not a run" in finished.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_a_directory_that_another_process_holds(out):
    code = (
        "import sys\nfrom pathlib import Path\nfrom mismatch_probe.trace.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).claim():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        finished = run_cli("audit", "--out", str(out))
        assert finished.status == 2
        assert "in use" in finished.stderr
    finally:
        holder.communicate("")


def shadowed(tmp_path: Path, name: str, content: str) -> str:
    """PYTHONPATH in which a package `name` is what we say."""
    package = tmp_path / "shadow" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(content)
    return os.pathsep.join([str(tmp_path / "shadow"), os.environ.get("PYTHONPATH", "")])


def test_torchvision_that_breaks_transformers(out, tmp_path):
    path = shadowed(
        tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    finished = refused(out, PYTHONPATH=path)
    assert finished.status == 2
    assert "torchvision" in finished.stderr
    assert "uninstall" in finished.stderr
    doctor = run_cli("doctor", PYTHONPATH=path)
    assert doctor.status == 2
    assert "BROKEN" in doctor.stdout
    assert "uninstall -y torchvision" in doctor.stdout


def test_no_vllm_installed(out, tmp_path):
    # The same environment without that one package: every entry of site-packages but vLLM's, and no .pth files (-S).
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in {Path(name) for name in site.getsitepackages()}:
        for entry in folder.iterdir():
            if not entry.name.startswith("vllm") and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(folder) for folder in (packages, root, root / "cli", root / "reports"))
    finished = refused(out, python=("-S",), PYTHONPATH=path)
    assert finished.status == 2
    assert "vLLM is not installed" in finished.stderr
    assert "mismatch-probe[vllm" in finished.stderr


def test_doctor_is_well_here():
    doctor = run_cli("doctor", "--model", "tiny-qwen3-moe")
    assert doctor.status == 0, doctor.stdout
    assert doctor.stdout.rstrip().endswith("ok")
    assert "experts, top-4" in doctor.stdout


def test_an_unknown_code_names_the_nearest():
    finished = run_cli("explain", "MP2O1")
    assert finished.status == 2
    assert "MP201" in finished.stderr


def test_usage_errors_are_status_2():
    assert run_cli("audit", "--nonsense").status == 2
    assert run_cli("nonsense").status == 2
    assert run_cli("report", "/no/such/run").status == 2
