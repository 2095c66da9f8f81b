"""The frameworks' own code that reads configurations, and none of what it would train with.

Importing these packages whole takes CUDA kernels, DeepSpeed and model hubs. Their parsers and config classes need little of it: they
are imported past the packages' `__init__` files, or cut out of the file where they stand next to the training loop.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any

_AREAL_NEEDS = (
    *("dataclasses", "typing", "areal.api.cli_args", "areal.utils", "areal.utils.constants"),
    "areal.trainer.ppo.stats",
)


def _past_init(*packages: str) -> None:
    """Lets modules of these packages be imported without running the packages' `__init__` files."""
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None, f"{name} is not installed"
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules[name] = module


def _source(package: str, path: str) -> tuple[ast.Module, Path]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is not installed"
    file = Path(next(iter(spec.submodule_search_locations))) / path
    return ast.parse(file.read_text(encoding="utf-8")), file


@functools.cache
def areal() -> Any:
    """The module areal.api.cli_args."""
    _past_init(
        *("areal", "areal.api", "areal.engine", "areal.engine.fsdp_utils", "areal.utils"),
        *("areal.infra", "areal.infra.utils", "areal.infra.rpc"),
    )
    return importlib.import_module("areal.api.cli_args")


@functools.cache
def areal_actor() -> Any:
    """What AReaL's actor computes its loss with, from its file, with the losses and the estimator that it calls.

    Their files import the training service and torchdata besides.
    """
    areal()
    _past_init("areal.trainer", "areal.trainer.ppo")
    future = ast.parse("from __future__ import annotations\nimport torch").body
    holder = types.ModuleType("areal_loss")
    sys.modules[holder.__name__] = holder
    for path, classes in (
        ("utils/data.py", ("KLEstimator",)),
        ("utils/functional/functional.py", ("RejectionSamplingResult",)),
        ("trainer/ppo/actor.py", ()),
    ):
        module, file = _source("areal", path)
        kept = [
            node
            for node in module.body
            if (isinstance(node, ast.FunctionDef) and path != "utils/data.py")
            or (isinstance(node, ast.ClassDef) and node.name in classes)
            or (isinstance(node, ast.ImportFrom) and node.module in _AREAL_NEEDS)
        ]
        exec(compile(ast.Module([*future, *kept], []), str(file), "exec"), vars(holder))
    return holder


@functools.cache
def skyrl() -> Any:
    """The module skyrl.train.config.config; its gym lies in a folder that is no package name."""
    spec = importlib.util.find_spec("skyrl")
    assert spec is not None and spec.origin is not None
    # The class for the whole asks a module of the inference servers about LoRA; their package wants Python 3.12.
    _past_init(
        *("skyrl.backends", "skyrl.backends.skyrl_train", "skyrl.backends.skyrl_train.inference_servers"),
    )
    gym = str(Path(spec.origin).parents[1] / "skyrl-gym")
    sys.path.append(gym)
    try:
        return importlib.import_module("skyrl.train.config.config")
    finally:
        sys.path.remove(gym)


@functools.cache
def openrlhf_loss() -> Any:
    """The class openrlhf.models.loss.PolicyLoss, with masked_mean from the file that imports DeepSpeed besides."""
    helpers, path = _source("openrlhf", "models/utils.py")
    cut = [node for node in helpers.body if isinstance(node, ast.FunctionDef) and node.name == "masked_mean"]
    module, file = _source("openrlhf", "models/loss.py")
    kept = [node for node in module.body if not (isinstance(node, ast.ImportFrom) and node.level)]
    future = ast.parse("from __future__ import annotations\nimport torch").body
    spaces: dict[str, Any] = {"__name__": "openrlhf_loss"}
    exec(compile(ast.Module([*future, *cut], []), str(path), "exec"), spaces)
    exec(compile(ast.Module(kept, []), str(file), "exec"), spaces)
    return spaces["PolicyLoss"]


@functools.cache
def openrlhf_parser() -> argparse.ArgumentParser:
    """What train_ppo_ray builds when it is run: the statements before it parses."""
    module, file = _source("openrlhf", "cli/train_ppo_ray.py")
    (main,) = (node for node in module.body if isinstance(node, ast.If))
    build = []
    for statement in main.body:
        if isinstance(statement, ast.Assign) and "parse_args" in ast.unparse(statement):
            break
        build.append(statement)
    else:
        raise AssertionError("train_ppo_ray no longer parses in its main block")
    spaces: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(build, []), str(file), "exec"), spaces)
    parser = spaces["parser"]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@functools.cache
def swift_arguments() -> Any:
    """swift's GRPOArgumentsMixin, from its file, with the one function of the rest of swift that it imports."""
    helpers, path = _source("swift", "utils/utils.py")
    cut = [
        node
        for node in helpers.body
        if isinstance(node, ast.FunctionDef) and node.name == "json_parse_to_dict"
    ]
    module, file = _source("swift", "rlhf_trainers/args_mixin.py")
    kept = [
        node for node in module.body if not (isinstance(node, ast.ImportFrom) and "swift" in str(node.module))
    ]
    name = "swift_args_mixin"
    holder = types.ModuleType(name)
    sys.modules[name] = holder
    vars(holder).update(json=json, os=os, Dict=dict)
    exec(
        compile(ast.Module([*ast.parse("from typing import *").body, *cut], []), str(path), "exec"),
        vars(holder),
    )
    exec(compile(ast.Module(kept, []), str(file), "exec"), vars(holder))
    return holder.GRPOArgumentsMixin


@functools.cache
def swift_own_fields() -> frozenset[str]:
    """The names that RLHFArguments, the class of `swift rlhf`, declares besides what it inherits."""
    module, _ = _source("swift", "arguments/rlhf_args.py")
    return frozenset(
        field.target.id
        for node in module.body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


@functools.cache
def swift_trainer() -> type[Any]:
    """swift's GRPOTrainer without its base classes and with what it computes its loss with alone."""
    wanted = (
        *("_prepare_algorithm_params", "_compute_loss_and_metrics", "_undo_gradient_accumulation_scaling"),
        *(
            "_get_rollout_is_correction",
            "_apply_rollout_importance_sampling",
            "_compute_sequence_level_ratios",
        ),
        *("_compute_rollout_offpolicy_metrics", "_compute_is_correction_metrics"),
        "_compute_off_policy_sequence_mask",
    )
    module, file = _source("swift", "rlhf_trainers/grpo_trainer.py")
    kept: list[ast.stmt] = []
    for node in module.body:
        if isinstance(node, ast.Assign) and "WINDOW_NORMALIZED_LOSS_TYPES" in ast.unparse(node.targets[0]):
            kept.append(node)
        elif isinstance(node, ast.ClassDef) and node.name == "GRPOTrainer":
            node.bases = []
            node.body = [
                part for part in node.body if isinstance(part, ast.FunctionDef) and part.name in wanted
            ]
            assert len(node.body) == len(wanted)
            kept.append(node)
    head = ast.parse(
        "from __future__ import annotations\nimport torch\nfrom accelerate.utils import gather_object\n"
        "from trl.trainer.utils import nanmax, nanmin"
    ).body
    spaces: dict[str, Any] = {"__name__": "swift_trainer"}
    exec(compile(ast.Module([*head, *kept], []), str(file), "exec"), spaces)
    trainer = spaces["GRPOTrainer"]
    assert isinstance(trainer, type)
    return trainer
