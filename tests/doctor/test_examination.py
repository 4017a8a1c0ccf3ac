"""The whole of it: one page, an exit code, no secret, and an end in any case."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doctor.bench import Bench
from fakes.canaries import found
from fakes.machine import free_port
from fakes.upstream import ScriptedUpstream
from tidegate import __version__
from tidegate.cli.verbs.doctor import EXIT_CODES, report_json, show_report
from tidegate.core.problems import Severity
from tidegate.core.settings import HeaderSource, Upstream
from tidegate.doctor import examination, upstreams
from tidegate.doctor.examination import Check, Examination
from tidegate.doctor.findings import finding
from tidegate.machine.processes import is_watchdog

KEY = "sk-canary-0123456789-abcdefghij"


def doctor(bench: Bench, *flags: str, **environ: str) -> tuple[int, dict[str, Any], str]:
    """`tidegate doctor` as a process of its own: the code, the page of JSON, and all it said."""
    places = bench.places
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tidegate", "doctor", "--json", *flags),
            *("--config", str(places.config_file)),
            *("--state-dir", str(places.state_dir), "--runtime-dir", str(places.runtime_dir)),
        ],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stdout + done.stderr


@pytest.fixture
def bench(
    tmp_path: Path, scripted_upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """Good places, and an upstream that does what the model's name says."""
    return Bench(tmp_path, scripted_upstream, monkeypatch)


def config_for(bench: Bench, model: str, more: str = "") -> None:
    """An upstream, and an alias for the model that is to be asked."""
    bench.load(
        f'listen = "127.0.0.1:0"\n[[upstream]]\nname = "box"\nurl = "{bench.upstream.url}"\n{more}'
        f'[[model]]\nname = "fast"\ntargets = ["box/{model}"]\n'
    )


def test_an_upstream_that_answers_is_told_with_its_speed(bench: Bench) -> None:
    """It was really asked: for a few tokens, of the model that clients are led to."""
    config_for(bench, "numbered:10:5")
    _, page, _ = doctor(bench)
    (check,) = (each for each in page["checks"] if each["name"] == "upstream box")
    assert check["problems"] == []
    assert "numbered:10:5 began after" in check["text"]
    assert "tokens/s" in check["text"]
    (seen,) = bench.upstream.seen("numbered:10:5")
    assert json.loads(seen.body)["max_tokens"] == upstreams.MOST_LOCAL


def test_who_asks_for_no_tokens_gets_none(bench: Bench) -> None:
    """Nothing is posted then; it tells what the upstream itself lists."""
    bench.upstream.listed.append("other")
    config_for(bench, "ok")
    _, page, _ = doctor(bench, "--no-tokens")
    (check,) = (each for each in page["checks"] if each["name"] == "upstream box")
    assert check["text"] == "box lists other; it was not asked for tokens"
    assert not [seen for seen in bench.upstream.requests if seen.method == "POST"]


def test_an_error_ends_with_2_and_hides_no_other_check(bench: Bench) -> None:
    """Two things are wrong, and both are told."""
    config_for(bench, "status:500")
    bench.places.state_dir.chmod(0o777)
    code, page, _ = doctor(bench)
    assert code == 2
    assert page["worst"] == "error"
    ids = {problem["id"] for problem in page["problems"]}
    assert {"upstream-error:box", "directory-exposed:state"} <= ids


def test_a_config_that_cannot_be_read_is_a_finding(bench: Bench) -> None:
    """And everything that does not depend on it is looked at all the same."""
    bench.load("listen = [")
    code, page, _ = doctor(bench)
    assert code == 2
    assert "config-bad" in {problem["id"] for problem in page["problems"]}
    assert {"memory", "disk", "clock"} <= {check["name"] for check in page["checks"]}


def test_a_config_with_nonsense_in_it_is_not_followed(bench: Bench) -> None:
    """What `check` refuses leads nowhere: neither to a probe nor to a defect."""
    bench.load('listen = "nowhere"\n[[upstream]]\nname = "box"\nurl = "http://x:99999"\n')
    _, page, _ = doctor(bench)
    assert {each["id"] for each in page["problems"]} >= {"config-bad"}
    assert not {"unfinished:upstream box", "config-bad:nowhere"} & {
        each["id"] for each in page["problems"]
    }


class _Echo(http.server.BaseHTTPRequestHandler):
    """Repeats the key that it was sent wherever it can: an upstream that tells secrets."""

    def do_POST(self) -> None:
        key = self.headers["Authorization"]
        body = json.dumps({"error": {"message": f"bad key {key}"}}).encode()
        self.send_response(400, f"no {key}")
        self.send_header("Location", f"http://127.0.0.1/{key}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nothing on the terminal of the tests."""


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """Such an upstream's URL."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_key_is_ever_printed(bench: Bench) -> None:
    """Not even when the upstream says it back, in its status, its headers and its body."""
    with echo() as url:
        bench.load(
            f'listen = "127.0.0.1:0"\n[[upstream]]\nname = "box"\nurl = "{url}"\n'
            'api_key_env = "BOX_KEY"\n[[model]]\nname = "m"\ntargets = ["box/m"]\n'
        )
        code, _, said = doctor(bench, BOX_KEY=KEY)
    assert code == 2
    assert "upstream-error:box" in said
    assert not found({"key": KEY}, {"doctor": said})


def test_what_may_cost_money_is_asked_for_less(bench: Bench) -> None:
    """A key that leaves the house: four tokens, and it is said."""
    away = Upstream(name="cloud", url="https://api.example.com/v1")
    assert upstreams.is_paid(away, KEY)
    assert not upstreams.is_paid(away, None)
    for at_home in ("http://192.168.1.9:8080", "http://127.0.0.1:1234", "http://box.lan:8080",
                    "unix:/run/llama.sock"):  # fmt: skip
        assert not upstreams.is_paid(Upstream(name="box", url=at_home), KEY)
    bench.monkeypatch.setattr(upstreams, "is_paid", lambda *_: True)
    probe = bench.probe("numbered:10:1", KEY)
    (seen,) = bench.upstream.seen("numbered:10:1")
    assert json.loads(seen.body)["max_tokens"] == upstreams.MOST_PAID
    assert "asked of its account" in probe.text


def test_an_upstream_is_asked_with_its_headers_and_by_name(bench: Bench) -> None:
    """As the gateway would ask it: else a gate in front of it would refuse the doctor alone."""
    box = Upstream(
        name="box",
        url=bench.upstream.url,
        headers={"X-Title": "at home", "X-Gate": HeaderSource(env="GATE")},
    )
    probe = upstreams.probe(box, None, headers={"X-Gate": "open sesame"}, wanted="numbered:3:1")
    assert probe.problem is None
    (seen,) = bench.upstream.seen("numbered:3:1")
    assert (seen.headers["x-title"], seen.headers["x-gate"]) == ("at home", "open sesame")
    assert seen.headers["user-agent"] == f"tidegate-doctor/{__version__}"


def test_certificates_that_cannot_be_used_are_told(bench: Bench) -> None:
    """The doctor trusts the authorities that the gateway trusts, and no others."""
    box = Upstream(name="box", url="https://127.0.0.1:1", ca_file="ca.pem")
    problem = upstreams.probe(box, None, authority="").problem
    assert problem is not None
    assert "ca_file" in problem.cause


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("ok", None),
        ("crlf", None),
        ("odd-fields", None),
        ("no-terminal:1", None),
        ("headers-then-silent", "upstream-silent"),
        ("stall:2", "upstream-silent"),
        ("comments", "upstream-silent"),
        ("eof", "upstream-error"),
        ("abort", "upstream-error"),
        ("garbage", "upstream-error"),
        ("big-head", "upstream-error"),
        ("drop:2", "upstream-error"),
        ("error-first", "upstream-error"),
        ("error-middle", "upstream-error"),
        ("html:502", "upstream-error"),
        ("redirect", "upstream-error"),
        ("huge-event", "upstream-error"),
        ("status:403", "upstream-key-refused"),
    ],
)
def test_whatever_an_upstream_does_ends_in_time_and_has_a_name(
    bench: Bench, script: str, kind: str | None
) -> None:
    """Well or badly, and never with a stack trace."""
    problem = bench.probe(script, answer_s=1.0).problem
    assert (problem.id.partition(":")[0] if problem else None) == kind


def test_without_tokens_a_wanted_model_is_no_proof_of_an_upstream() -> None:
    """It is asked for its list even where an alias names its model, and nothing is made up."""
    gone = Upstream(name="box", url=f"http://127.0.0.1:{free_port()}")
    probe = upstreams.probe(gone, None, wanted="m", asks_tokens=False)
    assert probe.problem is not None
    assert probe.problem.id == "upstream-unreachable:box"
    assert probe.text == ""


def test_an_upstream_that_drips_is_silent_in_time(bench: Bench) -> None:
    """A byte now and then is no answer, and must not be waited for as long as it lasts."""
    over = threading.Event()

    class Dripping(_Echo):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(b"d")

    bench.monkeypatch.setattr(sys.modules[__name__], "_Echo", Dripping)
    with echo() as url:
        try:
            probe = upstreams.probe(Upstream(name="box", url=url), None, wanted="m", answer_s=0.5)
        finally:
            over.set()
    assert probe.problem is not None
    assert probe.problem.id == "upstream-silent:box"


def test_a_newer_model_is_asked_in_its_own_words(bench: Bench) -> None:
    """Where max_tokens is refused by the name of its successor, that is tried."""
    asked: list[dict[str, Any]] = []

    class Newer(_Echo):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            is_new = "max_completion_tokens" in asked[-1]
            body = (
                b'data: {"choices":[{"delta":{"content":"one"}}]}\n\ndata: [DONE]\n\n'
                if is_new
                else b'{"error":{"message":"use max_completion_tokens instead"}}'
            )
            self.send_response(200 if is_new else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    bench.monkeypatch.setattr(sys.modules[__name__], "_Echo", Newer)
    with echo() as url:
        probe = upstreams.probe(Upstream(name="cloud", url=url), None, wanted="gpt")
    assert probe.problem is None
    assert [sorted(each.keys() & {"max_tokens", "max_completion_tokens"}) for each in asked] == [
        ["max_tokens"],
        ["max_completion_tokens"],
    ]


def test_a_defect_in_one_check_hides_no_other() -> None:
    """It is told as unfinished, without its text: that might hold anything."""

    def bad() -> tuple[str, list[Any]]:
        raise RuntimeError(KEY)

    report = examination.run([("bad", bad), ("good", lambda: ("well", []))], time.monotonic() + 30)
    assert [each.id for each in report.problems] == ["unfinished:bad"]
    assert report.checks[1].text == "well"
    assert KEY not in report_json(report)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ([], 0),
        (["service-none"], 0),
        (["service-none", "disk-low"], 1),
        (["disk-low", "disk-exhausted", "service-none"], 2),
    ],
)
def test_the_exit_code_is_that_of_the_worst(kinds: list[str], code: int) -> None:
    """Notes alone are no reason for a script to stop."""
    problems = [finding(kind, "cause", "fix") for kind in kinds]
    report = Examination(checks=[Check(name="x", text="", problems=problems)])
    assert EXIT_CODES[report.worst] == code
    page = json.loads(report_json(report))
    assert page["counts"]["warning"] == kinds.count("disk-low")


def test_the_page_has_a_line_for_what_is_well_and_a_fix_for_what_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And an escape sequence from elsewhere does not reach the terminal."""
    problem = finding("upstream-error", "\x1b]0;evil\x07 broke off", "see its own log", "box")
    show_report(
        Examination(
            checks=[
                Check(name="disk", text="there is room"),
                Check(name="upstream box", text="", problems=[problem]),
            ]
        )
    )
    said = capsys.readouterr().out
    assert "ok       disk          there is room" in said
    assert "error    upstream box" in said
    assert "→ see its own log  [upstream-error:box]" in said
    assert "Found: 1 error." in said
    assert "\x1b" not in said


def test_every_severity_has_an_exit_code() -> None:
    """Also one that is added later."""
    assert set(EXIT_CODES) == {None, *Severity}


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["/usr/bin/tidegate", "run"], True),
        (["/opt/venv/bin/python3", "/opt/venv/bin/tidegate", "run", "--park"], True),
        (["python3.11", "-I", "-m", "tidegate", "run"], True),
        (["sudo", "tidegate", "run"], False),
        (["tidegate", "doctor"], False),
        (["vim", "tidegate", "run"], False),
        ([], False),
    ],
)
def test_a_running_tidegate_is_known_by_its_words(words: list[str], is_one: bool) -> None:
    """And what started it is none."""
    assert is_watchdog(words) is is_one


def test_a_full_file_system_is_found_for_real(tmp_path: Path) -> None:
    """One of two mebibytes, mounted for this test alone."""
    script = (
        f"mount -t tmpfs -o size=2m none {tmp_path} && {sys.executable} -c '"
        "from pathlib import Path; from tidegate.doctor.files import check_disk; "
        f'print([p.id for p in check_disk("state", Path("{tmp_path}/not/made/yet"))])\''
    )
    try:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert done.stdout.strip() == "['disk-exhausted:state']", done.stderr


def test_beside_a_running_one_its_address_is_its_own(
    gateway: Any, scripted_upstream: ScriptedUpstream
) -> None:
    """The real command against the real daemon: no port is taken, no upstream is missing."""
    running = gateway(
        f'[[upstream]]\nname = "box"\nurl = "{scripted_upstream.url}"\n'
        '[[model]]\nname = "fast"\ntargets = ["box/ok"]\n'
    )
    done = running.command("doctor", "--json")
    page = json.loads(done.stdout)
    by_name = {check["name"]: check for check in page["checks"]}
    assert by_name["addresses"]["problems"] == []
    assert by_name["upstream box"]["problems"] == []
    assert "is serving" in by_name["running"]["text"]
    assert not {"daemon-not-running", "daemon-silent"} & {each["id"] for each in page["problems"]}
