"""Writes the seeds of the fuzz corpora: `PYTHONPATH=tests python -m fuzz.make_corpus RUN`, RUN a small measured run.

Good files and the classic bad ones: cut off, nested, of huge numbers, not finite, with names that climb out of a folder, and
pickles that would call something.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.targets import CORPUS, dumped, nested


class _Call:
    """A pickle of it calls os.system when a plain unpickler reads it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch /tmp/mismatch-probe-was-here",)


def _put(target: str, name: str, data: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def _rows(rows: list[dict[str, Any]]) -> bytes:
    return b"\n".join(dumped(row) for row in rows) + b"\n"


def _parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def texts() -> None:
    """Prompts, configurations, bars and configs to merge into."""
    _put("prompts", "good", _rows([{"prompt": "1 + 1 =", "answer": "2"}, {"prompt_token_ids": [4, 5, 6]}]))
    _put(
        "prompts", "odd", _rows([{"prompt": None}, {"messages": [{"role": "user", "content": "\x00\u202e"}]}])
    )
    _put("prompts", "huge-number", b'{"prompt_token_ids": [1' + b"0" * 5000 + b"]}\n")
    _put("prompts", "nested", nested(3000) + b"\n")
    _put("prompts_table", "good", _parquet({"prompt": ["a", "b"], "answer": ["1", "2"]}))
    _put("prompts_table", "ids", _parquet({"prompt_token_ids": [[1, 2], [3]]}))
    config = b'model = "tiny-qwen3-moe"\n[sampling]\ntemperature = 0.8\ntop_p = 1.0\n[train.options]\nbatch_size = 4\n'
    _put("config", "good", config)
    _put("config", "not-finite", b"[sampling]\ntemperature = nan\nmax_tokens = inf\n")
    _put("config", "huge", b"seed = 1" + b"0" * 5000 + b"\n")
    _put("config", "nested", b"a = " + b"[" * 2000 + b"]" * 2000)
    _put("assignment", "good", b"sampling.temperature=0.8")
    _put("assignment", "climb", b"a.b.c..d.__class__=1")
    _put("bars", "good", b"[bars]\nk3_max = 1e-2\n")
    _put("bars", "bad", b"k3_max = nan\n[bars]\n")
    _put("merge_yaml", "good", b"# kept\na:\n  b: 1  # was\n  z: [1, 2]\nlist:\n- x: 1\n")
    _put("merge_yaml", "bomb", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n")
    _put("merge_yaml", "tag", b"!!python/object/apply:os.system ['touch /tmp/mismatch-probe-was-here']\n")
    _put("merge_yaml", "shared", b"base: &base {b: 1}\na: *base\n")
    _put("merge_toml", "good", b"# kept\n[a]\nb = 1 # was\n[[t]]\nx = 1\n")


def documents(run: Path) -> None:
    """JSON of a run."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    # Long lists and thirty methods carry nothing that a fuzzer has not seen in two of them.
    small = _cut({**result, "weights": {name: result["weights"][name] for name in ("vespo", "token_tis")}}, 2)
    small.pop("simulation", None)
    for target in ("result", "report"):
        _put(target, "good", dumped(small))
        _put(target, "nested", nested(3000))
        _put(target, "bare", b'{"schema_version": 1}')
        _put(target, "not-finite", b'{"schema_version": 1, "token": {"k3": {"value": NaN, "n": Infinity}}}')
        _put(
            target,
            "wrong-types",
            b'{"schema_version": 1, "token": [], "findings": {"a": 1}, "recommendation": 7}',
        )
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    # Where the checkpoint lay is a matter of the machine.
    manifest["model"]["path"] = "models/tiny"
    text = json.dumps(manifest, indent=1).encode()
    _put("manifest", "good", text)
    _put("manifest", "cut", text[:700])
    _put(
        "manifest",
        "climb",
        b'{"schema_version": 1, "config": {"out": "../../etc/passwd"}, "config_set": ["out"]}',
    )
    from mismatch_probe.drift import DriftProfile

    profile = DriftProfile.from_run(run, force=True).to_json()
    _put("profile", "good", dumped(_cut(profile, 12)))
    _put("profile", "bare", b'{"schema_version": 1}')


def _cut(value: Any, most: int = 3) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, most) for key, item in value.items()}
    return [_cut(item, most) for item in value[:most]] if isinstance(value, list) else value


def dumps() -> None:
    """What frameworks dump."""
    import torch
    from safetensors.numpy import save

    row = {"prompt_token_ids": [1, 2], "token_ids": [1, 2, 3], "inference_logprobs": [0, -0.5, -1.0]}
    _put("prime", "good", _rows([{**row, "trainer_logprobs": [0, -0.4, -1.1], "loss_mask": [0, 1, 1]}]))
    nemo = {
        "token_ids": [[1, 2, 3]],
        "generation_logprobs": [[0, -0.5, -1.0]],
        "prev_logprobs": [[0, -0.4, -1.1]],
    }
    _put("nemo", "good", _rows([{**nemo, "token_loss_mask": [[0, 1, 1]], "input_lengths": [3]}]))
    for target in ("prime", "nemo"):
        _put(
            target,
            "not-finite",
            b'{"token_ids": [1], "inference_logprobs": [NaN], "generation_logprobs": [-Infinity]}\n',
        )
        _put(target, "ragged", b'{"token_ids": [1, [2]], "inference_logprobs": {"a": 1}}\n')
    table = {
        "step": [1],
        "prompt": ["a"],
        "completion": ["b"],
        "completion_ids": [[1, 2]],
        "old_logprobs": [[-0.1, -0.2]],
    }
    _put("trl", "good", _parquet(table))
    tensors = {"ids": torch.arange(3), "logprobs": torch.zeros(3), "nested": [{"a": torch.ones(2)}]}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    _put("torch", "good", buffer.getvalue())
    buffer = io.BytesIO()
    torch.save({"a": _Call()}, buffer)
    _put("torch", "call", buffer.getvalue())
    _put("torch", "cut", buffer.getvalue()[:200])
    _put("pickle", "good", pickle.dumps({"ids": [1, 2], "logprobs": np.zeros(3)}))
    _put("pickle", "call", pickle.dumps(_Call()))
    _put("pickle", "getattr", b"cbuiltins\ngetattr\n(cbuiltins\n__import__\nS'system'\ntR.")
    _put("pickle", "long", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00.")
    _put("pickle", "memo", b"\x80\x04]\x94" + b"h\x00a" * 300 + b".")
    routes = {
        "experts": np.zeros((4, 2, 2), np.int16),
        "offsets": np.array([0, 2, 4]),
        "sequence_id": np.array([0, 1]),
    }
    _put("routes", "good", save(routes))
    kept = {
        "ids": np.array([3, 4, 5, 7, 9], np.int32),
        "counts": np.array([2, 1, 2], np.int32),
        "tokens": np.array([2, 1]),
        "sequence_id": np.array([0, 1]),
    }
    _put("keep_sets", "good", save(kept))
    _put("routes", "header", (2**60).to_bytes(8, "little") + b"{}")
    _put("gguf", "magic", b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2)
    _put("gguf", "huge", b"GGUF" + (3).to_bytes(4, "little") + (2**62).to_bytes(8, "little") * 2)


def golden() -> None:
    """Dumps as the frameworks' own code wrote them, and how odd ones begin."""
    from fuzz.targets import DUMPS

    root = Path(__file__).parents[1] / "core/imports/golden"
    for name, (importer, place, _) in DUMPS.items():
        folder = root / ("verl-queue" if name == "verl_queue" else importer)
        _put(name, "good", (folder / place).read_bytes())
    _put("prompts_text", "good", "What is 2 + 2?\n\nZweite \u00e4 Frage\n".encode())
    _put("prompts_text", "odd", b"\xff\xfe\x00a\r\n\x00" + b"x" * 3000)
    _put("checksums", "good", b"0" * 64 + b"  rollout/part-00000.parquet\n")
    _put("checksums", "odd", b"f" * 64 + b"  ../x\n" + b"a" * 64 + b"  rollout/part-00000.parquet")


def parts(run: Path) -> None:
    """A part of a run."""
    _put("part", "good", (run / "rollout/part-00000.parquet").read_bytes())
    _put("part", "cut", (run / "rollout/part-00000.parquet").read_bytes()[:900])


if __name__ == "__main__":
    texts()
    documents(Path(sys.argv[1]))
    dumps()
    golden()
    parts(Path(sys.argv[1]))
