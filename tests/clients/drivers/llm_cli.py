"""The `llm` command line, with a folder of its own that names the gateway's models."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from common import CALL, PROMPT, Answer, Driver, Names, Stage, check, numbers

SCRIPTS = (
    "ok", "numbered:100:1", "numbered:100000:10", "tools",
    "status:429", "status:503", "context-length", "times:1:503",
    "drop:5", "stall:5", "error-middle", "wait:3000", "gap:3000",
)  # fmt: skip
WEATHER = "def get_weather(city: str) -> str:\n    open({!r}, 'w').write(city)\n    return 'fair'\n"


class LlmError(Exception):
    """It ended with an exit code other than 0; the message is what it said."""


class Llm:
    """Each question is a process: `llm -m MODEL PROMPT`."""

    cut = ""  # it does not say
    typed: dict[int, type[Exception]] = dict.fromkeys((0, 400, 429, 503), LlmError)

    def __init__(self, stage: Stage) -> None:
        self.folder = Path(stage.scratch) / "llm"
        self.folder.mkdir()
        (names,) = stage.columns.values()
        models = [f"{box}/{script}" for script in SCRIPTS for box in (names.box, names.idle)]
        models += [names.genuine, *(f"{names.slow}/{script}" for script in SCRIPTS)]
        entries = [
            {
                "model_id": model,
                "model_name": model,
                "api_base": f"{stage.url}/v1",
                "supports_tools": True,
            }
            for model in models
        ]
        # JSON is YAML.
        (self.folder / "extra-openai-models.yaml").write_text(json.dumps(entries))

    def command(self, model: str, limit: int | None, *more: str) -> subprocess.Popen[str]:
        options = ["-o", "max_tokens", str(limit)] if limit else []
        return subprocess.Popen(
            [sys.executable, "-m", "llm", "prompt", "-m", model, *options, *more, PROMPT],
            env=os.environ | {"LLM_USER_PATH": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        process = self.command(model, limit)
        assert process.stdout
        answer, over = Answer(), False
        try:
            while piece := os.read(process.stdout.fileno(), 4096):
                answer.add(piece.decode())
                yield answer
            over = True
        finally:
            if not over:
                process.terminate()
            _, complaint = process.communicate(timeout=30)
        if process.returncode:
            raise LlmError(complaint)
        answer.text = answer.text.removesuffix("\n")
        yield answer

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        process = self.command(model, limit, "--no-stream")
        said, complaint = process.communicate(timeout=60)
        if process.returncode:
            raise LlmError(complaint)
        return Answer(text=said.removesuffix("\n"))

    # It prints the text and nothing else: these look at no finish and no usage.

    def streams(self, _: "Llm", names: Names) -> None:
        """The whole text, in order; it shows no finish and no usage."""
        *_, answer = self.stream(f"{names.box}/numbered:100:1")
        check(answer.text == numbers(100), answer)
        *_, answer = self.stream(names.genuine, limit=50)
        check(len(answer.text) > 20, answer)

    def plain(self, _: "Llm", names: Names) -> None:
        """A whole answer."""
        check(self.ask(names.genuine, limit=20).text, "no text")
        answer = self.ask(f"{names.box}/ok")
        check(answer.text == "one two three", answer)

    def tools(self, _: "Llm", names: Names) -> None:
        """It calls the function with the arguments that were streamed to it."""
        called = self.folder / "called"
        functions = ["--functions", WEATHER.format(str(called)), "--chain-limit", "2"]
        process = self.command(f"{names.box}/tools", None, *functions)
        said, complaint = process.communicate(timeout=60)
        check(called.is_file(), f"{said} {complaint}")
        check(called.read_text() == CALL[1]["city"], called.read_text())

    def silence(self, _: "Llm", names: Names) -> None:
        """Seconds without output break nothing."""
        *_, answer = self.stream(f"{names.slow}/wait:3000")
        check(answer.text == "one two three", answer)
        *_, answer = self.stream(f"{names.slow}/gap:3000")
        check(answer.text == numbers(2), answer)


if __name__ == "__main__":
    stage = Stage.from_arguments()
    llm = Llm(stage)
    Driver(stage, ("llm",)).run(
        "llm.chat",
        llm,
        stream=llm.streams,
        plain=llm.plain,
        tools=llm.tools,
        long_silence=llm.silence,
    )
