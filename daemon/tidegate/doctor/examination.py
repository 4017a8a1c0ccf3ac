"""Runs every check of the doctor side by side, within half a minute.

Checks wait for other programs, so each has a thread of its own; one that has not come back when
the time is over is told as unfinished and no longer waited for. Nothing here changes anything.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Struct

from tidegate import __version__, config
from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.keys import read_authorities, read_headers, read_keys
from tidegate.config.places import Places, serving_dir
from tidegate.core.problems import Problem, Severity
from tidegate.core.protocol.status import Status
from tidegate.core.settings import MIB, Settings, Upstream
from tidegate.doctor import computer, files, ports, running, services, software, upstreams
from tidegate.doctor.findings import finding
from tidegate.doctor.software import are_compiled
from tidegate.machine import budget, processes

LIMIT_S = 30.0
MOST_UPSTREAMS = 20  # a thread each

Result = tuple[str, list[Problem]]


class Check(Struct, frozen=True, kw_only=True):
    """One check's result. `text` says in a line how it is when nothing is wrong."""

    name: str
    text: str
    took_s: float = 0.0
    problems: list[Problem] = []


class Examination(Struct, frozen=True, kw_only=True):
    """The results of all checks, in the order in which they are shown."""

    checks: list[Check]

    @property
    def problems(self) -> list[Problem]:
        """Return every finding."""
        return [problem for check in self.checks for problem in check.problems]

    @property
    def worst(self) -> Severity | None:
        """Return the severity of the worst finding; None when nothing was found."""
        found = {problem.severity for problem in self.problems}
        order = (Severity.ERROR, Severity.WARNING, Severity.NOTE)
        return next((severity for severity in order if severity in found), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined. `settings` is None when the config says too little to go on."""

    places: Places
    loaded: LoadedConfig | ConfigError
    settings: Settings | None
    keys: Mapping[str, str]  # by upstream; never shown
    headers: Mapping[str, Mapping[str, str]]  # the secret ones by upstream; as little shown
    authorities: Mapping[str, str]  # certificates, by `ca_file`
    daemon: running.RunningDaemon

    @property
    def status(self) -> Status | None:
        """Return the running tidegate's status."""
        return self.daemon.status


def examine(
    places: Places, *, asks_tokens: bool = True, environ: Mapping[str, str] = os.environ
) -> Examination:
    """Examine everything that can be wrong around tidegate, in at most `LIMIT_S`."""
    begun_s = time.monotonic()
    subject = read(places, environ)
    return run(checks_for(subject, asks_tokens=asks_tokens), begun_s + LIMIT_S)


def read(places: Places, environ: Mapping[str, str]) -> Subject:
    """Read the config and the running tidegate's status, on which the checks depend."""
    daemon = running.ask(serving_dir(places))
    loaded: LoadedConfig | ConfigError
    good: LoadedConfig | None
    try:
        good = loaded = config.load(places.named_config, places.state_dir, environ)
    except ConfigError as error:
        loaded, good = error, _as_far_as_good(places.config_file, environ)
    return Subject(
        places=places,
        loaded=loaded,
        settings=good.settings if good else None,
        keys=good.secrets if good else {},
        headers=good.headers if good else {},
        authorities=good.authorities if good else {},
        daemon=daemon,
    )


def _as_far_as_good(path: Path, environ: Mapping[str, str]) -> LoadedConfig | None:
    """Load what can be of a config whose keys or tokens cannot be read; None when nothing can."""
    try:
        settings = config.read_settings(path)
    except ConfigError:
        return None
    return LoadedConfig(
        settings=settings,
        secrets=read_keys(settings, path.parent, environ, []),
        headers=read_headers(settings, path.parent, environ, []),
        authorities=read_authorities(settings, path.parent, []),
        tokens=[],
        path=path,
        place=path,
        warnings=[],
    )


def checks_for(subject: Subject, *, asks_tokens: bool) -> list[tuple[str, Callable[[], Result]]]:
    """List the checks, each with its name, in the order in which they are shown."""
    checks: list[tuple[str, Callable[[], Result]]] = [
        ("running", partial(_running, subject)),
        ("config", partial(_config, subject)),
        ("files", partial(_files, subject)),
    ]
    if subject.settings is not None:
        checks.append(("addresses", partial(_ports, subject, subject.settings)))
        checks += _upstreams(subject, subject.settings, asks_tokens=asks_tokens)
    settings = subject.settings or Settings()
    return [
        *checks,
        ("service", partial(_service, subject, settings)),
        ("memory", partial(_memory, subject, settings)),
        ("clock", _clock),
        ("disk", partial(_disk, subject)),
        ("software", _software),
    ]


def run(checks: Iterable[tuple[str, Callable[[], Result]]], deadline_s: float) -> Examination:
    """Run all checks at once. One that is not over at the deadline is left alone."""
    wanted = list(checks)
    done: queue.SimpleQueue[tuple[int, Check]] = queue.SimpleQueue()
    for number, (name, check) in enumerate(wanted):
        work = partial(_work, number, name, check, done)
        threading.Thread(target=work, name=f"doctor-{name}", daemon=True).start()
    found: dict[int, Check] = {}
    while len(found) < len(wanted):
        try:
            number, each = done.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            break
        found[number] = each
    return Examination(
        checks=[found.get(n) or _unfinished(name, "in time") for n, (name, _) in enumerate(wanted)]
    )


def _work(
    number: int,
    name: str,
    check: Callable[[], Result],
    done: queue.SimpleQueue[tuple[int, Check]],
) -> None:
    begun_s = time.monotonic()
    try:
        text, problems = check()
        found = Check(name=name, text=text, problems=problems, took_s=time.monotonic() - begun_s)
    except Exception as error:  # a defect in one check must not hide the others
        found = _unfinished(name, f"because of a defect in it ({type(error).__name__})")
    done.put((number, found))


def _unfinished(name: str, why: str) -> Check:
    problem = finding(
        "unfinished",
        f'the check "{name}" was not finished {why}',
        "run doctor again; if it stays so, look at that part by hand",
        name,
    )
    return Check(name=name, text="", problems=[problem])


# --- the checks, each with what it reads ------------------------------------------------------


def _running(subject: Subject) -> Result:
    others = processes.watchdogs()
    problems = list(
        running.check_running(
            subject.daemon,
            __version__,
            others,
            subject.places.runtime_dir,
            running.pid_in(subject.places.runtime_dir) if subject.daemon.silent else None,
        )
    )
    status = subject.status
    text = "" if status is None else f"tidegate {status.version} is {status.state}"
    return text, problems


def _config(subject: Subject) -> Result:
    status = subject.status
    serves = status is not None and status.state != "parked"
    problems = [
        *files.check_config(subject.loaded, serves=serves),
        *files.check_journal_place(subject.settings, subject.places),
    ]
    if isinstance(subject.loaded, ConfigError):
        return str(subject.places.config_file), problems
    return str(subject.loaded.path or "none; the defaults are used"), problems


def _files(subject: Subject) -> Result:
    problems = [
        *files.check_permissions(subject.places),
        *files.check_stores(subject.places),
    ]
    return f"{subject.places.state_dir}, {subject.places.runtime_dir}", problems


def _ports(subject: Subject, settings: Settings) -> Result:
    if subject.daemon.silent:
        return "not looked at: the tidegate that does not answer may hold them", []
    held = subject.status.listen if subject.status else None
    return ", ".join(settings.listen), list(ports.check_ports(settings.listen, held))


def _upstreams(
    subject: Subject, settings: Settings, *, asks_tokens: bool
) -> list[tuple[str, Callable[[], Result]]]:
    if not settings.upstreams:
        return [("upstreams", partial(_local_upstreams, asks_tokens=asks_tokens))]
    return [
        (f"upstream {each.name}", partial(_upstream, subject, settings, each, asks_tokens))
        for each in settings.upstreams[:MOST_UPSTREAMS]
    ]


def _local_upstreams(*, asks_tokens: bool) -> Result:
    found = upstreams.find_local()
    if not found:
        return "", [upstreams.none_here()]
    probes = [
        upstreams.probe(
            each, None, asks_tokens=asks_tokens, answer_s=upstreams.ANSWER_S / len(found)
        )
        for each in found
    ]
    problems = [probe.problem for probe in probes if probe.problem is not None]
    return "; ".join(probe.text for probe in probes), problems


def _upstream(
    subject: Subject, settings: Settings, upstream: Upstream, asks_tokens: bool
) -> Result:
    key = subject.keys.get(upstream.name)
    headers = subject.headers.get(upstream.name, {})
    needs_key = upstream.api_key_env is not None or upstream.api_key_file is not None
    if needs_key and key is None:
        return "its key is not to be had here, so it was not asked", []
    if any(not isinstance(v, str) and name not in headers for name, v in upstream.headers.items()):
        return "its headers are not all to be had here, so it was not asked", []
    authority = None if upstream.ca_file is None else subject.authorities.get(upstream.ca_file, "")
    wanted = next(
        (
            target.partition("/")[2]
            for model in settings.models
            for target in model.all_targets
            if target.partition("/")[0] == upstream.name
        ),
        None,
    )
    probe = upstreams.probe(
        upstream,
        key,
        headers=headers,
        authority=authority,
        wanted=wanted,
        asks_tokens=asks_tokens,
    )
    return probe.text, [probe.problem] if probe.problem else []


def _service(subject: Subject, settings: Settings) -> Result:
    found = services.read()
    problems = list(services.check_services(found, settings, _budget(subject, settings)))
    loaded = [service.scope.value for service in found if service.is_loaded]
    return f"of the {' and the '.join(loaded)}" if loaded else "", problems


def _budget(subject: Subject, settings: Settings) -> int:
    if subject.status is not None and subject.status.memory.budget_bytes:
        return subject.status.memory.budget_bytes
    return budget.find(settings.memory.budget_bytes).bytes


def _memory(subject: Subject, settings: Settings) -> Result:
    used = subject.status.memory.used_bytes if subject.status else 0
    readings = computer.read_memory(_budget(subject, settings), used)
    problems = [
        *computer.check_memory(readings),
        *computer.check_descriptors(computer.hard_limit(), settings),
    ]
    text = f"the budget is {readings.budget_bytes // MIB} MiB"
    if readings.available_bytes is not None:
        text += f", {readings.available_bytes // MIB} MiB are available"
    return text, problems


def _clock() -> Result:
    return "in sync", list(computer.check_clock(computer.read_clock()))


def _disk(subject: Subject) -> Result:
    places = subject.places
    problems = [
        *files.check_disk("state", places.state_dir),
        *files.check_disk("runtime", places.runtime_dir),
        *files.check_logs(places.state_dir),
    ]
    return "there is room", problems


def _software() -> Result:
    python, requirements, versions = software.read()
    problems = software.check_software(python, requirements, versions, compiled=are_compiled())
    shown = ".".join(map(str, python))
    return f"tidegate {__version__} on Python {shown}", list(problems)
