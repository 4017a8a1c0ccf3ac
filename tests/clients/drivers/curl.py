"""curl, as a person types it: chat completions, and going on behind an event of a run."""

import json
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

from common import LENGTH, PROMPT, STOP, TOOL, TOOLS, Answer, Driver, Names, Stage, check

FINISH = {"stop": STOP, "length": LENGTH, "tool_calls": TOOLS}


class CurlError(Exception):
    """curl's exit code, or an answer whose last event is an error."""

    def __init__(self, message: str, status_code: int = 0) -> None:
        super().__init__(message)
        self.status_code = status_code


class Curl:
    """`curl --no-buffer --fail-with-body`."""

    cut = LENGTH
    typed: dict[int, type[Exception]] = dict.fromkeys((0, 400, 429, 503), CurlError)

    def __init__(self, stage: Stage) -> None:
        self.url = stage.url
        self.scratch = Path(stage.scratch)

    def command(self, body: object, *more: str) -> list[str]:
        return [
            "curl", "--silent", "--show-error", "--no-buffer", "--fail-with-body", *more,
            f"{self.url}/v1/chat/completions",
            "--header", "Content-Type: application/json",
            "--data", json.dumps(body),
        ]  # fmt: skip

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        body: dict[str, Any] = question(model, limit) | {"stream": True}
        if tools:
            body["tools"] = [{"type": "function", "function": TOOL}]
        if limit:
            body["stream_options"] = {"include_usage": True}
        process = subprocess.Popen(
            self.command(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield from self.read(process)
        finally:
            process.terminate()
            process.wait(10)
            for pipe in (process.stdout, process.stderr):
                assert pipe
                pipe.close()

    def read(self, process: subprocess.Popen[str]) -> Generator[Answer]:
        """The events, as far as a shell script would look at them."""
        assert process.stdout
        assert process.stderr
        answer, done, body = Answer(), False, ""
        name, arguments = "", ""
        for line in process.stdout:
            body += line
            if line == "data: [DONE]\n":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise CurlError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    delta = choice["delta"]
                    answer.add(delta.get("content"))
                    answer.finish = FINISH.get(choice["finish_reason"] or "", answer.finish)
                    for call in delta.get("tool_calls") or []:
                        name += call["function"].get("name") or ""
                        arguments += call["function"].get("arguments") or ""
                if chunk.get("usage"):
                    answer.tokens = chunk["usage"]["completion_tokens"]
                yield answer
        if process.wait(10):
            raise failure(body, process.stderr.read())
        check(done, f"the body ended properly without [DONE]: {body[-500:]}")
        if name:
            answer.call = (name, json.loads(arguments))
        yield answer

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        more = ["--retry", "2", "--retry-delay", "1"] if retries is None else []
        done = subprocess.run(
            self.command(question(model, limit), *more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise failure(done.stdout, done.stderr)
        whole = last_object(done.stdout)
        choice = whole["choices"][0]
        return Answer(
            text=choice["message"]["content"],
            finish=FINISH[choice["finish_reason"]],
            tokens=whole["usage"]["completion_tokens"],
        )

    def resume(self, _: "Curl", names: Names) -> None:
        """A reader that was cut off goes on behind the last event it has, to the same bytes."""
        head = self.scratch / "head"
        body = question(f"{names.box}/numbered:200:5", None) | {"stream": True}
        more = ["--dump-header", str(head), "--header", "x-on-disconnect: continue"]
        maker = subprocess.Popen(
            self.command(body, *more), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert maker.stdout
        maker.stdout.readline()  # the head is written
        found = re.search(r"(?im)^x-run-id: (\S+)", head.read_text())
        check(found, head.read_text())
        assert found
        maker.kill()
        maker.wait(10)
        maker.stdout.close()
        path = f"{self.url}/v1/runs/{found[1]}/stream"
        whole = self.events(path)
        rest = self.events(f"{path}?starting_after=100")
        check(whole[-1][1] == "data: [DONE]", whole[-1])
        check([event[0] for event in whole] == [f"id: {n}" for n in range(len(whole))], whole)
        check(rest == whole[101:], rest[:1])
        over = subprocess.run(
            ["curl", "--silent", "--write-out", "%{http_code}",
             f"{path}?starting_after={len(whole) - 1}"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        check(over.stdout == "204", over.stdout)

    def events(self, url: str) -> list[tuple[str, ...]]:
        """The events of a run, each as its lines without comments."""
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--fail", "--no-buffer", url],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        blocks = (
            tuple(line for line in block.splitlines() if line.startswith(("id:", "data:")))
            for block in done.stdout.split("\n\n")
        )
        return [block for block in blocks if block]


def question(model: str, limit: int | None) -> dict[str, Any]:
    """The body of a request."""
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": model, "messages": messages} | ({"max_tokens": limit} if limit else {})


def last_object(text: str) -> Any:
    """The last JSON object of an output: with --retry each attempt's body is printed."""
    decoder, at, found = json.JSONDecoder(), 0, None
    while (at := text.find("{", at)) >= 0:
        found, at = decoder.raw_decode(text, at)
    return found


def failure(body: str, complaint: str) -> CurlError:
    """What a person reads: curl's complaint, and the body that came with the status."""
    status = re.search(r"error: (\d{3})", complaint)
    return CurlError(f"{complaint.strip()} {body.strip()}", int(status[1]) if status else 0)


if __name__ == "__main__":
    stage = Stage.from_arguments()
    said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    curl = Curl(stage)
    Driver(stage, versions={"curl": said.split()[1]}).run("curl.chat", curl, resume=curl.resume)
