"""Plants one wrong module in one layer and asks `locate`'s rule for it: real vLLM against transformers.

    python benchmarks/planted_layers.py [--placements 20] [--clean 20] [--seed 0] [--out FILE.json]

Two models: the embedded Qwen3-MoE (4 layers) and a dense Qwen3 of 12 layers with random weights. vLLM reads the good
checkpoint once; each placement changes one tensor of one layer in the training side's model (its bfloat16 and its float32
form alike, as a missed weight sync would) and takes it back. Placements draw layer, module and kind of fault at random:

    noise      Gaussian noise of 5 % of the tensor's standard deviation on one projection, or on all experts of the layer
    expert     one expert of the layer is another expert (mixture of experts only)
    scale      a norm's weight times 1.02
    router     5 % noise on the router's weight (mixture of experts only)

A placement is found where the first unit named is in the right layer; "module" says whether it is also the right module. A
clean run reads other sequences with nothing changed; naming anything is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESPONSE_TOKENS = 48
PROMPT_TOKENS = 12
SEQUENCES = 4


@dataclass(frozen=True)
class Fault:
    """One planted fault: tensor name below the layer, kind, and the units that may rightly be named."""

    tensor: str
    kind: str
    units: tuple[str, ...]


ATTENTION_FAULTS = (
    *(Fault(f"self_attn.{name}.weight", "noise", ("qkv_proj",)) for name in ("q_proj", "k_proj", "v_proj")),
    Fault("self_attn.o_proj.weight", "noise", ("o_proj",)),
    Fault("self_attn.q_norm.weight", "scale", ("q_norm",)),
    Fault("input_layernorm.weight", "scale", ("input_norm",)),
    Fault("post_attention_layernorm.weight", "scale", ("post_attention_norm",)),
)
MOE_FAULTS = (
    Fault("mlp.experts.gate_up_proj", "noise", ("experts",)),
    Fault("mlp.experts.down_proj", "noise", ("experts",)),
    Fault("mlp.experts.down_proj", "expert", ("experts",)),
    Fault("mlp.gate.weight", "router", ("router",)),
)
DENSE_FAULTS = (
    Fault("mlp.gate_proj.weight", "noise", ("gate_up_proj",)),
    Fault("mlp.up_proj.weight", "noise", ("gate_up_proj",)),
    Fault("mlp.down_proj.weight", "noise", ("down_proj",)),
)


def main() -> None:
    """Runs both models and prints what was found."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--placements", type=int, default=20)
    arguments.add_argument("--clean", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from mismatch_probe.assets.catalog import resolve_model

    report = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "tiny-qwen3-moe": resolve_model("tiny-qwen3-moe").path,
            "dense-12": dense_model(Path(folder) / "dense"),
        }
        for name, path in models.items():
            faults = ATTENTION_FAULTS + (MOE_FAULTS if "moe" in name else DENSE_FAULTS)
            report[name] = study(path, faults, options.placements, options.clean, options.seed)
            found = sum(row["found"] for row in report[name]["placements"])
            module = sum(row["module"] for row in report[name]["placements"])
            alarms = sum(row["named"] is not None for row in report[name]["clean"])
            print(
                f"{name}: layer {found}/{options.placements}, module {module}/{options.placements}, "
                f"false alarms {alarms}/{options.clean}"
            )
            for row in report[name]["placements"]:
                print(
                    f"  layer {row['layer']:2d} {row['tensor']:34s} {row['kind']:7s} -> {row['named']} ({row['times']})"
                )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def dense_model(folder: Path) -> Path:
    """A dense Qwen3 with random weights large enough that every module matters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, initializer_range=0.1, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def study(path: Path, faults: tuple[Fault, ...], placements: int, clean: int, seed: int) -> dict[str, object]:
    """Feeds vLLM once and then every placement and every clean run."""
    from mismatch_probe.assets.model_facts import read_model_facts
    from mismatch_probe.config.model import SamplingConfig
    from mismatch_probe.engines.protocol import EngineSpec, FixedSequence
    from mismatch_probe.engines.registry import engines
    from mismatch_probe.scorers.protocol import ScorerSpec
    from mismatch_probe.scorers.registry import scorers
    from mismatch_probe.stages.layer_work import read_states

    facts = read_model_facts(path)
    rng = np.random.default_rng(seed)
    groups = 1 + clean
    sequences = [
        FixedSequence(
            number,
            [1, *rng.integers(4, 60, PROMPT_TOKENS).tolist()],
            rng.integers(4, 60, RESPONSE_TOKENS).tolist(),
        )
        for number in range(groups * SEQUENCES)
    ]
    moe = (facts.num_moe_layers, facts.top_k or 0)
    with tempfile.TemporaryDirectory() as folder:
        engine = engines.get("vllm").item.make(EngineSpec(path, "bfloat16", 128, bool(moe[0]), *moe, {}))
        try:
            engine.write_layer_states(sequences, Path(folder))
            heads = engine.score_prefill(sequences, SamplingConfig(), lambda _sequences, _tokens: None)
        finally:
            engine.close()
        states = [read_states(Path(folder) / f"{s.sequence_id}.safetensors") for s in sequences]
    sides = [
        scorers.get("transformers").item.make(ScorerSpec(path, dtype, *moe, {}))
        for dtype in ("bfloat16", "float32")
    ]
    fed = list(zip(sequences, states, heads, strict=True))
    rows = []
    for _ in range(placements):
        fault = faults[rng.integers(len(faults))]
        layer = int(rng.integers(facts.num_layers))
        with planted(sides, fault, layer, int(rng.integers(1 << 30))):
            first = located(sides, fed[:SEQUENCES])
        named = None if first is None else (first.layer, first.unit)
        rows.append({
            "layer": layer, "tensor": fault.tensor, "kind": fault.kind, "named": named,
            "found": named is not None and named[0] == layer,
            "module": named is not None and named[0] == layer and named[1] in fault.units,
            "times": None if first is None else round(first.over_rounding or 0.0, 2),
        })  # fmt: skip
    untouched = []
    for group in range(1, groups):
        first = located(sides, fed[group * SEQUENCES : (group + 1) * SEQUENCES])
        untouched.append({"named": None if first is None else (first.layer, first.unit)})
    return {"placements": rows, "clean": untouched}


def located(sides, fed):
    """The first unit that `locate` would name."""
    from mismatch_probe.causes.localisation import LocationSums
    from mismatch_probe.scorers.protocol import ScoreRequest

    sums = LocationSums()
    for sequence, held, head in fed:
        given = {name: rows for name, rows in held.items() if name != "routes"}
        routes = held["routes"][:-1] if "routes" in held else None
        request = ScoreRequest(
            sequence.sequence_id, sequence.prompt_token_ids, sequence.response_token_ids, routes
        )
        reads = [side.read_layer_states(request, given, temperature=1.0) for side in sides]
        sums.add(given, [read["free"] for read in reads], [read["substituted"] for read in reads], head)
    return sums.location().first


@contextmanager
def planted(sides, fault: Fault, layer: int, seed: int) -> Iterator[None]:
    """Changes one tensor of both forms of the training side's model, and takes it back."""
    import torch

    tensors = [
        dict(side._model.model.layers[layer].named_parameters())[fault.tensor]  # noqa: SLF001
        for side in sides
    ]
    held = [tensor.detach().clone() for tensor in tensors]
    wrong = spoilt(held[0].float(), fault.kind, seed).to(torch.bfloat16)
    try:
        for tensor in tensors:
            tensor.data.copy_(wrong)
        yield
    finally:
        for tensor, was in zip(tensors, held, strict=True):
            tensor.data.copy_(was)


def spoilt(tensor, kind: str, seed: int):
    """A tensor with a fault."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if kind == "scale":
        return tensor * 1.02
    if kind == "expert":
        changed = tensor.clone()
        one, other = torch.randperm(len(tensor), generator=generator)[:2].tolist()
        changed[one] = tensor[other]
        return changed
    return tensor + 0.05 * tensor.std() * torch.randn(tensor.shape, generator=generator)


if __name__ == "__main__":
    main()
