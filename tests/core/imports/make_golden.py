"""Writes small dumps of every framework to the layout that its own writer gives them; the sequences are made up.

`python tests/core/imports/make_golden.py` writes the folder `golden` beside it again. DataProto and TensorDict are those of
verl 0.9.1 and tensordict 0.10.0; the classes of ROLL and SkyRL have the names and pickle the state that theirs do.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Made:
    """One made-up sequence; per-token arrays cover the response, masked tokens included."""

    prompt: np.ndarray
    response: np.ndarray
    rollout: np.ndarray
    train: np.ndarray
    mask: np.ndarray
    group: int
    advantage: float
    reward: float
    routes: np.ndarray
    """int16 [tokens - 1, 3 layers, 2 experts of 8]; those of the third fed token were not recorded (-1)."""


def sequences(seed: int = 0) -> list[Made]:
    """Eight sequences of four prompts; the second has a masked stretch in its response (a tool's output)."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(8):
        group = index // 2
        prompt = np.random.default_rng(100 + group).integers(3, 60, 3 + group)
        length = int(draw.integers(5, 12))
        rollout = -draw.exponential(0.8, length).astype(np.float32)
        train = np.minimum(rollout + draw.normal(-0.002, 0.05, length).astype(np.float32), -1e-4).astype(
            np.float32
        )
        mask = np.ones(length, dtype=np.int64)
        if index == 1:
            mask[2:4] = 0
            rollout[2:4] = 0.0  # frameworks write fillers here, and not the same on both sides
            train[2:4] = -7.0
        made.append(
            Made(
                prompt,
                draw.integers(3, 60, length),
                rollout,
                train,
                mask,
                group,
                (-1.0) ** index,
                float(index % 2),
                _routes(len(prompt) + length - 1, index),
            )
        )
    return made


def _routes(fed: int, index: int) -> np.ndarray:
    ranked = np.random.default_rng(200 + index).random((fed, 3, 8)).argsort(axis=-1)
    routes = ranked[..., :2].astype(np.int16)
    routes[2] = -1
    return routes


def route_rows(one: Made, rows: int, filler: Any) -> np.ndarray:
    """A sequence's routes over so many rows, with the framework's own filler where there are none."""
    full = np.broadcast_to(np.asarray(filler, np.int16), (rows, 3, 2)).copy()
    known = (one.routes >= 0).all(axis=(1, 2))
    full[: len(one.routes)][known] = one.routes[known]
    return full


def _prime(folder: Path, made: list[Made]) -> None:
    path = folder / "prime-rl" / "token_exports" / "step_3" / "rank_0.jsonl"
    path.parent.mkdir(parents=True)
    rows = []
    for number, one in enumerate(made):
        lead = len(one.prompt)
        full = {
            name: [0.0] * lead + values.tolist() for name, values in (("s", one.rollout), ("t", one.train))
        }
        ratio = np.array(full["t"]) - np.array(full["s"])
        rows.append(
            {
                "schema_version": 1, "step": 3, "rank": 0, "micro_step": number, "micro_sequence_idx": 0,
                "export_sequence_idx": number, "env_name": "arithmetic",
                "token_ids": [*one.prompt.tolist(), *one.response.tolist()],
                "position_ids": list(range(lead + len(one.response))),
                "loss_mask": [False] * lead + [bool(value) for value in one.mask],
                "advantages": [one.advantage] * (lead + len(one.response)),
                "inference_logprobs": full["s"], "trainer_logprobs": full["t"],
                "mismatch_kl": (np.exp(ratio) - ratio - 1).tolist(), "log_importance_ratio": ratio.tolist(),
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _nemo(folder: Path, made: list[Made]) -> None:
    path = folder / "nemo-rl" / "train_data_step5.jsonl"
    path.parent.mkdir(parents=True)
    longest = max(len(one.prompt) + len(one.response) for one in made)
    rows = []
    for number, one in enumerate(made):
        lead, size = len(one.prompt), len(one.prompt) + len(one.response)

        def pad(values: list[Any], fill: Any, size: int = size) -> list[Any]:
            return values + [fill] * (longest - size)

        rows.append(
            {
                "content": "text", "rewards": one.reward, "input_lengths": size,
                "token_ids": pad([*one.prompt.tolist(), *one.response.tolist()], 0),
                "token_loss_mask": pad([0] * lead + one.mask.tolist(), 0),
                "sample_loss_mask": 1.0,
                "advantages": pad([one.advantage] * size, one.advantage),
                "generation_logprobs": pad([0.0] * lead + one.rollout.tolist(), 0.0),
                "prev_logprobs": pad([0.0] + [-3.3] * (lead - 1) + one.train.tolist(), -9.9),
                "idx": number,
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def padded(made: list[Made], *, together: bool) -> dict[str, torch.Tensor]:
    """Rows of one width: prompts left-padded and responses right-padded, or (together) both pushed to the right."""
    prompts, responses = max(len(one.prompt) for one in made), max(len(one.response) for one in made)
    total = prompts + responses
    ids, attention = np.zeros((len(made), total), np.int64), np.zeros((len(made), total), np.int64)
    response = {name: np.zeros((len(made), responses), np.float32) for name in ("rollout", "train", "mask")}
    for row, one in enumerate(made):
        n, begin = len(one.response), total - len(one.response) if together else prompts
        ids[row, begin - len(one.prompt) : begin + n] = [*one.prompt, *one.response]
        attention[row, begin - len(one.prompt) : begin + n] = 1
        for name, columns in response.items():
            columns[row, begin - prompts : begin - prompts + n] = getattr(one, name)
    tensors = {"ids": ids, "attention": attention, **response}
    return {name: torch.from_numpy(values) for name, values in tensors.items()} | {
        "advantages": torch.tensor([[one.advantage] * responses for one in made]),
        "prompts": torch.from_numpy(ids[:, :prompts]), "responses": torch.from_numpy(ids[:, prompts:]),
    }  # fmt: skip


def routed(batch: dict[str, torch.Tensor], made: list[Made], filler: Any) -> torch.Tensor:
    """Routes of a padded batch, int16 [batch, length, 3, 2]."""
    full = np.broadcast_to(np.asarray(filler, np.int16), (*batch["ids"].shape, 3, 2)).copy()
    for row, one in enumerate(made):
        begin = int(batch["attention"][row].argmax())
        full[row, begin : begin + len(one.routes) + 1] = route_rows(one, len(one.routes) + 1, filler)
    return torch.from_numpy(full)


def write_verl(path: Path, made: list[Made]) -> None:
    """A `gen_batch.dp` as verl's skip manager leaves it, through verl's own DataProto."""
    from verl.protocol import DataProto

    batch = padded(made, together=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    DataProto.from_dict(
        tensors={
            "prompts": batch["prompts"], "responses": batch["responses"], "input_ids": batch["ids"],
            "attention_mask": batch["attention"], "response_mask": batch["mask"].long(),
            "rollout_log_probs": batch["rollout"], "routed_experts": routed(batch, made, 0),
        },
        non_tensors={"uid": np.array([f"prompt-{one.group}" for one in made], dtype=object)},
    ).save_to_disk(path)  # fmt: skip
    (path.parent / "meta.json").write_text('{"global_steps": 1}')


def write_verl_queue(path: Path, made: list[Made]) -> None:
    """A `tq_batch.pt` as verl's skip manager saves what TransferQueue 0.1.11 packs: jagged tensors, and stacks of the rest."""
    from tensordict import NonTensorStack, TensorDict

    def jagged(rows: list[Any]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)

    tokens = [np.concatenate([one.prompt, one.response]) for one in made]
    columns = {
        "prompts": jagged([one.prompt for one in made]), "responses": jagged([one.response for one in made]),
        "response_mask": jagged([one.mask for one in made]), "loss_mask": jagged([one.mask for one in made]),
        "rollout_log_probs": jagged([one.rollout for one in made]), "input_ids": jagged(tokens),
        "position_ids": jagged([np.arange(len(ids)) for ids in tokens]),
        "rm_scores": jagged([np.eye(1, len(one.response), len(one.response) - 1, dtype=np.float32)[0] * one.reward for one in made]),
        "routed_experts": jagged([route_rows(one, len(ids), 0) for one, ids in zip(made, tokens, strict=True)]),
        "uid": NonTensorStack(*[f"prompt-{one.group}" for one in made]), "num_turns": NonTensorStack(*[2] * len(made)),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = {
        "tensordict": TensorDict(columns, batch_size=[len(made)]),
        "tags": [{"status": "success", "global_steps": 4, "min_global_steps": 3, "max_global_steps": 3 + number % 2} for number in range(len(made))],
        "keys": [f"prompt-{one.group}_{number % 2}_0" for number, one in enumerate(made)],
        "global_steps": 4,
    }  # fmt: skip
    torch.save(payload, path)
    (path.parent / "meta.json").write_text(json.dumps({"global_steps": 4, "num_trajectories": len(made)}))


def named_class(module: str, name: str) -> type:
    """A class that pickles under another module's name, as its framework's own would."""
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        sys.modules.setdefault(part, types.ModuleType(part))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def _forget(module: str) -> None:
    for depth in range(1, module.count(".") + 2):
        sys.modules.pop(".".join(module.split(".")[:depth]), None)


def _roll(folder: Path, made: list[Made]) -> None:
    from tensordict import TensorDict

    # Its postprocess_generate pushes whole rows to the left; log-probabilities begin with the second token.
    width = max(len(one.prompt) + len(one.response) for one in made) + 3
    whole = {name: np.zeros((len(made), width)) for name in ("ids", "attention", "mask", "rollout")}
    routes = np.zeros((len(made), width, 3, 2), np.uint8)
    for row, one in enumerate(made):
        lead, size = len(one.prompt), len(one.prompt) + len(one.response)
        whole["ids"][row, :size], whole["attention"][row, :size] = [*one.prompt, *one.response], 1
        whole["mask"][row, lead:size], whole["rollout"][row, lead:size] = one.mask, one.rollout
        routes[row, : size - 1] = route_rows(one, size - 1, 0)
    tensors = TensorDict(
        {
            "input_ids": torch.tensor(whole["ids"]).long(), "attention_mask": torch.tensor(whole["attention"]).long(),
            "response_mask": torch.tensor(whole["mask"]).long(), "infer_logprobs": torch.tensor(whole["rollout"][:, 1:]).float(),
            "scores": torch.tensor([one.reward for one in made])[:, None], "routed_experts": torch.from_numpy(routes),
            "prompt_id": torch.tensor([one.group for one in made]),
        },
        batch_size=[len(made)],
    ).contiguous().consolidate()  # fmt: skip
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    module = "roll.distributed.scheduler.protocol"
    kind = named_class(module, "DataProto")
    kind.__getstate__ = lambda self: (buffer, {}, None, {"step": 1})
    path = folder / "roll" / "train" / "step_000001.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(kind()))
    _forget(module)


def _skyrl(folder: Path, made: list[Made]) -> None:
    batch = padded(made, together=True)
    columns = {
        "sequences": batch["ids"], "attention_mask": batch["attention"], "loss_mask": batch["mask"],
        "response_mask": (batch["attention"][:, -batch["mask"].shape[1] :] * (batch["rollout"] != 5) * _in_response(made)).long(),
        "action_log_probs": batch["train"], "rollout_logprobs": batch["rollout"], "advantages": batch["advantages"],
        "base_action_log_probs": None, "rollout_expert_indices": routed(batch, made, [0, 1]).to(torch.uint8),
        "router_padding_mask": (routed(batch, made, -1) < 0).flatten(2).any(dim=2),
    }  # fmt: skip
    module = "skyrl.backends.skyrl_train.training_batch"
    kind, rebuild = named_class(module, "TrainingInputBatch"), lambda cls, state: state
    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
        module,
        "_rebuild_tensor_batch",
        "_rebuild_tensor_batch",
    )
    sys.modules[module]._rebuild_tensor_batch = rebuild
    state = {
        "batch_dict": {
            name: None if value is None else {"format": "numpy", "data": value.numpy().tobytes(), "shape": tuple(value.shape), "dtype": str(value.numpy().dtype)}
            for name, value in columns.items()
        },
        "batch_size": len(made), "device": torch.device("cpu"), "metadata": {"uids": [f"p{one.group}" for one in made]},
    }  # fmt: skip
    kind.__reduce__ = lambda self: (rebuild, (kind, state))
    path = folder / "skyrl" / "dumped_data" / "global_step_2_training_input.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(kind()))
    _forget(module)


def _in_response(made: list[Made]) -> torch.Tensor:
    width = max(len(one.response) for one in made)
    return torch.tensor([[int(place >= width - len(one.response)) for place in range(width)] for one in made])


def _rollout_samples(made: list[Made]) -> list[dict[str, Any]]:
    return [
        {
            "group_index": one.group, "index": 40 + number, "rollout_id": 0, "prompt": "text", "response": "text",
            "tokens": [*one.prompt.tolist(), *one.response.tolist()], "response_length": len(one.response),
            "label": None, "reward": one.reward, "loss_mask": one.mask.tolist(), "weight_versions": ["7"],
            "rollout_log_probs": one.rollout.tolist(), "status": "completed", "metadata": {"turns": 1},
            "rollout_routed_experts": route_rows(one, len(one.routes), 0).astype(np.int32),
        }
        for number, one in enumerate(made)
    ]  # fmt: skip


def _slime(folder: Path, made: list[Made]) -> None:
    root = folder / "slime"
    (root / "rollout_data").mkdir(parents=True)
    (root / "train_data").mkdir()
    torch.save({"rollout_id": 0, "samples": _rollout_samples(made)}, root / "rollout_data" / "0.pt")
    samples = [
        {
            "data_parallel_rank": number % 2, "sample_index": 40 + number, "rollout_position": number,
            "tokens": torch.tensor([*one.prompt, *one.response]), "log_probs": torch.from_numpy(one.train),
            "rollout_log_probs": torch.from_numpy(one.rollout), "advantages": torch.full((len(one.response),), one.advantage),
        }
        for number, one in enumerate(made)
    ]  # fmt: skip
    # Another order than the rollout's: it is the position that joins them.
    torch.save({"format_version": 2, "rollout_id": 0, "rank": 0, "samples": samples[::-1], "dp_shards": []}, root / "train_data" / "0.pt")  # fmt: skip


def zigzag(values: np.ndarray, rank: int, size: int, total: int) -> torch.Tensor:
    """What a context-parallel rank keeps of one value per response token, worked out token by token."""
    response, chunk = len(values), -(-total // (2 * size))
    kept = []
    for place in range(response):
        logit = total - response + place - 1
        if logit // chunk in (rank, 2 * size - 1 - rank):
            kept.append(values[place])
    return torch.tensor(np.array(kept, dtype=np.float32))


def _miles(folder: Path, made: list[Made]) -> None:
    root = folder / "miles"
    (root / "rollout_data").mkdir(parents=True)
    (root / "train_data").mkdir()
    torch.save({"rollout_id": 0, "samples": _rollout_samples(made)}, root / "rollout_data" / "0.pt")
    for rank in range(2):
        data: dict[str, list[Any]] = {"sample_indices": [], "tokens": [], "log_probs": [], "advantages": []}
        for number, one in enumerate(made):
            total = len(one.prompt) + len(one.response)
            data["sample_indices"].append(40 + number)
            data["tokens"].append(torch.tensor([*one.prompt, *one.response]))
            data["log_probs"].append(zigzag(one.train, rank, 2, total))
            data["advantages"].append(zigzag(np.full(len(one.response), one.advantage), rank, 2, total))
        payload = {
            "rollout_id": 0,
            "rank": rank,
            "rollout_data": data,
            "cp_rank": rank,
            "cp_size": 2,
            "qkv_format": "thd",
        }
        torch.save(payload, root / "train_data" / f"0_{rank}.pt")


def _trl(folder: Path, made: list[Made]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "trl" / "completions" / "completions_00004.parquet"
    path.parent.mkdir(parents=True)
    columns = {
        "step": [4] * len(made), "prompt": ["text"] * len(made), "completion": ["text"] * len(made),
        "accuracy": [one.reward for one in made], "advantage": [one.advantage for one in made],
        "prompt_ids": [one.prompt.tolist() for one in made], "completion_ids": [one.response.tolist() for one in made],
        "logprobs": [one.rollout.tolist() for one in made], "tool_mask": [one.mask.tolist() for one in made],
        "old_per_token_logps": [one.train.tolist() for one in made],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)


def write_all(folder: Path) -> list[Made]:
    """Every framework's dump under its name."""
    made = sequences()
    for write in (_prime, _nemo, _roll, _skyrl, _slime, _miles, _trl):
        write(folder, made)
    write_verl_queue(
        folder / "verl-queue" / "exp_proj" / "GBS4_N2_in8_out16" / "1" / "0" / "tq_batch.pt", made
    )
    write_verl(folder / "verl" / "exp_proj" / "GBS4_N2_in8_out16" / "1" / "gen_batch.dp", made)
    return made


if __name__ == "__main__":
    target = Path(__file__).with_name("golden")
    shutil.rmtree(target, ignore_errors=True)
    write_all(target)
