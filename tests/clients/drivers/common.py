"""What the Python drivers share: each situation, written once over a small adapter per client.

A driver is a program of its own, run by the Python that has the client installed. Its argument is
the stage as JSON: the gateway's address, and for each of its columns the names under which the
scripted upstream can be asked. It prints its clients' versions, then one JSON line for each cell:
`{"column", "cell", "error", "gone"}`. `gone` says that the client has just given an answer up and
that its upstream must hear of it. Rule: only the standard library and the client itself are here,
and an adapter sets nothing that its users leave alone, except where the situation needs it.
"""

import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

PROMPT = "Tell me of the tide."
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "the city"}},
    "required": ["city"],
}
TOOL = {"name": "get_weather", "description": "the weather in a city", "parameters": CITY}
CALL = ("get_weather", {"city": "Paris"})
STOP, LENGTH, TOOLS = "stop", "length", "tools"  # the formats' words for a finish, made one


@dataclass
class Answer:
    """What a client has handed to its user so far."""

    text: str = ""
    pieces: int = 0
    finish: str | None = None
    tokens: int | None = None
    call: tuple[str, Any] | None = None

    def add(self, piece: str | None) -> None:
        """One more piece of the text."""
        if piece:
            self.text += piece
            self.pieces += 1


class Client(Protocol):
    """One client speaking one format."""

    typed: dict[int, type[Exception]]  # what it raises for a status; 0: any fault of a stream
    cut: str  # what it says of an answer that reached its limit of tokens

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        """Yield the same answer again and again as it grows; closing it gives the answer up."""
        ...

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        """A whole answer. `retries` None leaves the client's own default."""
        ...


@dataclass
class Names:
    """How one column's scripts are addressed."""

    box: str
    idle: str  # the same with a short idle_s
    slow: str  # the same with a short hold_s and keepalive_s
    genuine: str  # a model of the llama.cpp server


Situation = Callable[[Client, Names], None]


def check(holds: object, what: object) -> None:
    """Fail the cell with what was seen instead."""
    if not holds:
        raise AssertionError(str(what))


def numbers(count: int) -> str:
    """The text of a numbered answer."""
    return "".join(f"{number} " for number in range(count))


def last(stream: Iterable[Answer]) -> Answer:
    """The answer as its stream left it."""
    answer = Answer()
    for each in stream:
        answer = each
    return answer


def expect_whole(client: Client, names: Names) -> None:
    """The upstream is well again, which also ends any series of failures."""
    answer = client.ask(f"{names.box}/ok")
    check(answer.text == "one two three", answer)


def stream(client: Client, names: Names) -> None:
    """The whole text, in order and in pieces, with its finish, and with usage where asked."""
    answer = last(client.stream(f"{names.box}/numbered:100:1"))
    check(answer.text == numbers(100) and answer.finish == STOP, answer)
    answer = last(client.stream(names.genuine, limit=50))
    check(answer.pieces > 20 and answer.finish == client.cut and answer.tokens == 50, answer)


def plain(client: Client, names: Names) -> None:
    """A whole answer, with finish and usage."""
    answer = client.ask(names.genuine, limit=20)
    check(answer.text and answer.finish == client.cut and answer.tokens == 20, answer)
    expect_whole(client, names)


def tools(client: Client, names: Names) -> None:
    """A streamed call of a tool, with its arguments parsed."""
    answer = last(client.stream(f"{names.box}/tools", tools=True))
    check(answer.call == CALL and answer.finish == TOOLS, answer)


def cancel(client: Client, names: Names) -> None:
    """The user stops reading in the middle."""
    stream = client.stream(f"{names.box}/numbered:100000:10")
    for events, answer in enumerate(stream):
        check(events < 100, f"a hundred events without text: {answer}")
        if answer.pieces >= 10:
            break
    stream.close()


def error_before(client: Client, names: Names) -> None:
    """The client's own exception with the status and the upstream's words; it may try again."""
    for script, status, words in (
        ("status:429", 429, "the fake says 429"),
        ("status:503", 503, "the fake says 503"),
        ("context-length", 400, "prompt is too long"),
    ):
        for ask in (client.ask, lambda model: last(client.stream(model))):
            try:
                answer = ask(f"{names.box}/{script}")
            except client.typed[status] as error:
                check(getattr(error, "status_code", status) == status, repr(error))
                check(words in str(error), repr(error))
            else:
                check(False, f"{script} was an answer: {answer}")
        expect_whole(client, names)
    answer = client.ask(f"{names.box}/times:1:503", retries=None)
    check(answer.text == "one two three", answer)


def error_middle(client: Client, names: Names) -> None:
    """The client raises; it never takes a part for the whole."""
    for model in (f"{names.box}/drop:5", f"{names.idle}/stall:5", f"{names.box}/error-middle"):
        answer = None
        try:
            answer = last(client.stream(model))
        except client.typed[0] as error:
            check(str(error), repr(error))
        else:
            check(False, f"{model} was taken for whole: {answer}")
        expect_whole(client, names)


def silence(client: Client, names: Names) -> None:
    """Seconds without output, before the first and in the middle, break nothing."""
    answer = last(client.stream(f"{names.slow}/wait:3000"))
    check(answer.text == "one two three" and answer.finish == STOP, answer)
    answer = last(client.stream(f"{names.slow}/gap:3000"))
    check(answer.text == numbers(2) and answer.finish == STOP, answer)


SITUATIONS: dict[str, Situation] = {
    "stream": stream,
    "plain": plain,
    "tools": tools,
    "cancel": cancel,
    "error before": error_before,
    "error in the middle": error_middle,
    "long silence": silence,
}


@dataclass
class Stage:
    """What the matrix has set up, from the command line."""

    url: str
    columns: dict[str, Names]
    scratch: str
    skip: dict[str, list[str]]

    @classmethod
    def from_arguments(cls) -> "Stage":
        """Read what the matrix has set up from the command line."""
        given = json.loads(sys.argv[1])
        columns = {key: Names(**names) for key, names in given["columns"].items()}
        return cls(given["url"], columns, given["scratch"], given["skip"])


@dataclass
class Driver:
    """Runs every cell of one client and says how each went."""

    stage: Stage
    packages: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {name: importlib.metadata.version(name) for name in self.packages}
        say(versions=self.versions | found)

    def run(self, column: str, client: Client, **more: Situation) -> None:
        """All cells of a column; `more` replaces or adds situations (`_` for a space)."""
        situations = SITUATIONS | {name.replace("_", " "): each for name, each in more.items()}
        for cell, situation in situations.items():
            if cell in self.stage.skip[column]:
                continue
            error = None
            try:
                situation(client, self.stage.columns[column])
            except Exception:  # any fault is this cell's, and the others still count
                error = traceback.format_exc(limit=-4)
            say(column=column, cell=cell, error=error, gone=cell == "cancel")


def say(**values: object) -> None:
    """One line to the matrix."""
    print(json.dumps(values), flush=True)
