"""Changed inputs for as long as there is time: `make fuzz`, FUZZ_MINUTES=30 make fuzz.

    python -m hostile.fuzz [--minutes M] [--seed S] [--only NAME,…]
    python -m hostile.fuzz --again build/fuzz/FILE

Raw HTTP to a real gateway, the same to one without its fast lane, framings and forms, config files,
lines of the channel between the processes, and lines on a real watchdog's control socket, in turn.
What fails is made smaller, kept under build/fuzz with the command that tries it again, and ends it
with exit code 1. The same seed tries the same inputs in the same order; without one it is another
each time, and is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvloop

from fakes.gateway import Gateway as Daemon
from fakes.gateway import gateways
from gateway.gateway_rig import Play, RawUpstream, Rig, Rigs
from hostile import configs, framings, lines
from hostile.exchange import try_one, willing
from hostile.lines import Control
from hostile.mutate import mutate
from hostile.requests import BODIES, BODY_WORDS, HEAD_WORDS, HEADS, lengthen
from hostile.roads import Roads
from tidegate.core.protocol.lines import ChannelError, LineSplitter
from tidegate.core.protocol.worker import decode_from_watchdog, decode_from_worker

BUILD = Path(__file__).resolve().parents[2] / "build" / "fuzz"
BATCH_S = 0.5  # of one target, before the next has its turn
BATCH = 48  # inputs at a time
ONE_S = 10.0  # no input takes a hundredth of that
MOST_SHRINKS = 300


class Wrong(Exception):
    """An input did what none may do."""


class Target(Protocol):
    """What is fuzzed."""

    corpus: Sequence[bytes]
    words: Sequence[bytes]

    def batch(self, inputs: list[bytes]) -> dict[bytes, str]:
        """Tries these; what is wrong, by input."""


class Plain:
    """Code that takes bytes, and may raise nothing but what it says."""

    def __init__(
        self, corpus: Sequence[bytes], words: Sequence[bytes], check: Callable[[bytes], object]
    ) -> None:
        self.corpus, self.words, self._check = corpus, words, check

    def batch(self, inputs: list[bytes]) -> dict[bytes, str]:
        """One after the other, each within its time."""
        return {one: said for one in inputs if (said := self._wrong(one))}

    def _wrong(self, one: bytes) -> str:
        try:
            with _at_most(ONE_S):
                self._check(one)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""


class Http:
    """A real gateway in this process, on a loop that turns while a batch is tried."""

    corpus: Sequence[bytes] = (*HEADS, *BODIES)
    words: Sequence[bytes] = (*HEAD_WORDS, *BODY_WORDS)

    def __init__(self, loop: asyncio.AbstractEventLoop, rig: Rig) -> None:
        self._loop, self._rig = loop, rig
        self._turn = 0

    def batch(self, inputs: list[bytes]) -> dict[bytes, str]:
        """All at once; where one of them made the gateway log an error, each by itself again."""
        self._turn += 1
        if self._turn % 2:  # what was changed in a body is looked at whole
            inputs = list(map(lengthen, inputs))
        wrong = self._try(inputs)
        if not wrong and self._logged():
            for one in inputs:
                wrong |= self._try([one])
                if said := self._logged():
                    wrong[one] = said
        return wrong

    def _try(self, inputs: list[bytes]) -> dict[bytes, str]:
        async def tried() -> dict[bytes, str]:
            done = await asyncio.gather(*(try_one(self._rig.port, one) for one in inputs))
            return {one.sent: one.wrong for one in done if one.wrong}

        return self._loop.run_until_complete(tried())

    def _logged(self) -> str:
        said = [record.getMessage() for record in self._rig.errors]
        said += [str(context) for context in self._rig.loop_errors]
        self._rig.errors.clear()
        self._rig.loop_errors.clear()
        return said[0] if said else ""


class BothRoads:
    """A gateway with the fast lane and one without it, in this process."""

    corpus: Sequence[bytes] = (*BODIES, *HEADS)
    words: Sequence[bytes] = (*HEAD_WORDS, *BODY_WORDS)

    def __init__(self, loop: asyncio.AbstractEventLoop, roads: Roads) -> None:
        self._loop, self._roads = loop, roads

    def batch(self, inputs: list[bytes]) -> dict[bytes, str]:
        """All at once, each as it is and with its true length, which the lane asks for."""
        inputs = list(dict.fromkeys([*inputs, *map(lengthen, inputs)]))
        return self._loop.run_until_complete(self._roads.differing(inputs))


class ControlSocket:
    """A real watchdog, in processes of its own."""

    corpus: Sequence[bytes] = (*lines.ASKED, *lines.FROM_WORKER, *lines.FROM_WATCHDOG)
    words: Sequence[bytes] = lines.WORDS

    def __init__(self, running: Daemon) -> None:
        self._running = running
        self._control = Control(running.runtime_dir)
        self._log = running.log.open("rb")

    def batch(self, inputs: list[bytes]) -> dict[bytes, str]:
        """One after the other; what ends the watchdog is the last one."""
        for one in inputs:
            if any(word in one for word in lines.FORBIDDEN):
                continue
            try:
                came = self._control.tell(one + b"\n")
            except OSError as error:
                return {one: f"the watchdog does not answer: {error}"}
            if came and not came.endswith(b"}\n"):
                return {one: f"this is no reply: {came[:200]!r}"}
            if self._running.process.poll() is not None:
                return {one: "the watchdog has ended"}
            if b"Traceback" in self._log.read():
                return {one: "the watchdog logged a fault"}
        return {}


def check_channel(data: bytes) -> None:
    """Lines of either process: one kind of error, and a cut changes nothing."""
    whole, split = LineSplitter(), LineSplitter()
    try:
        found = list(whole.feed(data + b"\n"))
        cut = [
            line
            for at in range(0, len(data) + 1, 7)
            for line in split.feed((data + b"\n")[at : at + 7])
        ]
    except ChannelError:
        return
    assert cut == found, "lines depend on where they were cut"
    for line in found:
        for decode in (decode_from_watchdog, decode_from_worker):
            framings.refused(decode, line)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises Wrong in what takes longer."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise Wrong(f"it took more than {seconds:g} s")

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


@contextmanager
def targets(scratch: Path) -> Iterator[dict[str, Target]]:
    """Everything there is to fuzz, running."""
    loop = uvloop.new_event_loop() if sys.platform == "linux" else asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    upstreams: list[RawUpstream] = []

    async def upstream(play: Play) -> RawUpstream:
        upstreams.append(await RawUpstream(play).start())
        return upstreams[-1]

    async def begin() -> tuple[Rigs, Rig, Roads]:
        rigs = Rigs(lambda: str(scratch / f"{len(upstreams)}.sock"))
        limits = {"header_s": 0.5, "body_s": 0.5, "first_output_s": 3.0, "total_s": 20.0}
        limits["keep_finished_s"] = 1.0
        rig = await rigs(await upstream(willing), **limits)
        roads = await Roads.open(rigs, upstream, **limits)
        rigs.alarm.cancel()  # of a test that hangs; here each input has its own
        return rigs, rig, roads

    rigs, rig, roads = loop.run_until_complete(begin())
    try:
        with gateways() as start:
            yield {
                "http": Http(loop, rig),
                "roads": BothRoads(loop, roads),
                "framing": Plain(framings.CORPUS, framings.WORDS, framings.check),
                "forms": Plain(BODIES, BODY_WORDS, framings.check_body),
                "config": Plain(
                    configs.CONFIGS, configs.WORDS, lambda text: configs.read(text, scratch)
                ),
                "channel": Plain(
                    [*lines.FROM_WATCHDOG, *lines.FROM_WORKER], lines.WORDS, check_channel
                ),
                "control": ControlSocket(start()),
            }
        loop.run_until_complete(rigs.finish())
        for each in upstreams:
            loop.run_until_complete(each.stop())
    finally:
        loop.close()


def main() -> int:
    """Fuzz; the exit code says whether anything was wrong."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    minutes = float(os.environ.get("FUZZ_MINUTES", "2"))
    seed = os.environ.get("FUZZ_SEED") or f"{random.SystemRandom().randrange(10**9)}"
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="default: FUZZ_MINUTES, or 2"
    )
    parser.add_argument("--seed", default=seed, help="default: FUZZ_SEED, or a new one")
    parser.add_argument("--only", default="", help="names of targets, with commas")
    parser.add_argument("--again", type=Path, metavar="FILE", help="one input that was kept")
    arguments = parser.parse_args()
    logging.getLogger("tidegate").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="tg-") as scratch,
        targets(Path(scratch)) as all_of_them,
    ):
        if arguments.again is not None:
            return again(all_of_them, arguments.again)
        names = [name for name in arguments.only.split(",") if name] or list(all_of_them)
        chosen = {name: all_of_them[name] for name in names}
        return fuzz(chosen, arguments.seed, arguments.minutes * 60)


def fuzz(chosen: dict[str, Target], seed: str, for_s: float) -> int:
    """Each in its turn until the time is over or something is wrong."""
    print(f"seed {seed}, {for_s / 60:g} minutes: {', '.join(chosen)}", flush=True)
    dice = {name: random.Random(f"{seed} {name}") for name in chosen}
    tried = dict.fromkeys(chosen, 0)
    deadline_s = time.monotonic() + for_s
    while time.monotonic() < deadline_s:
        for name, target in chosen.items():
            until_s = time.monotonic() + BATCH_S
            while time.monotonic() < until_s:
                inputs = [_changed(target, dice[name]) for _ in range(BATCH)]
                wrong = target.batch(inputs)
                tried[name] += len(inputs)
                for one, said in wrong.items():
                    report(name, target, one, said)
                if wrong:
                    return 1
    said = ", ".join(f"{name} {count:,}" for name, count in tried.items())
    print(f"inputs tried: {said}; {sum(tried.values()):,} in all, and none was wrong")
    return 0


def _changed(target: Target, dice: random.Random) -> bytes:
    return mutate(dice.choice(target.corpus), target.corpus, target.words, dice)


def report(name: str, target: Target, one: bytes, said: str) -> None:
    """Keep the input, smaller if that can be done, and say how to try it again."""
    if isinstance(target, Plain):
        one = shrink(target, one)
        said = target.batch([one]).get(one, said)
    BUILD.mkdir(parents=True, exist_ok=True)
    kept = BUILD / f"{name}-{hashlib.sha256(one).hexdigest()[:12]}"
    kept.write_bytes(one)
    print(f"FAILED {name}: {said}\n  {len(one)} bytes: {one[:300]!r}", flush=True)
    print(f"  again: make fuzz ARGS='--again {kept}'", flush=True)


def shrink(target: Plain, one: bytes) -> bytes:
    """A part of it that is wrong too."""
    tries, size = 0, len(one) // 2
    while size and tries < MOST_SHRINKS:
        for at in range(0, len(one), size):
            tries += 1
            less = one[:at] + one[at + size :]
            if target.batch([less]):
                one = less
                break
        else:
            size //= 2
    return one


def again(all_of_them: dict[str, Target], kept: Path) -> int:
    """One input once more; its file is named for its target."""
    one = kept.read_bytes()
    wrong = all_of_them[kept.name.partition("-")[0]].batch([one])
    print(f"FAILED: {wrong[one]}" if one in wrong else "nothing is wrong with it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
