"""What SGLang imports on a machine without an accelerator and never calls there.

Its released packages are made for CUDA. On a CPU its scheduler runs with torch's own attention and sampling, but it imports
torchvision and soundfile (for images and sound) and an operator of vLLM, which a text model on a CPU neither needs nor, but
for soundfile, can have, and it pins memory for the device when experts are recorded. Where there is a device nothing is
replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGES = ("torchvision", "soundfile", "vllm")
# Of vLLM only this: what else SGLang looks for there it can do without.
_VLLM_MODULES = ("vllm", "vllm._custom_ops")


def prepare_imports() -> None:
    """Makes SGLang importable in this process; nothing happens where there is a CUDA device.

    Has to run before the first import of SGLang, in its child processes too: they import the main module anew.
    """
    import torch

    if torch.cuda.is_available():
        return
    from transformers.utils import import_utils

    # transformers remembers the answers, and must not take a placeholder for the package.
    import_utils.is_torchvision_available()
    import_utils.is_torchvision_v2_available()
    import_utils.is_soundfile_available()
    absent = tuple(name for name in _PACKAGES if find_spec(name) is None)
    sys.meta_path.append(_Placeholders(absent))
    from sglang.srt.mem_cache.pool_host import common

    common._cuda_host_register = lambda *_, **__: None  # noqa: SLF001 - there is no device to register memory with


class _Placeholders(MetaPathFinder, Loader):
    """Finds modules of packages that are not installed."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in self._packages or (package == "vllm" and fullname not in _VLLM_MODULES):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


class _Placeholder(ModuleType):
    """A module of which everything can be imported and nothing used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_NotThere,), {"__module__": self.__name__})


class _NotThere:
    """Stands for a function or class; SGLang builds some at import."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{type(self).__module__}.{type(self).__name__} is not installed")
