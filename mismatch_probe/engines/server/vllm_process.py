"""Starting vLLM's server on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mismatch_probe.engines.server.own_process import HOST, OwnServerProcess
from mismatch_probe.errors import ConfigError

SERVED_NAME = "audited"
_OWN_FLAGS = (
    "model", "served_model_name", "host", "port", "uds", "api_key", "worker_extension_cls", "logprobs_mode",
    "generation_config", "middleware", "trust_remote_code", "skip_tokenizer_init",
)  # fmt: skip


def has_accelerator() -> bool:
    """Whether this machine has the driver tools of an accelerator; cheap, unlike asking torch."""
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi", "xpu-smi"))


class VllmServerProcess(OwnServerProcess):
    """A vLLM server of our own, reachable from this machine only and only with its key.

    Args:
        model_path: Folder of the checkpoint, with its tokenizer.
        flags: Further flags of vLLM's server by their Python names, such as `max_model_len`.
        trust_remote_code: Whether code from the checkpoint may run.
    """

    def __init__(
        self, model_path: Path, flags: Mapping[str, Any], *, trust_remote_code: bool = False
    ) -> None:
        for name in _OWN_FLAGS:
            if name in flags:
                raise ConfigError(
                    f"rollout.options.{name} cannot be set: the probe sets it itself",
                    hint=f"remove rollout.options.{name}, or start the server yourself and give its url",
                )
        super().__init__("vLLM")
        own = {
            "model": str(model_path),
            "served_model_name": SERVED_NAME,
            "host": HOST,
            "port": self.port,
            "worker_extension_cls": "mismatch_probe.engines.server.vllm_extension.ServedProbeExtension",
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "middleware": "mismatch_probe.engines.server.guard.KeyGuard",
        }
        own |= {"trust_remote_code": True} if trust_remote_code else {}
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", *command_flags({**flags, **own}),
        ]  # fmt: skip
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            **({} if has_accelerator() else {"VLLM_CPU_KVCACHE_SPACE": "1"}),
            **os.environ,
            "VLLM_API_KEY": self.key,
            "VLLM_SERVER_DEV_MODE": "1",
        }
        self.start(command, environment)


def command_flags(flags: Mapping[str, Any]) -> list[str]:
    """Options by Python name as arguments of vLLM's server: `{"max_num_seqs": 4}` is `--max-num-seqs 4`."""
    arguments: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            # One argument, so that a value that begins with a dash is no flag.
            arguments.append(f"--{flag}={text}")
    return arguments
