"""What the scenarios share: a config for fakes, and the question whether all is given back."""

import asyncio
import os
import time
from pathlib import Path

from fakes.upstream import ScriptedUpstream

# How many runs a round of the original fault has. 1000 is the full measure; 100 keeps the
# everyday run short: TIDEGATE_TEST_SCALE=1000 make test ARGS=tests/e2e
SCALE = int(os.environ.get("TIDEGATE_TEST_SCALE", "100"))
ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / ".venv" / "node" / "node_modules"


def toml(*upstreams: tuple[str, str], limits: str = "", rest: str = "") -> str:
    """A config with these (name, url) upstreams; `limits` and `rest` are lines of it."""
    tables = [f'[[upstream]]\nname = "{name}"\nurl = "{url}"\n' for name, url in upstreams]
    return f"[limits]\n{limits}\n" + "\n".join(tables) + rest


async def wait_idle(gateway, *upstreams: ScriptedUpstream, limit_s: float = 15.0) -> None:  # type: ignore[no-untyped-def]
    """Waits until nothing of any run is left: no byte, no active run, no upstream connection.

    Only a heartbeat that was sent after the call counts: an older one knows nothing yet.
    """
    start_s = time.monotonic()
    while True:
        status = gateway.status()
        is_fresh = status["worker"]["heartbeat_age_s"] < time.monotonic() - start_s
        held = {
            "ledger_bytes": status["memory"]["ledger_bytes"],
            "active": status["runs"]["active"],
            "upstream connections": sum(each.open_connections for each in upstreams),
            "upstream requests": sum(each["active"] for each in status["upstreams"]),
            "queued": sum(each["queued"] for each in status["upstreams"]),
        }
        if is_fresh and not any(held.values()):
            return
        assert time.monotonic() < start_s + limit_s, f"still held after {limit_s:g} s: {held}"
        await asyncio.sleep(0.2)
