"""What an audit takes over the raw engine time: the same `LLM.generate` and the same forwards, written by hand.

    python benchmarks/overhead.py [--pairs 5] [--num-prompts 16] [--samples 4] [--max-tokens 256] [--routing] [--json FILE]

By hand: one process starts vLLM, samples, and reads the responses again by prefill; another loads the model in BF16 and runs
forwards of 8 padded sequences and of one, then in float32. Both write token ids and log-probabilities. The audit takes the same
legs and also preflights, writes parts, measures, looks for causes, recommends, simulates and draws the report. `--routing`
lets the audit capture routes and study their replay as well, which by hand is left out. Pairs alternate in order; the ratio is
that of whole wall times, imports and loading included. The profile has the seconds between the audit's own messages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LEGS = ("rollout/decode", "rollout/prefill", "train/forward", "train/reference", "train/repeat")


def raw_rollout(job: dict[str, Any]) -> None:
    """vLLM, as its examples use it."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model=job["model"],
        dtype="bfloat16",
        max_model_len=job["max_model_len"],
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        logprobs_mode="processed_logprobs",
        max_logprobs=20,
        disable_log_stats=True,
        seed=0,
    )
    rows: list[dict[str, Any]] = []
    for begin in range(0, len(job["prompts"]), job["part"]):
        prompts = job["prompts"][begin : begin + job["part"]]
        params = [
            SamplingParams(max_tokens=job["max_tokens"], logprobs=0, detokenize=False, seed=begin + place)
            for place in range(len(prompts))
        ]
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            told = output.outputs[0]
            logprobs = [row[token].logprob for row, token in zip(told.logprobs, told.token_ids, strict=True)]
            rows.append({"prompt": prompt, "response": list(told.token_ids), "logprobs": logprobs})
    again = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    for begin in range(0, len(rows), job["part"]):
        ids = [[*row["prompt"], *row["response"]] for row in rows[begin : begin + job["part"]]]
        for sequence, output in zip(
            ids,
            llm.generate([TokensPrompt(prompt_token_ids=i) for i in ids], again, use_tqdm=False),
            strict=True,
        ):
            given = output.prompt_logprobs[1:]
            assert all(token in row for token, row in zip(sequence[1:], given, strict=True))
    Path(job["rows"]).write_text(json.dumps(rows), encoding="utf-8")


def raw_train(job: dict[str, Any]) -> None:
    """transformers, as a trainer reads log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))
    read: dict[str, list[list[float]]] = {}

    def forward(model: Any, size: int) -> list[list[float]]:
        found = []
        for begin in range(0, len(rows), size):
            batch = [[*row["prompt"], *row["response"]] for row in rows[begin : begin + size]]
            width = max(map(len, batch))
            ids = torch.tensor([line + [0] * (width - len(line)) for line in batch])
            mask = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in batch])
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for line, row, own in zip(batch, rows[begin : begin + size], logits, strict=True):
                first = len(row["prompt"])
                log_p = torch.log_softmax(own[first - 1 : len(line) - 1].float(), -1)
                found.append(log_p.gather(-1, torch.tensor(line[first:])[:, None])[:, 0].tolist())
        return found

    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16).eval()
        read["forward"], read["repeat"] = forward(model, 8), forward(model, 1)
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
        read["reference"] = forward(model, 8)
    Path(job["rows"]).with_name("train.json").write_text(json.dumps(read), encoding="utf-8")


def by_hand(job: dict[str, Any], folder: Path) -> float:
    """Seconds of the two processes."""
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    begun = time.monotonic()
    for what in ("rollout", "train"):
        with (folder / "raw.log").open("ab") as log:
            subprocess.run([sys.executable, __file__, f"--raw-{what}", str(file)], check=True, stdout=log, stderr=log)  # fmt: skip
    return time.monotonic() - begun


def audit(arguments: argparse.Namespace, out: Path) -> tuple[float, list[tuple[float, str]]]:
    """Seconds of the audit, and when it said what."""
    shutil.rmtree(out, ignore_errors=True)
    legs = [*LEGS[:3], *(["train/replay"] if arguments.routing else []), *LEGS[3:]]
    command = [
        *(sys.executable, "-m", "mismatch_probe_cli", "audit", "--out", str(out)),
        *("--num-prompts", str(arguments.num_prompts), "--samples", str(arguments.samples)),
        *("--max-tokens", str(arguments.max_tokens), "--set", f"legs={json.dumps(legs)}"),
        *(() if arguments.routing else ("--set", "routing=false")),
    ]
    begun = time.monotonic()
    said = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        said.append((time.monotonic() - begun, line.strip()))
    if process.wait() not in (0, 1):
        raise SystemExit("\n".join(line for _, line in said))
    return time.monotonic() - begun, said


def job_of(out: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The audit's own prompts and model, for the processes by hand."""
    import pyarrow.parquet as pq

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    tables = [pq.read_table(path) for path in sorted((out / "rollout").glob("part-*.parquet"))]
    prompts = [ids for table in tables for ids in table["prompt_token_ids"].to_pylist()]
    return {
        "model": manifest["model"]["path"],
        "max_model_len": max(map(len, prompts)) + arguments.max_tokens,
        "max_tokens": arguments.max_tokens,
        "part": manifest["config"]["part_sequences"],
        "prompts": prompts,
        "rows": str(folder / "rows.json"),
    }


def profile(said: list[tuple[float, str]], whole: float) -> list[dict[str, Any]]:
    """Seconds from each message to the next."""
    ends = [*[at for at, _ in said[1:]], whole]
    rows = [{"seconds": round(said[0][0], 1), "after": "begin"}] if said else []
    return rows + [
        {"seconds": round(end - at, 1), "after": line}
        for (at, line), end in zip(said, ends, strict=True)
        if end - at >= 0.3
    ]


def main() -> None:
    """Runs the pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--routing", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--raw-rollout", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--raw-train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for work, file in ((raw_rollout, arguments.raw_rollout), (raw_train, arguments.raw_train)):
        if file is not None:
            work(json.loads(file.read_text(encoding="utf-8")))
            return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Not counted: files come into the page cache, and the prompts are its.
        audit(arguments, folder / "run")
        job = job_of(folder / "run", arguments, folder)
        pairs: list[dict[str, float]] = []
        last: list[tuple[float, str]] = []
        for pair in range(arguments.pairs):
            seconds: dict[str, float] = {}
            for side in ("audit", "raw") if pair % 2 else ("raw", "audit"):
                if side == "raw":
                    seconds[side] = by_hand(job, folder)
                else:
                    seconds[side], last = audit(arguments, folder / "run")
            pairs.append(seconds)
            print(json.dumps({**seconds, "ratio": seconds["audit"] / seconds["raw"]}), flush=True)
        summary = {
            "sequences": len(job["prompts"]),
            "tokens": sum(len(row["response"]) for row in json.loads(Path(job["rows"]).read_text(encoding="utf-8"))),
            "routing": arguments.routing,
            "median_ratio": statistics.median(pair["audit"] / pair["raw"] for pair in pairs),
            "median_difference_s": statistics.median(pair["audit"] - pair["raw"] for pair in pairs),
            "pairs": pairs,
            "profile_of_the_last_audit": profile(last, pairs[-1]["audit"]),
        }  # fmt: skip
    print(json.dumps(summary, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
