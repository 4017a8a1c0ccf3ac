"""Evidence: what is written down before the guard recycles or kills, and for a client.

    gather -> what can be seen from outside, at once -> each ready worker is asked (1 s at most)
    -> the document is written by a thread -> those that asked are told the path, or None

The loop never waits. Asking a worker has its limit, and the disk, like everything else that may
take its time, belongs to a thread. On an SSD 0.75 MiB are put together, written and synced in 6 to
20 ms, of which the loop itself spends 2 to 10 (measured); a tired SD card takes seconds, and a
network disk that is away takes for ever. After `WRITE_LIMIT_S` no client waits for the thread
any more, and until it is done nothing else is written.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tidegate import __version__
from tidegate.config import LoadedConfig
from tidegate.core import decoding
from tidegate.core.memory.decision import Decision, Inputs
from tidegate.core.protocol.status import Status
from tidegate.core.protocol.worker import Inspect, Inspected
from tidegate.core.settings import KIB
from tidegate.machine.heap import heap_trimmer
from tidegate.machine.signals import start_without_signals
from tidegate.watchdog.guard import bundle, contents, decision_log, kernel
from tidegate.watchdog.guard.samples import COLUMNS, Samples
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

LIMIT_S = 1.0  # for the workers' answers
WRITE_LIMIT_S = 1.5  # after both, what waits goes on without a bundle
POLL_S = 0.02  # while a client waits for a thread that writes
STUCK_POLL_S = 1.0  # when they no longer do
CLOSE_LIMIT_S = 0.5
MAX_WAITING = 4  # bundles that wait for the disk
MAX_ASKERS = 64  # that wait for one bundle; beyond them none is told
DECISION_BYTES = 128 * KIB  # of the decision log's end: some 60 decisions
_log = logging.getLogger(__name__)

Done = Callable[[Path | None], object]


@dataclass(slots=True, eq=False)
class _Case:
    """One bundle on its way."""

    kind: str
    reason: str
    at: float  # Unix seconds
    sections: dict[str, bundle.Section]
    secrets: list[str]
    why: list[dict[str, object]]
    done: list[Done] = field(default_factory=list)
    request: int = 0
    deadline_s: float = 0.0  # for the answers, then for the writing
    asked: set[int] = field(default_factory=set)  # generations
    gone: set[int] = field(default_factory=set)
    answers: dict[int, Inspected] = field(default_factory=dict)
    path: Path | None = None
    trouble: str | None = None
    thread: threading.Thread | None = None

    @property
    def is_answered(self) -> bool:
        return self.asked <= self.gone | self.answers.keys()


class Evidence:
    """Gather bundles, and never wait. `tick` it when `next_s` says so; `close` it when done."""

    def __init__(
        self,
        *,
        generations: Generations,
        state_dir: Path,
        status: Callable[[], Status],
        config: Callable[[], LoadedConfig | None],
        samples: Samples,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written = 0  # bundles
        self._generations = generations
        self._state_dir = state_dir
        self._status = status
        self._config = config
        self._clock = clock
        self._samples = samples
        self._request = 0
        self._asking: _Case | None = None
        self._waiting: deque[_Case] = deque()  # for the disk
        self._writing: _Case | None = None
        self._trim = heap_trimmer()

    def __repr__(self) -> str:
        return f"<Evidence written={self.written} pending={self.is_pending}>"

    @property
    def is_pending(self) -> bool:
        """Tell whether a bundle is on its way that a client may wait for."""
        writing = self._writing
        is_written = writing is None or not writing.done
        return self._asking is not None or bool(self._waiting) or not is_written

    def sampled(self, inputs: Inputs, decision: Decision) -> None:
        """Remember a sample of memory."""
        serving = self._generations.serving
        self._samples.add(
            inputs.now_s,
            time.time(),
            used_bytes=inputs.reading.used_bytes,
            worker_rss_bytes=serving.beat.rss_bytes if serving and serving.beat else 0,
            ledger_bytes=inputs.reading.ledger_bytes,
            level=decision.level,
            unexplained_bytes=decision.unexplained_bytes,
        )

    # --- gathering --------------------------------------------------------------------------------

    def gather(self, kind: str, reason: str, done: Done | None = None) -> None:
        """Ask the workers, and write when they have answered or `LIMIT_S` is over.

        A client that asks while workers are being asked shares that bundle. `done` gets its path,
        or None if it could not be written, which is in the log.
        """
        if (case := self._asking) is not None:
            if len(case.why) < MAX_ASKERS:
                case.why.append(
                    {"kind": kind, "reason": contents.text_without_keys(reason, case.secrets)}
                )
                case.done.append(done or _no_client)
            return
        case = self._asking = self._open(kind, reason)
        case.done.append(done or _no_client)
        self._request += 1
        case.request = self._request
        case.deadline_s = self._clock() + LIMIT_S
        workers = self._generations.ready()
        case.asked = {worker.number for worker in workers}
        for worker in workers:
            self._generations.send(worker, Inspect(request=case.request))
        if case.is_answered:
            self._all_answered()

    def gather_now(self, kind: str, reason: str) -> None:
        """Write what can be seen from outside, of workers that would not answer."""
        case = self._open(kind, reason)
        case.done.append(_no_client)
        self._write(case)

    def on_inspected(self, worker: WorkerHandle, answer: Inspected) -> None:
        """Take in what a worker shows of its inside."""
        case = self._asking
        if case is None or answer.request != case.request or worker.number not in case.asked:
            return  # too late, it is shown as silent
        case.answers[worker.number] = answer
        if case.is_answered:
            self._all_answered()

    def worker_gone(self, number: int) -> None:
        """Note that generation `number` will answer no more."""
        if (case := self._asking) is not None:
            case.gone.add(number)
            if case.is_answered:
                self._all_answered()

    def next_s(self) -> float | None:
        """Tell when `tick` has something to do; monotonic seconds."""
        due = [self._asking.deadline_s] if self._asking else []
        if self._writing is not None:
            due.append(self._clock() + (POLL_S if self._writing.done else STUCK_POLL_S))
        return min(due, default=None)

    def tick(self, now_s: float) -> None:
        """Stop waiting for workers that are silent, and see how far the writing is."""
        if self._asking is not None and now_s >= self._asking.deadline_s:
            self._all_answered()
        if (case := self._writing) is not None:
            assert case.thread is not None
            if not case.thread.is_alive():
                self._writing = None
                self._finish(case)
                self._write_next()
            elif now_s >= case.deadline_s:
                self._give_up_waiting(case)

    def close(self) -> None:
        """Let what is on its way be finished, within a moment."""
        if self._asking is not None:
            self._all_answered()
        over_s = time.monotonic() + CLOSE_LIMIT_S
        while (case := self._writing) is not None and case.thread is not None:
            case.thread.join(max(0.0, over_s - time.monotonic()))
            if case.thread.is_alive():
                return  # it goes with the process
            self.tick(self._clock())

    def _all_answered(self) -> None:
        case, self._asking = self._asking, None
        assert case is not None
        self._write(case)

    # --- writing ----------------------------------------------------------------------------------

    def _write(self, case: _Case) -> None:
        case.sections |= _inside(case)
        stuck = self._writing is not None and not self._writing.done
        if stuck or len(self._waiting) >= MAX_WAITING:
            case.trouble = "the disk has not taken the last one yet"
            self._finish(case)
            return
        self._waiting.append(case)
        self._write_next()

    def _write_next(self) -> None:
        if self._writing is not None or not self._waiting:
            return
        case = self._waiting.popleft()
        case.deadline_s = self._clock() + WRITE_LIMIT_S
        case.thread = threading.Thread(
            target=self._write_slowly, args=(case,), name="evidence", daemon=True
        )
        try:
            start_without_signals(case.thread)
        except RuntimeError as error:  # out of threads
            case.trouble = str(error)
            self._finish(case)
            self._write_next()
        else:
            self._writing = case

    def _write_slowly(self, case: _Case) -> None:
        """Do, in a thread, everything that may wait for the disk or for a process in the kernel."""
        try:
            maps = {name: kernel.memory_map(pid) for name, pid in _pids(case).items()}
            sections = case.sections | {
                "memory_maps": maps,
                "decisions": decision_log.tail(self._state_dir, DECISION_BYTES),
            }
            sections = contents.without_keys(sections, case.secrets)
            case.path = bundle.write(self._state_dir, sections, case.kind, case.reason, case.at)
            case.sections.clear()
            self._trim()  # a megabyte or two of text
        except OSError as error:
            case.trouble = error.strerror or str(error)
        except (
            ValueError,
            TypeError,
            msgspec.MsgspecError,
            RecursionError,
            decoding.Undecodable,
        ) as error:
            case.trouble = f"it cannot be encoded: {error}"

    def _give_up_waiting(self, case: _Case) -> None:
        """Have those that wait go on. The thread stays, for nothing can end it."""
        if case.done:
            _log.error("evidence (%s) takes longer than %g s to write", case.kind, WRITE_LIMIT_S)
            self._answer(case, None)
        while self._waiting:
            late = self._waiting.popleft()
            late.trouble = "the disk has not taken the last one yet"
            self._finish(late)

    def _finish(self, case: _Case) -> None:
        if case.path is not None:
            self.written += 1
            _log.info("evidence (%s: %s) is in %s", case.kind, case.reason, case.path)
        else:
            place = self._state_dir / bundle.DIRECTORY
            trouble = case.trouble or "the writer failed"
            _log.error("no evidence (%s) could be written to %s: %s", case.kind, place, trouble)
        self._answer(case, case.path)

    def _answer(self, case: _Case, path: Path | None) -> None:
        askers, case.done = case.done, []
        for done in askers:
            done(path)

    # --- what is in it ----------------------------------------------------------------------------

    def _open(self, kind: str, reason: str) -> _Case:
        """Gather all that can be seen now, without waiting for any worker."""
        config = self._config()
        at, now_s = time.time(), self._clock()
        secrets = contents.secrets_of(config)
        reason = contents.text_without_keys(reason, secrets)
        why: list[dict[str, object]] = [{"kind": kind, "reason": reason}]
        sections: dict[str, bundle.Section] = {
            "format": bundle.FORMAT,
            "tidegate": __version__,
            "why": why,
            "when": {"utc": contents.utc(at), "unix_s": at, "monotonic_s": now_s},
            "host": contents.show_host(),
            "status": self._status(),
            "settings": contents.show_settings(config.settings) if config else None,
            "pressure": kernel.pressure(),
            "control_group": kernel.control_group(),
            "processes": {"watchdog": contents.show_process(os.getpid(), "watchdog")}
            | {f"worker {w.number}": contents.show_worker(w) for w in self._generations},
            "sample_columns": " ".join(COLUMNS),
            "samples": self._samples.rows(),
        }
        return _Case(kind, reason, at, sections, secrets, why)


def _inside(case: _Case) -> dict[str, bundle.Section]:
    """Show what the workers answered; one that did not is named."""
    workers: dict[str, object] = {}
    runs: list[dict[str, object]] = []
    for number in sorted(case.asked):
        answer = case.answers.get(number)
        if answer is None:
            why = "it ended" if number in case.gone else f"no answer within {LIMIT_S:g} s"
            workers[f"worker {number}"] = why
            continue
        workers[f"worker {number}"] = contents.show_answer(answer)
        runs += [contents.show_run(number, run, case.at) for run in answer.runs]
    return {"workers": workers or "none was asked", "runs": runs}


def _pids(case: _Case) -> dict[str, int]:
    processes = case.sections["processes"]
    assert isinstance(processes, dict)
    return {name: process["pid"] for name, process in processes.items()}


def _no_client(path: Path | None) -> None:
    """Do nothing: no client waits."""
