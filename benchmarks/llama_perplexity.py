"""K3 of sampled tokens beside the KL over the whole vocabulary that llama.cpp's own tool computes, on the same tokens.

    PYTHONPATH=tests python benchmarks/llama_perplexity.py --binary build/bin/llama-perplexity [--types F32 Q8_0 Q4_0]

mu is the embedded model under transformers in float32: it samples sequences of 128 tokens, none of them cut off. pi is the same
model as a GGUF file under llama.cpp. llama-perplexity takes mu's whole distributions from a file (16 bits an entry, its own format,
written here) and gives the mean of KL(mu || pi) over the second half of each sequence. This project's side reads log pi of the same
tokens with its llama-cpp engine and takes the mean of K3 = exp(l) - 1 - l and its interval by sequences. One number estimates what
the other one computes, so each checks the other; both are asked for their time, from start of a process or engine to the number,
and for what they have to keep of mu. A build of llama.cpp gives the binary (target llama-perplexity); no package has it.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 128
FIRST = CONTEXT // 2
"""Positions from here on are judged: llama-perplexity's own choice."""
_TRIES = 20
_MEAN = re.compile(r"Mean\s+KLD:\s+(-?[\d.e+-]+|nan)\s*(?:±|\+-)\s*([\d.e+-]+|nan)")


def sample(folder: Path, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [sequences, CONTEXT] and mu's log-probabilities [sequences, CONTEXT - 1 - FIRST, vocabulary], nats."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    begin = torch.full((sequences, 1), int(model.config.bos_token_id))
    # No token ends a sequence: every one is drawn from the whole distribution.
    model.generation_config.eos_token_id = None
    ids = model.generate(
        begin, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=CONTEXT - 1
    )
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[:, FIRST : CONTEXT - 1]
    return ids.numpy(), torch.log_softmax(logits.double(), -1).numpy()


def write_base(path: Path, ids: np.ndarray, log_p: np.ndarray) -> None:
    """The file of llama-perplexity's --kl-divergence-base: the tokens, then a scale, a least value and 16-bit steps a position."""
    sequences, _, vocabulary = log_p.shape
    least = np.maximum(log_p.min(-1), log_p.max(-1) - 16.0)
    scale = (log_p.max(-1) - least) / 65535.0
    steps = np.rint((np.maximum(log_p, least[..., None]) - least[..., None]) / scale[..., None]).astype("<u2")
    row = np.zeros((*log_p.shape[:2], 2 * ((vocabulary + 1) // 2) + 4), dtype="<u2")
    row[..., :4] = np.stack([scale, least], -1).astype("<f4").view("<u2")
    row[..., 4 : 4 + vocabulary] = steps
    with path.open("wb") as file:
        file.write(b"_logits_" + struct.pack("<Iii", CONTEXT, vocabulary, sequences))
        file.write(ids.astype("<i4").tobytes() + row.tobytes())


def theirs(binary: Path, model: Path, base: Path, threads: int) -> dict[str, float]:
    """llama-perplexity's mean and its standard error."""
    command = [str(binary), "-m", str(model), "--kl-divergence", "--kl-divergence-base", str(base)]
    command += ["-c", str(CONTEXT), "-b", str(CONTEXT), "-t", str(threads)]
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # It sometimes ends before its log has the last lines, whatever it logs to; the numbers are the same each time.
        for _ in range(_TRIES):
            begun = time.perf_counter()
            done = subprocess.run(
                [*command, "--log-file", str(log)], capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - begun
            said = done.stdout + done.stderr + (log.read_text(encoding="utf-8") if log.is_file() else "")
            found = _MEAN.search(said)
            if found is not None:
                return {"kl": float(found[1]), "standard_error": float(found[2]), "seconds": seconds}
    raise SystemExit(f"{binary} gave no mean:\n" + "\n".join(said.splitlines()[-12:]))


def ours(model: Path, checkpoint: Path, ids: np.ndarray, log_p: np.ndarray) -> dict[str, float]:
    """K3 and its 95 % interval, in a process of its own as theirs is."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npz"
        taken = np.take_along_axis(log_p, ids[:, FIRST + 1 :, None], -1)[..., 0]
        np.savez(given, ids=ids, log_mu=taken)
        begun = time.perf_counter()
        command = [
            sys.executable,
            __file__,
            "--child",
            str(given),
            "--gguf",
            str(model),
            "--checkpoint",
            str(checkpoint),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begun
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": seconds}


def child(given: Path, gguf: Path, checkpoint: Path) -> None:
    """Reads with the engine, prints K3."""
    from mismatch_probe.assets.model_facts import read_model_facts
    from mismatch_probe.config.model import SamplingConfig
    from mismatch_probe.engines.protocol import EngineSpec, FixedSequence
    from mismatch_probe.engines.registry import engines
    from mismatch_probe.stats.kl import token_k3

    held = np.load(given, allow_pickle=False)
    ids, log_mu = held["ids"], held["log_mu"]
    facts = read_model_facts(checkpoint)
    spec = EngineSpec(
        model_path=checkpoint, dtype="auto", max_model_len=CONTEXT + 1, routing=False, num_moe_layers=facts.num_moe_layers,
        top_k=facts.top_k or 0, options={"gguf": str(gguf)},
    )  # fmt: skip
    engine = engines.get("llama-cpp").item.make(spec)
    fixed = [
        FixedSequence(n, tuple(map(int, row[: FIRST + 1])), tuple(map(int, row[FIRST + 1 :])))
        for n, row in enumerate(ids)
    ]
    begun = time.perf_counter()
    read = np.array(
        engine.score_prefill(fixed, SamplingConfig(), lambda sequences, tokens: None), dtype=np.float64
    )
    reading = time.perf_counter() - begun
    engine.close()
    k3 = token_k3(read - log_mu).mean(axis=1)
    half = 1.96 * k3.std(ddof=1) / np.sqrt(len(k3))
    print(
        json.dumps({"k3": k3.mean(), "low": k3.mean() - half, "high": k3.mean() + half, "reading": reading})
    )


def main() -> None:
    """Prints a row for each type of the GGUF's matrices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", type=Path, required="--child" not in sys.argv)
    parser.add_argument("--types", nargs="+", default=["F32", "Q8_0", "Q4_0"])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    for hidden in ("--child", "--gguf", "--checkpoint"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.gguf, arguments.checkpoint)
        return
    from gguf_model import write_gguf

    from mismatch_probe.assets.catalog import resolve_model

    checkpoint = resolve_model("tiny-qwen3-moe").path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids, log_p = sample(checkpoint, arguments.sequences)
        base = folder / "base"
        write_base(base, ids, log_p)
        print(f"{log_p[..., 0].size:,} tokens of {len(ids)} sequences; mu on disk: {base.stat().st_size / log_p[..., 0].size:.0f} bytes a token "
              f"for llama-perplexity at vocabulary {log_p.shape[-1]} (2 x vocabulary + 8), 4 here")  # fmt: skip
        print(
            "| GGUF | llama-perplexity, mean KL | standard error | K3 of the sampled tokens | 95 % | seconds, theirs | ours | ratio |"
        )
        print("|---|---:|---:|---:|---|---:|---:|---:|")
        for kind in arguments.types:
            gguf = write_gguf(checkpoint, folder / f"{kind}.gguf", kind)
            rows: list[dict[str, Any]] = []
            for pair in range(arguments.pairs):
                sides = {"theirs": lambda gguf=gguf: theirs(arguments.binary, gguf, base, arguments.threads),
                         "ours": lambda gguf=gguf: ours(gguf, checkpoint, ids, log_p)}  # fmt: skip
                order = ("theirs", "ours") if pair % 2 else ("ours", "theirs")
                rows.append({side: sides[side]() for side in order})
            one, two = rows[-1]["theirs"], rows[-1]["ours"]
            seconds = [
                float(np.median([row[side]["seconds"] for row in rows])) for side in ("theirs", "ours")
            ]
            ratio = float(np.median([row["theirs"]["seconds"] / row["ours"]["seconds"] for row in rows]))
            print(f"| {kind} | {one['kl']:.3e} | {one['standard_error']:.1e} | {two['k3']:.3e} | {two['low']:.3e} to {two['high']:.3e} "
                  f"| {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
