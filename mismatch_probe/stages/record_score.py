"""Record and score: from a plan to parts on disk, doing only what is not there yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mismatch_probe.config.model import Leg
from mismatch_probe.errors import ConfigError, MismatchProbeError, RunDirectoryError
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.secrets import redact
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.executor import Execute
from mismatch_probe.stages.job import JobPrompt, ReplayPlan, RolloutJob, ScoreJob, Task
from mismatch_probe.stages.plan import RunPlan
from mismatch_probe.stages.process import run_worker
from mismatch_probe.stages.refit_leg import REFIT_LEG, REFIT_SEQUENCES, write_refit_failure
from mismatch_probe.stages.replay_study import STUDY, plan_replay
from mismatch_probe.stages.shard import (
    Shard,
    count_shards,
    differing_facts,
    join_shards,
    missing_parts,
    name_parts,
)
from mismatch_probe.trace.manifest import new_manifest, responses_hash
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

REFERENCE_DTYPE = "float32"
WHOLE = Shard()


def begin_manifest(run: RunDirectory, plan: RunPlan, command: str, *, resume: bool) -> None:
    """Writes the manifest of a new run, or checks that a run to resume is the same run.

    Raises:
        RunDirectoryError: Model weights or prompts are not those that the run began with.
    """
    fresh = new_manifest(plan, command)
    if not resume:
        run.write_manifest(fresh)
        return
    held = run.read_manifest()
    for what, path in (("model weights", ("model", "weights_sha256")), ("prompts", ("prompts", "sha256"))):
        if held[path[0]][path[1]] != fresh[path[0]][path[1]]:
            raise RunDirectoryError(
                f"cannot resume {run.path}: the {what} are not those the run began with",
                hint="run again with --force",
            )
    # Legs may be added to a run; whatever was recorded stays.
    run.write_manifest({**held, "legs": fresh["legs"], "versions": fresh["versions"]})


def begin_shard(run: RunDirectory, plan: RunPlan, command: str, shard: Shard) -> None:
    """Begins to record a run, or joins the shards that are at it.

    Raises:
        RunDirectoryError: The other shards record another run.
    """
    fresh = new_manifest(plan, command)
    with run.manifest_lock():
        held = run.read_manifest() if run.manifest_path.is_file() else fresh
        run.write_manifest(join_shards(held, fresh, "record", shard))


def record(
    run: RunDirectory,
    plan: RunPlan,
    watcher: Watcher,
    execute: Execute = run_worker,
    shard: Shard = WHOLE,
) -> None:
    """Samples responses and takes the other legs of the rollout engine.

    Args:
        run: Where to.
        plan: What.
        watcher: Told of progress.
        execute: Where the engine runs.
        shard: Which of the parts.

    Raises:
        MismatchProbeError: What the engine raised.
    """
    tasks = _missing_tasks(run, plan, plan.rollout_legs(), shard)
    if tasks or _is_unnamed(run, "rollout"):
        config = plan.config
        job = RolloutJob(
            run=run.path.resolve(),
            engine=config.rollout.engine,
            spec={
                "model_path": str(plan.rollout_model.path),
                "dtype": config.rollout.dtype,
                "max_model_len": plan.max_model_len,
                "routing": plan.routing,
                "num_moe_layers": plan.facts.num_moe_layers,
                "top_k": plan.facts.top_k or 0,
                "options": config.rollout.options,
                "trust_remote_code": config.trust_remote_code,
                "keep_sets": plan.keep_sets,
            },
            sampling=config.sampling,
            prompts=tuple(
                JobPrompt(prompt_id=p.prompt_id, token_ids=p.token_ids, answer=p.answer)
                for p in plan.prompts.prompts
            ),
            prompts_per_part=plan.prompts_per_part,
            reward=plan.prompts.reward,
            tokenizer_path=plan.prompts.tokenizer_path,
            tasks=tasks,
        )
        log = run.log_path(shard.log_name("rollout"))
        follow = _follow(plan, tasks, shard, watcher, config.rollout.engine)
        # With nothing to share out there is nothing for a crew to do.
        take = execute if tasks else run_worker
        run_rollout_worker(run, lambda on_event: take(job, log, on_event), follow)
    if missing := missing_parts(run, plan.rollout_legs(), plan.num_parts):
        watcher.message(f"shard {shard} is done; {name_parts(missing)} of other shards not there yet")
        return
    rollout = Trace(run, plan.num_parts).rollout
    with run.edit_manifest() as manifest:
        manifest["responses_sha256"] = responses_hash(rollout)
        manifest["stages"]["record"] = "done"


def run_rollout_worker(
    run: RunDirectory,
    work: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]],
    follow: Callable[[dict[str, Any]], None],
) -> None:
    """Runs a rollout engine and notes its facts; its death over a reload of its weights is the outcome of that leg.

    Args:
        run: The run directory.
        work: Does the job; called with what takes events, returns the engine's facts.
        follow: Called with every event.

    Raises:
        MismatchProbeError: The engine failed before it came to `rollout/refit`, its last leg.
    """
    reached = False

    def on_event(event: dict[str, Any]) -> None:
        nonlocal reached
        if event["event"] == "facts":
            reached = True
            _note(run, "rollout", event["facts"])
        follow(event)

    try:
        _note(run, "rollout", work(on_event))
    except MismatchProbeError as error:
        if not reached:
            raise
        if not run.refit_outcome().is_file():
            write_refit_failure(run, f"loading the checkpoint again ended the engine: {error.message}")


def score(
    run: RunDirectory,
    plan: RunPlan,
    watcher: Watcher,
    execute: Execute = run_worker,
    shard: Shard = WHOLE,
) -> None:
    """Takes the legs of the training side; `train/reference` with a float32 model of its own.

    Args:
        run: Where the rollout is.
        plan: What.
        watcher: Told of progress.
        execute: Where the scorer runs.
        shard: Which of the parts.

    Raises:
        RunDirectoryError: A part that is to be scored was not recorded.
        MismatchProbeError: What the scorer raised.
    """
    if unrecorded := [p for p in missing_parts(run, ["rollout/decode"], plan.num_parts) if shard.holds(p)]:
        raise RunDirectoryError(
            f"{run.path} has no rollout of {name_parts(unrecorded)}", hint="record it first, to the end"
        )
    if not shard.is_whole:
        with run.edit_manifest() as manifest:
            manifest["shards"] = count_shards(manifest, "score", shard)
    trained = tuple(leg for leg in plan.train_legs() if leg != "train/reference")
    reference = tuple(leg for leg in plan.train_legs() if leg == "train/reference")
    for name, legs, dtype in (
        ("train", trained, plan.config.train.dtype),
        ("reference", reference, REFERENCE_DTYPE),
    ):
        replay = _replay_plan(plan) if "train/forward" in legs else None
        tasks = _missing_tasks(run, plan, legs, shard, study=replay is not None)
        if not legs or not (tasks or _is_unnamed(run, name)):
            continue
        if not plan.routing and any(task.leg == "train/replay" for task in tasks):
            raise ConfigError(
                "train/replay needs recorded routes", hint="record with routing, or leave the leg out"
            )
        job = ScoreJob(
            run=run.path.resolve(),
            scorer=plan.config.train.scorer,
            spec={
                "model_path": str(plan.train_model.path),
                "dtype": dtype,
                "num_moe_layers": plan.facts.num_moe_layers if plan.routing else 0,
                "top_k": plan.facts.top_k or 0,
                "options": plan.config.train.options,
                "trust_remote_code": plan.config.trust_remote_code,
                "max_sequence_len": plan.max_model_len,
            },
            temperature=plan.config.sampling.temperature,
            routing=plan.routing,
            keep_sets=plan.keep_sets,
            tasks=tasks,
            replay=replay,
        )
        follow = _follow(plan, tasks, shard, watcher, f"{plan.config.train.scorer} {dtype}")
        take = execute if tasks else run_worker
        _note(run, name, take(job, run.log_path(shard.log_name(name)), follow))
    if missing := missing_parts(run, plan.train_legs(), plan.num_parts):
        watcher.message(f"shard {shard} is done; {name_parts(missing)} of other shards not there yet")
        return
    with run.edit_manifest() as manifest:
        manifest["stages"]["score"] = "done"


def planned_stages(
    run: RunDirectory, plan: RunPlan, legs: tuple[Leg, ...], shard: Shard = WHOLE
) -> list[tuple[str, int]]:
    """The stages that `record` and `score` will go through, in order, each with its sequences that are not on disk.

    Args:
        run: Where to.
        plan: What.
        legs: Which legs are to be taken.
        shard: Which of the parts.
    """
    study = "train/forward" in legs and _replay_plan(plan) is not None
    tasks = _missing_tasks(run, plan, legs, shard, study=study)
    # The reference has a model of its own, which is loaded after all else is scored.
    tasks = tuple(sorted(tasks, key=lambda task: task.leg == "train/reference"))
    return [(task.leg, _sequences(plan, task)) for task in tasks]


def _sequences(plan: RunPlan, task: Task) -> int:
    todo = sum(plan.part_sequences(part) for part in task.parts)
    return min(todo, REFIT_SEQUENCES) if task.leg == REFIT_LEG else todo


def _replay_plan(plan: RunPlan) -> ReplayPlan | None:
    if not plan.routing or not scorers.get(plan.config.train.scorer).item.capabilities().replay:
        return None
    return plan_replay(
        plan.config.train.options,
        num_sequences=plan.num_sequences,
        num_layers=plan.facts.num_moe_layers,
    )


def _missing_tasks(
    run: RunDirectory, plan: RunPlan, legs: tuple[Leg, ...], shard: Shard, *, study: bool = False
) -> tuple[Task, ...]:
    tasks = []
    for leg in legs:
        files = run.leg_files(leg, plan.num_parts)
        parts = tuple(part for part, path in enumerate(files) if shard.holds(part) and not path.is_file())
        if parts:
            tasks.append(Task(leg=leg, parts=parts, sequences=REFIT_SEQUENCES if leg == REFIT_LEG else None))
    own = filter(shard.holds, range(plan.num_parts))
    studied = [part for part in own if study and not run.replay_part(part).is_file()]
    if studied:
        tasks.append(Task(leg=STUDY, parts=tuple(studied)))
    return tuple(tasks)


def _follow(
    plan: RunPlan, tasks: tuple[Task, ...], shard: Shard, watcher: Watcher, what: str
) -> Callable[[dict[str, Any]], None]:
    """Turns a worker's events into calls of the watcher: legs run one after the other."""
    parts_left = {task.leg: len(task.parts) for task in tasks}

    def start(leg: str) -> None:
        todo = _sequences(plan, next(task for task in tasks if task.leg == leg))
        whole = sum(plan.part_sequences(part) for part in range(plan.num_parts) if shard.holds(part))
        total = todo if leg == REFIT_LEG else whole
        watcher.stage_started(leg, total, total - todo, what)

    def on_event(event: dict[str, Any]) -> None:
        match event["event"]:
            case "loading":
                watcher.message(f"starting {what}")
            case "leg":
                start(event["leg"])
            case "message":
                watcher.message(event["text"])
            case "progress":
                watcher.stage_progress(event["leg"], event["sequences"], event["tokens"])
            case "part":
                parts_left[event["leg"]] -= 1
                if not parts_left[event["leg"]]:
                    watcher.stage_finished(event["leg"])

    return on_event


def _is_unnamed(run: RunDirectory, name: str) -> bool:
    """Whether nothing is known of an engine: it was killed after its last part and before it could say what it is.

    It is then started once more, with nothing to do but to say so.
    """
    return run.read_manifest()["engines"].get(name) is None


def _note(run: RunDirectory, name: str, facts: dict[str, Any]) -> None:
    with run.edit_manifest() as manifest:
        noted = redact(facts)
        held = manifest["engines"].get(name)
        if held is not None and manifest.get("shards") and (different := differing_facts(held, noted)):
            # One shard's engine is not another's: whoever reads the result has to know.
            noted["details"] = {**noted.get("details", {}), "differs": different}
        manifest["engines"][name] = noted
