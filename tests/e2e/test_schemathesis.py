"""The running gateway against its own OpenAPI document.

Schemathesis brings its own pytest plugin and 90 MB; it is kept out of the environment of the other
tests. In a fixed order, without chance: each run asks the same.
"""

import http.client
import os
import re
import subprocess
from pathlib import Path

import pytest

from fakes.gateway import Gateway
from fakes.machine import wait_until
from fakes.scenario import ROOT, toml
from fakes.upstream import ScriptedUpstream

SCHEMATHESIS = ROOT / ".venv" / "schemathesis" / "bin" / "schemathesis"
HERE = Path(__file__).parent
LIMIT_S = 180.0  # it takes some 20 s


def status_of(running: Gateway, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_the_gateway_is_what_its_document_says(
    gateway, scripted_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Nothing undocumented is answered to anything, and nothing wrong is taken for right."""
    if not SCHEMATHESIS.exists():
        pytest.skip(f"{SCHEMATHESIS.relative_to(ROOT)} is not there: .ci/run brings it")
    running = gateway(toml(("box", scripted_upstream.url), rest="ask_usage = true\n"))
    told = running.command("token", "new", "test").stdout
    token = re.findall(r"tg-[A-Za-z0-9_-]+", told)[0]
    wait_until(lambda: status_of(running, "/v1/models") == 401, 10, "the token is known")
    done = subprocess.run(
        [
            str(SCHEMATHESIS),
            "--config-file",
            str(HERE / "openapi.toml"),
            "run",
            f"{running.base_url}/openapi.json",
            "--header",
            f"Authorization: Bearer {token}",
            "--generation-deterministic",
            "--max-examples",
            "25",
            "--continue-on-failure",
            "--request-timeout",
            "20",
            "--no-color",
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "openapi_hooks.py")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Authentication failed" not in done.stdout, done.stdout[-5_000:]  # all 401 is no test
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None
    assert int(tested[1]) > 30
