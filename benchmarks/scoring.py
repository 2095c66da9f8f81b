"""Scores ragged responses with this project's scorer and with TRL's own function, side by side.

    python benchmarks/scoring.py [--pairs 5] [--vocabularies 49152 151936] [--dtype bfloat16]

A random dense Qwen3 is made for each vocabulary. Both sides score the same 32 responses (16 to 1024 tokens, prompts of 32) to
log-probabilities and entropies: the scorer as it is loaded for `train/forward` with a token budget, and
GRPOTrainer._get_per_token_logps_and_entropies with TRL's fused head, 8 sequences a forward, padded as TRL pads. Each reading has a
process of its own; sides alternate within a pair. Speed is response tokens a second. Memory is the peak resident set while
scoring above that of the loaded model (after a short warm-up), by /proc. Printed: medians over pairs and their paired ratio,
and the largest difference of log-probabilities from the plain float32 softmax of the same batches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PROMPT, SEQUENCES, BATCH, BUDGET = 32, 32, 8, 2048


def make_model(folder: Path, vocabulary: int) -> None:
    """A random dense Qwen3, 4 layers of width 512, with a head of its own."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def draw(vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and ragged responses."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(5.0, 0.8, SEQUENCES)), 16, 1024).astype(int)
    prompts = generator.integers(0, vocabulary, (SEQUENCES, PROMPT)).tolist()
    return prompts, [generator.integers(0, vocabulary, length).tolist() for length in lengths]


def status(key: str) -> int:
    """A size of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def ours(folder: Path, dtype: str, head: str) -> Any:
    """A function of (prompts, responses) to log-probabilities of each response."""
    from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
    from mismatch_probe.scorers.registry import scorers

    options = {"head": head, "token_budget": BUDGET}
    scorer = scorers.get("transformers").item.make(ScorerSpec(folder, dtype, 0, 0, options))

    def run(prompts: list[list[int]], responses: list[list[int]]) -> list[Any]:
        requests = [ScoreRequest(i, *pair) for i, pair in enumerate(zip(prompts, responses, strict=True))]
        scored = scorer.score(
            requests, temperature=1.0, batching="forward", capture_routing=False, progress=lambda *_: None
        )
        return [item.logprobs for item in scored]

    run.details = scorer.facts().details["head"]  # type: ignore[attr-defined]
    return run


def theirs(folder: Path, dtype: str) -> Any:
    """The same by TRL's function, which is called on a stand-in for the trainer that has what it reads: autocast."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    function = GRPOTrainer._get_per_token_logps_and_entropies  # noqa: SLF001 - the yardstick
    function = getattr(function, "__wrapped__", function)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))

    def run(prompts: list[list[int]], responses: list[list[int]]) -> list[Any]:
        width = max(map(len, responses))
        ids = torch.zeros(len(responses), PROMPT + width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[row, : PROMPT + len(response)] = torch.tensor([*prompt, *response])
            mask[row, : PROMPT + len(response)] = 1
        with torch.no_grad():
            logps, _, _ = function(trainer, model, ids, mask, width, batch_size=BATCH, compute_entropy=True)
        return [logps[row, : len(response)].numpy() for row, response in enumerate(responses)]

    run.details = "fused"  # type: ignore[attr-defined]
    return run


def read_once(side: str, folder: Path, vocabulary: int, dtype: str, out: Path) -> None:
    """One reading in this process; log-probabilities go to a file, numbers to stdout."""
    run = (
        theirs(folder, dtype)
        if side == "trl"
        else ours(folder, dtype, "plain" if side == "plain" else "auto")
    )
    prompts, responses = draw(vocabulary)
    run([prompts[0]], [responses[0][:16]])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    start = time.perf_counter()
    logprobs = run(prompts, responses)
    seconds = time.perf_counter() - start
    peak = status("VmHWM") - before
    np.save(out, np.concatenate([np.asarray(row, dtype=np.float64) for row in logprobs]))
    tokens = sum(map(len, responses))
    print(json.dumps({"speed": tokens / seconds, "peak": peak, "tokens": tokens, "head": run.details}))


def main() -> None:
    """Prints one row a vocabulary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        read_once(arguments.side, arguments.folder, arguments.vocabularies[0], arguments.dtype, arguments.out)
        return
    print(
        "| vocabulary | dtype | tokens/s, this | tokens/s, TRL | ratio | peak MB, this | peak MB, TRL | ratio | from plain |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for vocabulary in arguments.vocabularies:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder, vocabulary)

            def child(side: str, folder: Path = folder, vocabulary: int = vocabulary) -> dict[str, Any]:
                command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
                command += ["--vocabularies", str(vocabulary), "--dtype", arguments.dtype]
                command += ["--out", str(folder / f"{side}.npy")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                return found

            rows = []
            for pair in range(arguments.pairs):
                read = {side: child(side) for side in (("ours", "trl") if pair % 2 else ("trl", "ours"))}
                rows.append((read["ours"], read["trl"]))
            plain = child("plain")
            difference = np.abs(np.load(folder / "ours.npy") - np.load(folder / "plain.npy")).max()
            speed = [float(np.median([row[side]["speed"] for row in rows])) for side in (0, 1)]
            peak = [float(np.median([row[side]["peak"] for row in rows])) / 1e6 for side in (0, 1)]
            faster = np.median([a["speed"] / b["speed"] for a, b in rows])
            smaller = np.median([a["peak"] / b["peak"] for a, b in rows])
            print(
                f"| {vocabulary} | {arguments.dtype} | {speed[0]:.0f} | {speed[1]:.0f} | {faster:.2f} | {peak[0]:.0f} | {peak[1]:.0f} "
                f"| {smaller:.3f} | {difference:.1e} |",
                flush=True,
            )
            print(f"plain: {plain}, head: {rows[0][0]['head']}", file=sys.stderr)


if __name__ == "__main__":
    main()
