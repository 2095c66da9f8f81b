"""Weight sync under test: the same and an updated checkpoint loaded into a running rollout engine.

Three engines, each in a process of its own, read the same tokens: one before and after it loads the checkpoint
that it already has; one that starts from an updated checkpoint; one that starts from the run's checkpoint and is
handed the updated one. The first must not move by one bit, the last must equal the second in every bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.assets.rewritten_checkpoint import write_noisy_checkpoint
from mismatch_probe.result import to_json
from mismatch_probe.stages.ablation_rows import Row, Subject
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import RefitJob
from mismatch_probe.stages.refit_work import FRESH_LEGS, REFIT_LEGS, WEIGHTS_FILE
from mismatch_probe.stats.step_summary import summarise_step
from mismatch_probe.trace.parts import read_json

UPDATE_SCALE = 0.02
_PATHS = ("decode", "prefill")


def refit_study(subject: Subject, updated: Path | None, watcher: Watcher) -> dict[str, Any]:
    """Reads both cases, or takes them from disk.

    Args:
        subject: The run under test.
        updated: A later checkpoint of the same model; None makes one by adding Gaussian noise of 0.02 standard
            deviations of each matrix to it, which stands for an update and is removed afterwards.
        watcher: Told of progress.

    Returns:
        `same` and `updated`, each `{"exact", "decode", "prefill", "weights"}` or `{"unavailable"}`; `decode` and
        `prefill` are step summaries of the log-probabilities after the load, less those of the fresh engine. And
        `seconds` and `cpu_seconds` of all engines.
    """
    spec = subject.spec("rollout", dtype=None, options={})
    own = Path(spec["model_path"])
    states = subject.folder / "weights"
    made = None
    if updated is None:
        made = subject.folder / "updated-checkpoint"
        write_noisy_checkpoint(own, made, scale=UPDATE_SCALE)
        updated = made

    also = {"updated_sha256": read_model_facts(updated).weights_sha256}

    def job(folder: Path, **fields: Any) -> RefitJob:
        return RefitJob(
            run=folder,
            engine=subject.config["rollout"]["engine"],
            sampling=subject.sampling,
            **{"spec": spec, "read_fresh": True, **fields},
        )

    same = Row(subject, "refit-same")
    held = same.take(
        lambda folder: job(folder, save=states / "own", load=own, compare=states / "own"), watcher
    )
    fresh, loaded = Row(subject, "refit-fresh"), Row(subject, "refit-updated")
    other = {**spec, "model_path": str(updated)}
    fresh_state = fresh.take(
        lambda folder: job(folder, spec=other, save=states / "updated"), watcher, also=also
    )
    result: dict[str, Any] = {
        "same": _compared(subject, held, same, same),
        "updated": {"unavailable": fresh_state["unavailable"]},
    }
    if fresh_state["unavailable"] is None:
        taken = loaded.take(
            lambda folder: job(folder, read_fresh=False, load=updated, compare=states / "updated"),
            watcher,
            also=also,
        )
        result["updated"] = _compared(subject, taken, fresh, loaded)
        if held["unavailable"] is None and _equal(same, fresh):
            reason = "the updated checkpoint gives the log-probabilities of the run's own: it tests nothing"
            result["updated"] = {"unavailable": reason}
    for key in ("seconds", "cpu_seconds"):
        result[key] = sum(row.state.get(key, 0.0) for row in (same, fresh, loaded))
    # Only now: a study that was cut off goes on with what is there.
    shutil.rmtree(states, ignore_errors=True)
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)
    return result


def _equal(first: Row, second: Row) -> bool:
    """Whether two fresh engines give the same log-probabilities in every bit."""
    import numpy as np

    return np.array_equal(first.trace().logprobs(FRESH_LEGS[0]), second.trace().logprobs(FRESH_LEGS[0]))


def _compared(subject: Subject, state: dict[str, Any], before: Row, after: Row) -> dict[str, Any]:
    if state["unavailable"] is not None:
        return {"unavailable": state["unavailable"]}
    first, second = before.trace(), after.trace()
    rollout = first.rollout
    case: dict[str, Any] = {"unavailable": None}
    for path, fresh_leg, leg in zip(_PATHS, FRESH_LEGS, REFIT_LEGS, strict=True):
        case[path] = to_json(
            summarise_step(
                second.logprobs(leg) - first.logprobs(fresh_leg), rollout.offsets, rollout.prompt_index
            )
        )
    case["weights"] = read_json(after.run.path / WEIGHTS_FILE)
    case["exact"] = all(case[path]["exact"] for path in _PATHS) and not case["weights"]["differences"]
    return case
