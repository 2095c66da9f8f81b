"""The wheel that users get: built through the sdist, with the templates and assets, and nothing of a generic name."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # Without --wheel or --sdist, build makes the sdist and then the wheel out of the sdist.
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out


@pytest.fixture(scope="module")
def names(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_top_level_names(names):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "mismatch_probe",
        "mismatch_probe_cli",
        "mismatch_probe_reports",
    }


@pytest.mark.parametrize(
    "wanted",
    [
        "mismatch_probe/assets/tiny_qwen3_moe/model.safetensors",
        "mismatch_probe/assets/tiny_qwen3_moe/tokenizer.json",
        "mismatch_probe/assets/tiny_qwen3_moe/prompts.jsonl",
        "mismatch_probe/assets/geometries/qwen3-30b-a3b.json",
        "mismatch_probe/config/bars.toml",
        "mismatch_probe/result.schema.json",
        "mismatch_probe/py.typed",
        "mismatch_probe_reports/templates/report.html.j2",
        "mismatch_probe_reports/assets/style.css",
        "mismatch_probe_cli/app.py",
    ],
)
def test_templates_and_assets_are_inside(names, wanted):
    assert wanted in names


def test_every_source_file_reaches_the_wheel(names):
    for package, folder in (
        ("mismatch_probe", ROOT),
        ("mismatch_probe_cli", ROOT / "cli"),
        ("mismatch_probe_reports", ROOT / "reports"),
    ):
        for path in (folder / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(folder).as_posix() in names


def test_the_sdist_holds_what_a_packager_needs(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/packaging/test_wheel.py"} <= inside
