"""Starting vLLM's server on the loopback interface, waiting for it, and ending it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.process_lifetime import die_with_parent

_HOST = "127.0.0.1"
_GRACE_S = 20
SERVED_NAME = "audited"
_OWN_FLAGS = (
    "model", "served_model_name", "host", "port", "uds", "api_key", "worker_extension_cls", "logprobs_mode",
    "generation_config", "middleware", "trust_remote_code", "skip_tokenizer_init",
)  # fmt: skip


def has_accelerator() -> bool:
    """Whether this machine has the driver tools of an accelerator; cheap, unlike asking torch."""
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi", "xpu-smi"))


class VllmServerProcess:
    """A vLLM server of our own, reachable from this machine only and only with its key.

    Args:
        model_path: Folder of the checkpoint, with its tokenizer.
        flags: Further flags of vLLM's server by their Python names, such as `max_model_len`.
        trust_remote_code: Whether code from the checkpoint may run.

    Attributes:
        url: Its base address.
        key: Its key: random, handed over in the environment, on no command line and in no file.
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
        self.key = secrets.token_urlsafe(32)
        port = _free_port()
        self.url = f"http://{_HOST}:{port}"
        own = {
            "model": str(model_path),
            "served_model_name": SERVED_NAME,
            "host": _HOST,
            "port": port,
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
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter; options are arguments, not a shell line
            command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=die_with_parent
        )

    def ended(self) -> str | None:
        """How the server ended; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the vLLM server {how}; what it said is in the log"

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits until the server answers.

        Raises:
            EngineUnavailableError: It ended, or does not answer in time.
        """
        import httpx

        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            ended = self.ended()
            if ended is not None:
                raise EngineUnavailableError(ended, hint="change rollout.options.* or the model")
            try:
                if (
                    httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code
                    == httpx.codes.OK
                ):
                    return
            except httpx.TransportError:
                time.sleep(0.5)
            else:
                time.sleep(0.5)
        raise EngineUnavailableError(
            f"the vLLM server did not answer within {timeout_s:.0f} s",
            hint="raise rollout.options.start_timeout_s",
        )

    def stop(self) -> None:
        """Ends the server, politely first."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
