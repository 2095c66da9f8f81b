import sys

import pytest

from mismatch_probe.errors import EngineUnavailableError
from mismatch_probe.preflight import environment


@pytest.fixture
def broken_torchvision(tmp_path, monkeypatch):
    """A package of that name that fails as PyPI's does beside a CPU build of torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_clean_environment_is_fine():
    assert environment.broken_media_packages() == []
    environment.check_environment()


@pytest.mark.usefixtures("broken_torchvision")
def test_a_broken_package_is_named_with_its_mend():
    found = environment.broken_media_packages()
    assert [item.name for item in found] == ["torchvision"]
    assert "nms" in found[0].message
    with pytest.raises(EngineUnavailableError) as caught:
        environment.check_environment()
    assert "torchvision" in caught.value.message
    assert "uninstall -y torchvision" in (caught.value.hint or "")


@pytest.mark.usefixtures("broken_torchvision")
def test_a_failed_import_is_explained_by_what_broke_it():
    error = environment.explain_import_failure(
        "transformers", RuntimeError("operator torchvision::nms does not exist")
    )
    assert "transformers" in error.message
    assert "torchvision" in error.message
    assert "uninstall" in (error.hint or "")


def test_a_missing_package_says_what_to_install():
    error = environment.explain_import_failure("transformers", ModuleNotFoundError("x", name="transformers"))
    assert "not installed" in error.message
    assert "pip install transformers" in (error.hint or "")


def test_versions_name_what_matters():
    versions = environment.package_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "numpy"} <= versions.keys()
