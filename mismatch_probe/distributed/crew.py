"""A crew of workers shares the parts of one job: each takes the next part when it is free, a lost one is replaced.

Whichever worker does a part, the part is the same: it is sampled or scored as a batch of its own with seeds of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mismatch_probe.errors import EngineKilledError, WorkerLostError
from mismatch_probe.stages.job import Task
from mismatch_probe.stages.refit_leg import REFIT_LEG
from mismatch_probe.stages.shard import differing_facts

OnEvent = Callable[[dict[str, Any]], None]
_SAMPLING = "rollout/decode"
_LOOK_S = 0.2
_GRACE_S = 10


class CrewWorker(Protocol):
    """Holds one engine, here or elsewhere."""

    def where(self) -> str:
        """Where it is, for a message; raises as `work`."""
        ...

    def work(self, task: Task) -> Iterator[dict[str, Any]]:
        """Does a task of one part and yields its events.

        Raises:
            WorkerLostError: What held the engine is gone.
            EngineKilledError: The engine's process is gone.
            MismatchProbeError: What the engine raised.
        """
        ...

    def close(self) -> dict[str, Any]:
        """Ends the engine and returns its facts; raises as `work`."""
        ...

    def stop(self) -> None:
        """Ends it whatever it is doing; nothing happens to one that is gone."""
        ...


class _Board:
    """Which parts are to be done, which are in hand, and whether anything went wrong; all under one lock."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._waiting = [task.model_copy(update={"parts": (part,)}) for task in tasks for part in task.parts]
        self._in_hand: list[Task] = []
        self._changed = threading.Condition()
        self.failure: BaseException | None = None

    def take(self) -> Task | None:
        """The next task that can be done, after waiting for one; None once nothing is left or something failed."""
        with self._changed:
            while True:
                if self.failure is not None or not (self._waiting or self._in_hand):
                    return None
                ready = next((task for task in self._waiting if self._is_ready(task)), None)
                if ready is not None:
                    self._waiting.remove(ready)
                    self._in_hand.append(ready)
                    return ready
                self._changed.wait()

    def _is_ready(self, task: Task) -> bool:
        if task.leg == REFIT_LEG:
            # A load may break its engine: it comes after everything else.
            return len(self._waiting) == 1 and not self._in_hand
        sampled = (_SAMPLING, task.parts)
        return task.leg == _SAMPLING or all(
            (t.leg, t.parts) != sampled for t in self._waiting + self._in_hand
        )

    def done(self, task: Task) -> None:
        """The task is on disk."""
        with self._changed:
            self._in_hand.remove(task)
            self._changed.notify_all()

    def give_back(self, task: Task) -> None:
        """The task has to be done again, before anything else."""
        with self._changed:
            self._in_hand.remove(task)
            self._waiting.insert(0, task)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Ends the work of all; the first error is kept."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()


class Crew:
    """Workers on one job.

    Args:
        tasks: What to do; every part of every task is handed over by itself, in this order. A part is read by a leg of
            the rollout engine only once it was sampled, and `rollout/refit` comes last.
        size: How many workers.
        hire: Starts a worker in the place with this number; raises as `CrewWorker.work`.
        on_event: Called with every event, never by two threads at once. A part that has to be done again takes its
            progress back.
        max_restarts: How many lost workers are replaced, over all places; the next loss is an error.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        size: int,
        hire: Callable[[int], CrewWorker],
        on_event: OnEvent,
        max_restarts: int,
    ) -> None:
        self._board = _Board(tasks)
        self._size = size
        self._hire = hire
        self._send = on_event
        self._restarts_left = max_restarts
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self._workers: dict[int, CrewWorker] = {}
        self._facts: dict[int, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """Does everything and ends the workers.

        Returns:
            Facts of the engine in the first place that did anything; `details.crew` counts those that did. Facts that
            are not the same everywhere are a message among the events.

        Raises:
            MismatchProbeError: What an engine raised, or the loss of more workers than may be replaced.
        """
        threads = [
            threading.Thread(target=self._serve, args=(place,), daemon=True) for place in range(self._size)
        ]
        try:
            for thread in threads:
                thread.start()
            while self._board.failure is None and any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_LOOK_S)
        except BaseException as error:
            self._board.fail(error)
            raise
        finally:
            # After a failure nobody waits for the parts that others have in hand.
            for worker in list(self._workers.values()):
                worker.stop()
            for thread in threads:
                thread.join(_GRACE_S)
        if self._board.failure is not None:
            raise self._board.failure
        return self._settled_facts()

    def _serve(self, place: int) -> None:
        try:
            while (task := self._board.take()) is not None:
                self._do(place, task)
            worker = self._workers.get(place)
            if worker is not None and self._board.failure is None:
                self._close(place, worker)
        except BaseException as error:
            # Whatever ends this thread has to end the others too; `run` raises it where the caller is.
            self._board.fail(error)

    def _do(self, place: int, task: Task) -> None:
        sequences = tokens = 0
        try:
            if place not in self._workers:
                self._tell({"event": "loading"})
                self._workers[place] = self._hire(place)
                where = self._workers[place].where()
                self._tell({"event": "message", "text": f"worker {place + 1}: {where}"})
            for event in self._workers[place].work(task):
                if event["event"] == "progress":
                    sequences, tokens = sequences + event["sequences"], tokens + event["tokens"]
                self._tell(event)
        except (WorkerLostError, EngineKilledError) as error:
            if self._board.failure is not None:
                return
            self._lose(place, task, error)
            if sequences or tokens:
                self._tell({"event": "progress", "leg": task.leg, "sequences": -sequences, "tokens": -tokens})
            self._board.give_back(task)
            return
        self._board.done(task)

    def _lose(self, place: int, task: Task, error: WorkerLostError | EngineKilledError) -> None:
        """Lets a worker go; raises where it is not to be replaced."""
        lost = self._workers.pop(place, None)
        if lost is not None:
            lost.stop()
        if task.leg == REFIT_LEG and isinstance(error, EngineKilledError):
            # That the engine dies of a load is what the leg is there to find.
            raise error
        with self._lock:
            self._restarts_left -= 1
            if self._restarts_left < 0:
                raise error
        self._tell(
            {"event": "message", "text": f"{error.message}: {task.leg} part {task.parts[0]} is done again"}
        )

    def _close(self, place: int, worker: CrewWorker) -> None:
        try:
            self._facts[place] = worker.close()
        except (WorkerLostError, EngineKilledError) as error:
            # All it did is on disk.
            self._tell({"event": "message", "text": error.message})
        finally:
            worker.stop()
            del self._workers[place]

    def _tell(self, event: dict[str, Any]) -> None:
        """Sends an event; that engines load and that a leg begins is news once."""
        with self._lock:
            if event["event"] in ("loading", "leg"):
                news = event.get("leg", "")
                if news in self._begun:
                    return
                self._begun.add(news)
            self._send(event)

    def _settled_facts(self) -> dict[str, Any]:
        if not self._facts:
            raise WorkerLostError(
                "every worker was lost after its last part",
                hint="run it again with --resume: the parts are on disk",
            )
        first = self._facts[min(self._facts)]
        different = sorted({name for facts in self._facts.values() for name in differing_facts(first, facts)})
        if different:
            self._tell({"event": "message", "text": f"the workers' engines differ in {', '.join(different)}"})
        details = {**first.get("details", {}), "crew": len(self._facts)}
        return {**first, "details": {**details, "differs": different} if different else details}
