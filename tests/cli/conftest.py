"""A running tidegate as far as the command line can tell: the real control socket, in a thread."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tidegate.cli.main import main
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.watchdog.control.server import ControlClient, ControlServer


class ScriptedWatchdog:
    """Answers each verb with the reply that the test put into `replies`."""

    def __init__(self, runtime_dir: Path) -> None:
        self.replies: dict[str, ControlReply] = {}
        self.requests: list[ControlRequest] = []
        self._selector = selectors.DefaultSelector()
        self._server = ControlServer(
            runtime_dir / "control.sock", self._selector, self._answer, time.monotonic
        )
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def will(self, verb: str, result: object = None, error: str | None = None) -> None:
        """Script the answer to a verb."""
        raw = msgspec.Raw(msgspec.json.encode(result))
        self.replies[verb] = ControlReply(ok=error is None, error=error, result=raw)

    def close(self) -> None:
        """Stop answering and remove the socket."""
        os.close(self._wake_write)
        self._thread.join()
        self._server.close()
        self._selector.close()
        os.close(self._wake_read)

    def _answer(self, client: ControlClient, request: ControlRequest) -> None:
        self.requests.append(request)
        if request.verb in self.replies:
            self._server.reply(client, self.replies[request.verb])

    def _serve(self) -> None:
        while True:
            for key, mask in self._selector.select():
                if key.data is None:
                    return
                key.data(mask)


class Command:
    """The command, with the places of this test on every verb."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state_dir, self.runtime_dir = root / "state", root / "run"
        self.config = root / "config.toml"
        self.config.write_text("")
        self.runtime_dir.mkdir(mode=0o700)
        self.state_dir.mkdir(mode=0o700)
        self._capsys = capsys

    def places(self) -> list[str]:
        """The three flags."""
        return [
            *("--config", str(self.config)),
            *("--state-dir", str(self.state_dir)),
            *("--runtime-dir", str(self.runtime_dir)),
        ]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = main([*arguments, *self.places()])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def tidegate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in places of its own, with an empty config."""
    return Command(tmp_path, capsys)


@pytest.fixture
def watchdog(tidegate: Command) -> Iterator[ScriptedWatchdog]:
    """A running one that answers as the test says."""
    scripted = ScriptedWatchdog(tidegate.runtime_dir)
    yield scripted
    scripted.close()
