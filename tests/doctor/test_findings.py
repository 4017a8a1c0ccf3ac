"""Every finding there is, provoked, and named with its fix."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from errno import EHOSTUNREACH
from pathlib import Path

import msgspec
import pytest

from doctor.bench import AWAKE, GIB, GOOD_JOB, Bench, disk, job, judged, memory, running, unit
from fakes.upstream import ScriptedUpstream
from tidegate.config import ConfigError, tokens
from tidegate.core.descriptors import connection_bounds
from tidegate.core.problems import Problem, Repair, Severity
from tidegate.core.settings import MIB, DrainLimits, Limits, Settings, Upstream
from tidegate.doctor import computer, examination, files, ports, services, software, upstreams
from tidegate.doctor import running as daemon
from tidegate.doctor.findings import SEVERITIES, finding
from tidegate.machine.processes import Neighbour
from tidegate.managers import sockets
from tidegate.managers.job import Scope
from watchdog.test_repair_monitor import PROVOKED as REPAIRS

Provoke = Callable[[Bench], "list[Problem] | Iterator[Problem]"]
PROVOKED: dict[str, tuple[Provoke, str]] = {}
NEIGHBOUR = Settings(upstreams=[Upstream(name="box", url="http://192.168.1.9:8080")])


def provokes(kind: str, fix: str) -> Callable[[Provoke], Provoke]:
    """The function makes a finding of this kind, whose fix has these words."""

    def note(function: Provoke) -> Provoke:
        PROVOKED[kind] = (function, fix)
        return function

    return note


def kind_of(problem: Problem) -> str:
    """Its kind, without what it is about."""
    return problem.id.partition(":")[0]


@pytest.fixture
def bench(
    tmp_path: Path, scripted_upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """A computer on which nothing is wrong yet."""
    return Bench(tmp_path, scripted_upstream, monkeypatch)


# --- config, files and directories ------------------------------------------------------------


@provokes("config-bad", "tidegate check")
def _(bench: Bench) -> Iterator[Problem]:
    return files.check_config(bench.load("listne = 3\n"), serves=False)


@provokes("config-warning", "if it is meant")
def _(bench: Bench) -> Iterator[Problem]:
    loaded = bench.load('listen = "127.0.0.1:8433"\n', TIDEGATE_LISTEN="127.0.0.1:9999")
    return files.check_config(loaded, serves=False)


def _with_exposed_key(bench: Bench) -> str:
    key = bench.root / "key"
    key.write_text("sk-123456")
    key.chmod(0o644)
    return f'[[upstream]]\nname = "cloud"\nurl = "https://x.example"\napi_key_file = "{key}"\n'


@provokes("key-unusable", "chmod 600")
def _(bench: Bench) -> Iterator[Problem]:
    return files.check_config(bench.load(_with_exposed_key(bench)), serves=False)


@provokes("key-not-here", "same environment")
def _(bench: Bench) -> Iterator[Problem]:
    toml = '[[upstream]]\nname = "cloud"\nurl = "https://x.example"\napi_key_env = "CLOUD_KEY"\n'
    return files.check_config(bench.load(toml), serves=True)


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ('X-A = { env = "MISSING" }', "key-not-here"),
        ('X-A = { file = "missing" }', "key-not-here"),
        ('Host = "x"', "config-bad"),
    ],
)
def test_a_secret_header_is_looked_for_as_a_key_is(bench: Bench, line: str, finding: str) -> None:
    """One that this terminal lacks is the running one's; one that cannot be is a mistake."""
    toml = f'[[upstream]]\nname = "cloud"\nurl = "https://x.example"\n[upstream.headers]\n{line}'
    [problem] = files.check_config(bench.load(toml), serves=True)
    assert problem.id.partition(":")[0] == finding


@pytest.mark.parametrize("line", ["api_key_env = 7", 'api_key_env = "A"\napi_key_file = "b"'])
def test_a_mistake_about_a_key_is_a_mistake_wherever_it_is_read(bench: Bench, line: str) -> None:
    """The running one's environment does not help: what the file says is wrong."""
    toml = f'[[upstream]]\nname = "cloud"\nurl = "https://x.example"\n{line}'
    found = list(files.check_config(bench.load(toml, A="sk-123456"), serves=True))
    assert [each.id for each in found] == ["config-bad"]


def test_the_fix_of_an_exposed_key_repeats_no_key(bench: Bench) -> None:
    """People put the key itself where the name of a file belongs."""
    name = "sk-proj-0123456789abcdefghijklmnop"
    (bench.root / name).write_text("sk-123456")
    (bench.root / name).chmod(0o644)
    toml = f'[[upstream]]\nname = "cloud"\nurl = "https://x.example"\napi_key_file = "{name}"'
    [problem] = files.check_config(bench.load(toml), serves=False)
    assert problem.fix.startswith("run: chmod 600 '")
    assert name not in problem.fix + problem.cause


@provokes("tokens-unusable", "chmod 600")
def _(bench: Bench) -> Iterator[Problem]:
    path = bench.places.state_dir / "tokens"
    tokens.new(path, "laptop")
    path.chmod(0o644)
    return files.check_config(bench.load(""), serves=False)


@provokes("config-writable", "chmod go-w")
def _(bench: Bench) -> Iterator[Problem]:
    bench.load("")
    bench.places.config_file.chmod(0o666)
    return files.check_permissions(bench.places)


@provokes("credential-exposed", "chmod -R go=")
def _(bench: Bench) -> Iterator[Problem]:
    directory = bench.root / "credentials"
    directory.mkdir(mode=0o755)
    (directory / "cloud").write_text("sk-123456")
    (directory / "cloud").chmod(0o644)
    return files.check_permissions(bench.places, directory)


@provokes("directory-exposed", "chmod 700")
def _(bench: Bench) -> Iterator[Problem]:
    bench.places.state_dir.chmod(0o777)
    return files.check_permissions(bench.places)


@provokes("directory-unusable", "--runtime-dir")
def _(bench: Bench) -> Iterator[Problem]:
    connection_bounds = bench.places
    connection_bounds.runtime_dir.rmdir()
    connection_bounds.runtime_dir.write_text("not a directory")
    return files.check_permissions(connection_bounds)


@provokes("disk-exhausted", "make room")
def _(bench: Bench) -> Iterator[Problem]:
    return files.check_disk("state", bench.root, disk(10 * MIB))


@provokes("disk-low", "make room")
def _(bench: Bench) -> Iterator[Problem]:
    return files.check_disk("state", bench.root, disk(100 * MIB))


@provokes("inodes-low", "df -i")
def _(bench: Bench) -> Iterator[Problem]:
    return files.check_disk("state", bench.root, disk(GIB, files=12))


@provokes("logs-large", "remove what")
def _(bench: Bench) -> Iterator[Problem]:
    with (bench.root / "nohup.log").open("wb") as log:
        log.truncate(files.LOG_BYTES + 1)  # a hole: it takes no room here
    return files.check_logs(bench.root, ())


@provokes("journal-large", "journalctl --vacuum-size")
def _(bench: Bench) -> Iterator[Problem]:
    machine = bench.root / "journal" / "0123456789abcdef"
    machine.mkdir(parents=True)
    with (machine / "system.journal").open("wb") as journal:
        journal.truncate(files.JOURNAL_BYTES + 1)
    return files.check_logs(bench.places.state_dir, (bench.root / "journal",))


def _kept(bench: Bench, name: str = "history/history.db") -> Path:
    path = bench.places.state_dir / name
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)
    return path


@provokes("store-exposed", "chmod go=")
def _(bench: Bench) -> Iterator[Problem]:
    _kept(bench).chmod(0o640)
    return files.check_stores(bench.places)


@provokes("store-unusable", "it is made anew")
def _(bench: Bench) -> Iterator[Problem]:
    (bench.places.runtime_dir / "journal").write_text("no directory")
    return files.check_stores(bench.places)


def test_stores_that_are_as_they_should_be_are_no_finding(bench: Bench) -> None:
    """Neither where there are none yet."""
    assert list(files.check_stores(bench.places)) == []
    _kept(bench)
    _kept(bench, "journal/runs.db")
    assert list(files.check_stores(bench.places)) == []


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/etc/hostname")])
def test_what_stands_in_the_place_of_a_store_is_named(
    bench: Bench, make: Callable[[Path], None]
) -> None:
    """A directory or a link is never written to, so nothing is kept."""
    path = _kept(bench, "journal/runs.db")
    path.unlink()
    make(path)
    [problem] = files.check_stores(bench.places)
    assert problem.id == "store-unusable:journal"
    assert f"{path}: it is not a file" in problem.cause


def test_a_store_that_may_not_be_written_is_named(bench: Bench) -> None:
    """It belongs to another user, say. Root may write everywhere, and is another one for once."""
    _kept(bench).chmod(0o400)
    is_root = os.geteuid() == 0
    if is_root:
        os.setreuid(65534, 0)
    try:
        [problem] = files.check_stores(bench.places)
    finally:
        if is_root:
            os.setreuid(0, 0)
    assert "may not be written" in problem.cause


def test_a_journal_that_cannot_be_in_memory_is_warned_of(bench: Bench) -> None:
    """As `tidegate check` does; elsewhere it is meant, or is off."""
    toml = '[journal]\nplace = "memory"\n'
    places = msgspec.structs.replace(bench.places, runtime_dir=Path("/proc/nowhere"))
    [problem] = files.check_journal_place(settings_of(bench, toml), places)
    assert problem.id == "config-warning:journal.place"
    assert "/proc/nowhere is not in memory" in problem.cause
    for fine in ("", '[journal]\nplace = "disk"\n', f'{toml}keep = "off"\n'):
        assert not list(files.check_journal_place(settings_of(bench, fine), places))
    assert not list(files.check_journal_place(None, places))


def settings_of(bench: Bench, toml: str) -> Settings:
    loaded = bench.load(toml)
    assert not isinstance(loaded, ConfigError)
    return loaded.settings


# --- addresses --------------------------------------------------------------------------------


@provokes("port-taken", "end it (kill")
def _(bench: Bench) -> list[Problem]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return list(ports.check_ports([f"127.0.0.1:{taken.getsockname()[1]}"], None))


@provokes("address-not-here", "correct `listen`")
def _(bench: Bench) -> Iterator[Problem]:
    return ports.check_ports(["203.0.113.7:8433"], None)  # for documentation alone (RFC 5737)


@provokes("address-forbidden", "above 1023")
def _(bench: Bench) -> Iterator[Problem]:
    def refuse(
        address: str,
    ) -> sockets.BoundSocket:  # root, who often runs tests, may open every port
        raise sockets.ListenError("no") from PermissionError(13, "Permission denied")

    bench.monkeypatch.setattr(sockets, "bind", refuse)
    return ports.check_ports(["127.0.0.1:80"], None)


@provokes("listen-differs", "tidegate reload")
def _(bench: Bench) -> Iterator[Problem]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return ports.check_ports([f"127.0.0.1:{port}"], ["127.0.0.1:1"])


# --- upstreams --------------------------------------------------------------------------------


@provokes("upstream-unreachable", "start it")
def _(bench: Bench) -> list[Problem]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = Upstream(name="box", url=f"http://127.0.0.1:{port}")
    problem = upstreams.probe(gone, None).problem
    return [problem] if problem else []


@provokes("upstream-key-refused", "correct the key")
def _(bench: Bench) -> list[Problem]:
    return bench.asked("status:401")


@provokes("upstream-no-models", "pull or load")
def _(bench: Bench) -> list[Problem]:
    return bench.asked(None)


@provokes("upstream-error", "its own log")
def _(bench: Bench) -> list[Problem]:
    return bench.asked("status:500")


@provokes("upstream-silent", "restart it")
def _(bench: Bench) -> list[Problem]:
    return bench.asked("silent", answer_s=0.5)


@provokes("upstream-no-tokens", "another model")
def _(bench: Bench) -> list[Problem]:
    return bench.asked("no-terminal:0")


@provokes("upstream-slow", "keep the model loaded")
def _(bench: Bench) -> list[Problem]:
    bench.monkeypatch.setattr(upstreams, "SLOW_S", 0.05)
    return bench.asked("wait:100")


@provokes("upstreams-none", "[[upstream]]")
def _(bench: Bench) -> list[Problem]:
    bench.monkeypatch.setattr(upstreams, "WELL_KNOWN", ())  # this computer may well have one
    text, problems = examination._local_upstreams(asks_tokens=True)
    assert text == ""
    return problems


@provokes("local-network-refused", "Local Network")
def _(bench: Bench) -> list[Problem]:
    refused = OSError(EHOSTUNREACH, "No route to host")
    found = upstreams.unreachable("http://192.168.1.9:8080", refused, "darwin")
    return [finding(found.kind, found.cause, found.fix)]


# --- the service manager ----------------------------------------------------------------------


@provokes("service-none", "tidegate service install")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(LoadState="not-found", ActiveState="inactive"))


@provokes("service-unreadable", "sudo tidegate doctor")
def _(bench: Bench) -> list[Problem]:
    return judged(services.Service(scope=Scope.USER, unreadable="Failed to connect to bus"))


@provokes("service-failed", "tidegate logs")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(ActiveState="failed", Result="start-limit-hit"))


def test_what_ended_a_failed_service_is_told():
    """Why it ended is more than that it ended too often; a missing directory has its own remedy."""
    ended = {"ExecMainCode": "1", "ExecMainStatus": "243"}
    found = judged(unit(ActiveState="failed", Result="start-limit-hit", **ended))
    assert "credentials could not be read" in found[0].cause
    assert "install -d -m 700 /etc/tidegate/credentials" in found[0].fix
    between = unit(ActiveState="activating", SubState="auto-restart", Result="exit-code", **ended)
    assert judged(between)[0].cause.startswith("systemd starts it again: exit code 243")
    assert not judged(unit(ActiveState="activating", SubState="start"))


@provokes("service-not-enabled", "systemctl enable tidegate")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(UnitFileState="disabled"))


@provokes("service-reload-needed", "daemon-reload")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(NeedDaemonReload="yes"))


@provokes("service-drop-ins", "systemctl cat")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(DropInPaths="/etc/systemd/system/tidegate.service.d/override.conf"))


@provokes("service-stop-limit", "TimeoutStopSec=45")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(TimeoutStopUSec="10s"))


@provokes("service-not-notify", "Type=notify")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(Type="simple"))


@provokes("service-not-heard", "NotifyAccess=main")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(NotifyAccess="none"))


@provokes("service-no-watchdog", "WatchdogSec=60")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(WatchdogUSec="0"))


@provokes("service-restart", "Restart=on-failure")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(Restart="no"))


@provokes("service-oom-policy", "OOMPolicy=continue")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(OOMPolicy="stop"))


@provokes("service-memory-limit", "MemoryMax=1280M")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(MemoryMax=str(512 * MIB)))


@provokes("service-open-files", "LimitNOFILE=8448")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(LimitNOFILE="1024"))


@provokes("service-linger", "loginctl enable-linger ann")
def _(bench: Bench) -> list[Problem]:
    return judged(unit(Scope.USER, linger=False))


@provokes("launchd-throttled", "ProcessType")
def _(bench: Bench) -> list[Problem]:
    return judged(job(printed=GOOD_JOB.replace("interactive (4)", "daemon (3)")))


@provokes("launchd-agent-network", "Local Network")
def _(bench: Bench) -> list[Problem]:
    return judged(job(Scope.USER), NEIGHBOUR)


@provokes("mac-sleeps", "pmset -c sleep 0")
def _(bench: Bench) -> list[Problem]:
    return judged(job(pmset=AWAKE.replace(" 0\n", " 10\n", 1)))


# --- the computer -----------------------------------------------------------------------------


@provokes("clock-wrong", "set")
def _(bench: Bench) -> Iterator[Problem]:
    return computer.check_clock(computer.Clock(unix_s=60.0))


@provokes("clock-unsynchronised", "set")
def _(bench: Bench) -> Iterator[Problem]:
    return computer.check_clock(computer.Clock(unix_s=1.8e9, synchronised=False))


@provokes("clock-jumps", "only one program")
def _(bench: Bench) -> list[Problem]:
    def sleep(_seconds: float) -> None:
        bench.monkeypatch.setattr(computer.time, "time", lambda: 1.8e9 + 5)

    bench.monkeypatch.setattr(computer.time, "time", lambda: 1.8e9)
    return list(computer.check_clock(computer.read_clock(0.0, sleep)))


@provokes("memory-overcommit", "vm.overcommit_memory=0")
def _(bench: Bench) -> list[Problem]:
    return memory(overcommit=2)


@provokes("budget-exceeds-memory", "smaller memory.budget")
def _(bench: Bench) -> list[Problem]:
    return memory(budget_bytes=9 * GIB)


@provokes("budget-without-swap", "add swap")
def _(bench: Bench) -> list[Problem]:
    return memory(budget_bytes=5 * GIB, swap_bytes=0)


@provokes("memory-scarce", "smaller model")
def _(bench: Bench) -> list[Problem]:
    return memory(available_bytes=GIB // 2)


@provokes("descriptors-few", "ulimit -Hn 8448")
def _(bench: Bench) -> Iterator[Problem]:
    return computer.check_descriptors(1024, Settings())


# --- software, and the running one ------------------------------------------------------------


@provokes("python-old", "newer Python")
def _(bench: Bench) -> Iterator[Problem]:
    return software.check_software((3, 10, 4), [], {}, compiled=True)


@provokes("dependency-old", "--upgrade tidegate")
def _(bench: Bench) -> Iterator[Problem]:
    return software.check_software(
        (3, 11, 0), ["aiohttp>=3.14.5"], {"aiohttp": "3.9.5"}, compiled=True
    )


@provokes("aiohttp-slow", "AIOHTTP_NO_EXTENSIONS")
def _(bench: Bench) -> Iterator[Problem]:
    return software.check_software((3, 11, 0), [], {}, compiled=False)


@provokes("daemon-not-running", "tidegate start")
def _(bench: Bench) -> Iterator[Problem]:
    return daemon.check_running(daemon.ask(bench.places.runtime_dir, 1.0), "1.0")


@provokes("daemon-silent", "tidegate restart")
def _(bench: Bench) -> list[Problem]:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(bench.places.runtime_dir / "control.sock"))
        deaf.listen()
        return list(daemon.check_running(daemon.ask(bench.places.runtime_dir, 0.2), "1.0"))


@provokes("daemon-parked", "tidegate check")
def _(bench: Bench) -> Iterator[Problem]:
    return daemon.check_running(daemon.RunningDaemon(status=running("parked", reason="bad")), "1.0")


@provokes("daemon-not-ready", "wait a moment")
def _(bench: Bench) -> Iterator[Problem]:
    return daemon.check_running(daemon.RunningDaemon(status=running("starting")), "1.0")


@provokes("daemon-degraded", "tidegate status")
def _(bench: Bench) -> Iterator[Problem]:
    return daemon.check_running(
        daemon.RunningDaemon(status=running("degraded", reason="box fails")), "1.0"
    )


@provokes("daemon-other-version", "tidegate upgrade")
def _(bench: Bench) -> Iterator[Problem]:
    return daemon.check_running(daemon.RunningDaemon(status=running()), "1.1")


@provokes("two-tidegates", "tidegate stop")
def _(bench: Bench) -> Iterator[Problem]:
    others = [Neighbour(1000, "tidegate"), Neighbour(2000, "tidegate")]
    return daemon.check_running(daemon.RunningDaemon(status=running()), "1.0", others)


@provokes("unfinished", "again")
def _(bench: Bench) -> list[Problem]:
    over = threading.Event()

    def check() -> tuple[str, list[Problem]]:
        over.wait(30)
        return "", []

    try:
        return examination.run([("slow", check)], time.monotonic() + 0.1).problems
    finally:
        over.set()


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SEVERITIES)
def test_every_finding_is_provoked_and_says_its_fix(kind: str, bench: Bench) -> None:
    """One thing is wrong, one finding names it, and its fix says what to do."""
    provoke, fix = PROVOKED[kind]
    found = list(provoke(bench))
    assert [kind_of(problem) for problem in found] == [kind]
    assert found[0].severity is SEVERITIES[kind]
    assert fix in found[0].fix
    assert len(found[0].cause) > 10


def test_no_finding_is_forgotten() -> None:
    """Each kind has a test that provokes it, and no test a kind that is gone."""
    assert set(PROVOKED) == set(SEVERITIES)


def test_an_unknown_kind_is_no_finding() -> None:
    """What is not in the table cannot be told."""
    with pytest.raises(KeyError):
        finding("made-up", "cause", "fix")


def test_every_finding_is_documented() -> None:
    """docs/doctor.md has a row for each kind, under its severity, and no other."""
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    told = {}
    for severity in Severity:
        section = text.split(f"## {severity.value.capitalize()}s\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `([a-z0-9-]+)` \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
        told |= dict.fromkeys(rows, severity)
    assert told == SEVERITIES


def test_every_repair_is_documented() -> None:
    """docs/doctor.md has a row for each; and no repair has the name of another finding."""
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", text.split("## Repairs\n")[1], re.MULTILINE)
    assert rows == sorted({name.partition(":")[0] for name in REPAIRS})
    assert not set(rows) & set(SEVERITIES)


# --- nothing wrong, nothing found -------------------------------------------------------------


def test_a_good_computer_has_no_findings(bench: Bench) -> None:
    """What is as it should be is not mentioned."""
    loaded = bench.load("")
    bench.places.config_file.chmod(0o600)
    assert not list(files.check_config(loaded, serves=False))
    assert not list(files.check_permissions(bench.places))
    assert not list(files.check_disk("state", bench.root, disk(GIB)))
    assert not judged(unit())
    assert not judged(unit(Scope.USER))
    assert not judged(job())
    assert not judged(job(), NEIGHBOUR)
    assert not memory()
    assert not list(computer.check_clock(computer.Clock(unix_s=1.8e9, synchronised=True)))
    assert not list(computer.check_descriptors(100_000, Settings()))
    assert not list(daemon.check_running(daemon.RunningDaemon(status=running()), "1.0"))


@pytest.mark.parametrize(
    ("limit_s", "stop", "is_found"),
    [
        (30.0, "45s", False),
        (30.0, "34s", True),
        (120.0, "1min 30s", True),
        (120.0, "3min", False),
        (3000.0, "infinity", False),
    ],
)
def test_a_stop_limit_is_compared_with_the_managers(
    limit_s: float, stop: str, is_found: bool
) -> None:
    """Whatever the manager's spelling; one that waits for ever is enough."""
    settings = Settings(drain=DrainLimits(stop_limit_s=limit_s))
    found = [kind_of(each) for each in judged(unit(TimeoutStopUSec=stop), settings)]
    assert found == (["service-stop-limit"] if is_found else [])


def test_launchds_exit_timeout_is_a_stop_limit_too() -> None:
    """macOS sends SIGKILL after it."""
    found = judged(job(printed=GOOD_JOB.replace("exit timeout = 45", "exit timeout = 5")))
    assert [each.id for each in found] == ["service-stop-limit"]
    assert "tidegate service install --system" in found[0].fix


def test_few_connections_need_few_descriptors() -> None:
    """The limit is compared with what the config allows."""
    few = Settings(limits=Limits(max_connections=384))
    assert not list(computer.check_descriptors(1024, few))


@pytest.mark.parametrize(("files", "is_few"), [(8447, True), (8448, False)])
def test_the_doctor_counts_descriptors_as_the_daemon_does(files: int, is_few: bool) -> None:
    """Two for each of 4,096 clients and 256: one less, and a client has no place."""
    assert connection_bounds(files).clients == 4096 - is_few
    assert bool(list(computer.check_descriptors(files, Settings()))) == is_few
    assert bool(judged(unit(LimitNOFILE=str(files)))) == is_few


def test_a_disk_behind_a_closed_door_is_looked_at_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory above that may not be entered is where the looking ends, and no defect."""

    def refuse(*_: object, **__: object) -> None:  # root, who often runs tests, may enter all
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    (found,) = files.check_disk("state", tmp_path / "closed" / "state", disk(10 * MIB))
    assert str(tmp_path) in found.cause


def test_a_sleep_that_something_prevents_is_none() -> None:
    """`pmset -g` says so itself."""
    pmset = " sleep                10 (sleep prevented by caffeinate)\n"
    assert not judged(job(pmset=pmset))


def test_repairs_of_the_running_one_are_told_under_their_own_names() -> None:
    """And stand for the one word that it is degraded."""
    repair = Repair(id="disk-full", since=0.0, severity="error", cause="8 MiB are free", fix="go")
    seen = daemon.RunningDaemon(status=running("degraded", repairs=[repair]))
    found = list(daemon.check_running(seen, "1.0"))
    assert [(each.id, each.severity) for each in found] == [("disk-full", Severity.ERROR)]


def test_a_port_that_the_running_one_holds_is_its_own() -> None:
    """Also under another spelling of the same address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        held = [f"127.0.0.1:{port}"]
        assert not list(ports.check_ports([f"localhost:{port}"], held))


def test_a_port_that_another_tidegate_holds_is_told_as_that() -> None:
    """The owner is never advised to kill one of our own processes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (found,) = ports.check_ports([address], None, lambda _port: Neighbour(77, "tidegate"))
    assert "another tidegate, process 77" in found.cause
    assert "kill" not in found.fix


def test_a_tidegate_whose_process_is_hidden_is_known_by_what_it_says() -> None:
    """As another user one may not see who holds a port; its first word tells."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        def answer() -> None:
            with taken.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\ntidegate 1.0 is up\n")

        thread = threading.Thread(target=answer)
        thread.start()
        (found,) = ports.check_ports([address], None, lambda _port: None)
        thread.join()
    assert "another tidegate, of another user" in found.cause
    assert "sudo tidegate doctor" in found.fix


def test_one_that_does_not_answer_is_no_second_tidegate(bench: Bench) -> None:
    """Its process is known by its pid file."""
    (bench.places.runtime_dir / "tidegate.pid").write_text(f"{os.getpid()}\n")
    pid = daemon.pid_in(bench.places.runtime_dir)
    others = [Neighbour(os.getpid(), "tidegate")]
    found = daemon.check_running(daemon.RunningDaemon(silent=True), "1.0", others, None, pid)
    assert [each.id for each in found] == ["daemon-silent"]


def test_who_takes_a_port_is_named_by_process() -> None:
    """The real holder of a real port: this very process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (found,) = ports.check_ports([f"127.0.0.1:{taken.getsockname()[1]}"], None)
    assert f"process {os.getpid()}" in found.cause
