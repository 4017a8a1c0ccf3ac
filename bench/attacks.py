"""Attack the memory of a real tidegate, and say whether it stayed within its budget.

    make attacks                                     every attack at every budget, some 15 minutes
    make attacks ARGS='--budgets 200 --only heads'   a part of it
    make attacks ARGS=--flood                        a minute of everything that clients can hold

While each attack lasts, honest clients read answers that come at the pace of a person's reading.
A row of the table is one attack on one fresh daemon with that budget:

peak       resident memory of all its processes, read from outside twenty times a second
whole      honest answers that arrived byte for byte, with their terminal marker
workers    how many were ended or died
level      the highest memory level that was seen
calm after seconds from the end of the attack until the level was 0 or 1

The exit code is 1 unless every row kept to its budget, cut no honest client, ended no worker,
and was calm within 20 s. `attackers.py` has the attacks; they and the honest clients are processes
of their own.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.gateway import Gateway, gateways
from fakes.scene import Meter, crowd, flood_upstream, python

MIB = 1024 * 1024
BUDGETS_MIB = (200, 512)
CALM_LIMIT_S = 20.0
CONFIG = """
[memory]
budget = "{budget_mib}MiB"

[[upstream]]
name = "box"
url = "{box}"

[[upstream]]
name = "silent"
url = "{silent}"

[[model]]
name = "tide:50"
targets = ["box/tide:50"]
"""
ATTACKS: dict[str, dict[str, int]] = {
    "heads": {"heads": 400},
    "messages": {"messages": 16},
    "uploads": {"uploads": 50},
    "dead sockets": {"dead sockets": 200},
    "dead readers": {"dead readers": 300},
    "bombs": {"bombs": 60},
}
ATTACKS["all"] = {kind: count for attack in ATTACKS.values() for kind, count in attack.items()}
FLOOD = {"idle": 2500, "slow bodies": 500, "slow readers": 200, "half heads": 200, "bombs": 20}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One attack, on a daemon of its own."""

    name: str
    clients: dict[str, int]
    budget_mib: int
    honest: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of an attack."""

    scene: Scene
    base_bytes: int
    peak_bytes: int
    whole: int
    troubles: list[str]
    restarts: int
    recycles: int
    level: int
    calm_s: float | None
    told: dict[str, dict[str, int]]

    @property
    def faults(self) -> list[str]:
        """List what should not have happened."""
        found = []
        if self.peak_bytes > self.scene.budget_mib * MIB:
            found.append("over the budget")
        if self.whole < self.scene.honest:
            found.append(f"{self.scene.honest - self.whole} honest answers not whole")
        if self.restarts:
            found.append(f"{self.restarts} workers ended")
        if self.calm_s is None:
            found.append(f"not calm within {CALM_LIMIT_S:g} s")
        return found


def main() -> int:
    """Play the scenes that were asked for, a row of the table each."""
    arguments = _arguments()
    outcomes = []
    print(_HEADING, flush=True)
    for scene in _scenes(arguments):
        outcome = play(scene)
        outcomes.append(outcome)
        print(_row(outcome), flush=True)
    for outcome in outcomes:
        scene = outcome.scene
        print(f"\n{scene.name} at {scene.budget_mib} MiB: the attackers were told")
        for kind, counts in outcome.told.items():
            print(f"  {kind}: {', '.join(f'{what} {n}' for what, n in sorted(counts.items()))}")
        for trouble in outcome.troubles[:3]:
            print(f"  an honest client: {trouble[:300]}")
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def play(scene: Scene) -> Outcome:
    """Play one attack from beginning to end."""
    with _mute_upstream() as silent, flood_upstream() as box, gateways() as start:
        toml = CONFIG.format(budget_mib=scene.budget_mib, box=box, silent=silent)
        gateway = start(toml)
        base_bytes = Meter(gateway.pid).read()
        with (
            Meter(gateway.pid) as meter,
            crowd(base_url=gateway.base_url, upstream=box, live=scene.honest, left=0) as honest,
        ):
            honest.wait("loaded")
            level, told = _attack(gateway, scene)
            ended_s = time.monotonic()
            calm_s = None
            while calm_s is None and time.monotonic() < ended_s + CALM_LIMIT_S:
                time.sleep(0.2)
                now = _level(gateway)
                level = max(level, now)
                calm_s = time.monotonic() - ended_s if now <= 1 else None
            live = honest.finish()["live"]
            status = gateway.status()
            restarts = status["restarts"]
            gateway.expected_exit = gateway.stop()
        return Outcome(
            scene=scene,
            base_bytes=base_bytes,
            peak_bytes=meter.peak_bytes,
            whole=live["exact"],
            troubles=live["troubles"],
            restarts=len(restarts),
            recycles=status["recycles"],
            level=level,
            calm_s=calm_s,
            told=told,
        )


def _attack(gateway: Gateway, scene: Scene) -> tuple[int, dict[str, dict[str, int]]]:
    """Run the attackers; the highest level meanwhile, and the answers that they got."""
    level = 0
    plan = {"base_url": gateway.base_url, "clients": scene.clients}
    with _attackers(plan) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["phase"] == "begun"
        until_s = time.monotonic() + scene.seconds
        while time.monotonic() < until_s:
            level = max(level, _level(gateway))
            time.sleep(0.2)
        process.stdin.write("stop\n")
        process.stdin.flush()
        told: dict[str, dict[str, int]] = json.loads(process.stdout.readline())["told"]
        return level, told


def _level(gateway: Gateway) -> int:
    return int(gateway.status()["memory"]["level"])


@contextmanager
def _attackers(plan: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("attackers.py"))
    process = python(script, json.dumps(plan))
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def _mute_upstream() -> Iterator[str]:
    """Give the URL of an upstream whose kernel takes connections that it never reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


_HEADING = (
    f"{'attack':<13} {'budget':>6} {'idle':>5} {'peak':>5} {'whole':>6} {'workers':>7}"
    f" {'recycles':>8} {'level':>5} {'calm after':>10}"
)


def _row(outcome: Outcome) -> str:
    scene = outcome.scene
    calm = "never" if outcome.calm_s is None else f"{outcome.calm_s:.1f} s"
    return (
        f"{scene.name:<13} {scene.budget_mib:>6} {outcome.base_bytes // MIB:>5}"
        f" {outcome.peak_bytes // MIB:>5} {outcome.whole:>3}/{scene.honest:<2}"
        f" {outcome.restarts:>7} {outcome.recycles:>8} {outcome.level:>5} {calm:>10}"
        f"  {'; '.join(outcome.faults) or 'ok'}"
    )


def _scenes(arguments: argparse.Namespace) -> Iterator[Scene]:
    if arguments.flood:
        for budget_mib in arguments.budgets:
            yield Scene(name="flood", clients=FLOOD, budget_mib=budget_mib, honest=20, seconds=60.0)
        return
    for budget_mib in arguments.budgets:
        for name in arguments.only:
            yield Scene(
                name=name,
                clients=ATTACKS[name],
                budget_mib=budget_mib,
                honest=8,
                seconds=arguments.seconds,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--budgets",
        type=lambda text: [int(each) for each in text.split(",")],
        default=list(BUDGETS_MIB),
        help="in MiB, divided by commas",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(ATTACKS),
        help=f"attacks, divided by commas: {', '.join(ATTACKS)}",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each attack lasts")
    parser.add_argument("--flood", action="store_true", help="a minute of everything instead")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(ATTACKS):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
