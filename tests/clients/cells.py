"""Which cells the matrix of clients has: every client and format, times every situation.

A cell that cannot be tried says why, here and nowhere else; every other one is run for real.
"""

from dataclasses import dataclass, field

SITUATIONS = {
    "stream": "The whole text in order and in pieces, its finish, and its usage where the client "
    "can ask for it; from the genuine server and from a scripted one.",
    "plain": "An answer that is not streamed, from both.",
    "tools": "A call of a tool is streamed in fragments; its name and parsed arguments arrive.",
    "cancel": "The client gives up in the middle; the upstream's connection is gone one second "
    "after the grace at the latest.",
    "error before": "429, 503 and a prompt that is too long are the client's own typed error, "
    "with the status and the upstream's words, streamed or not; with its default retries the "
    "client gets past one 503.",
    "error in the middle": "The upstream's connection breaks, it falls silent for longer than "
    "`idle_s`, or it sends an error: the client raises, and never takes the part for the whole.",
    "long silence": "Many times `keepalive_s` and `hold_s` before the first output, and again "
    "between two events; the client has its default settings.",
    "resume": "A reader that was cut off goes on where it was, without a gap or a repeat.",
}

NO_CURSOR = "the client cannot name the event it has got to; its answers are resumed as runs"
SCRIPTED_ONLY = (
    "from the scripted server only: the `response.created` of llama.cpp has no `created_at` and no "
    "`model`, and the AI SDK takes no stream without them"
)
AS_EVENT = "the client hands an `error` or `response.failed` event to its user instead of raising"
SHOWS_TEXT = "the client shows the text, and neither finish nor usage"
NO_TOOLS = "the format has no tools"


@dataclass(frozen=True)
class Column:
    """One client speaking one format."""

    key: str  # also the name of its upstream in the gateway's config
    title: str
    format: str
    without: dict[str, str] = field(default_factory=dict)  # situation: why it cannot be tried
    partly: dict[str, str] = field(default_factory=dict)  # situation: what of it cannot, and why

    @property
    def cells(self) -> list[str]:
        """The situations it is tried in."""
        return [situation for situation in SITUATIONS if situation not in self.without]


@dataclass(frozen=True)
class Driver:
    """One program that runs all cells of one client."""

    file: str
    columns: tuple[Column, ...]
    needs: tuple[str, ...]  # packages of Python, or of Node
    is_short: bool = False  # quick, and there on most machines: part of every test run
    needs_chromium: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.file.partition(".")[0]

    def package(self, name: str) -> str:
        """How the page calls a package: Python and Node have some of the same name."""
        return f"{name} (npm)" if self.file.endswith(".mjs") and name in self.needs else name


def _column(key: str, title: str, format_: str, **without: str) -> Column:
    why = {name.replace("_", " "): reason for name, reason in without.items()}
    return Column(key, title, format_, why)


DRIVERS = (
    Driver(
        "openai_python.py",
        (
            _column("openai-python.chat", "openai-python", "chat", resume=NO_CURSOR),
            _column(
                "openai-python.completions",
                "openai-python",
                "completions",
                tools=NO_TOOLS,
                resume=NO_CURSOR,
            ),
            Column(
                "openai-python.responses",
                "openai-python",
                "responses",
                partly={"error in the middle": AS_EVENT},
            ),
        ),
        ("openai",),
        is_short=True,
    ),
    Driver(
        "openai_node.mjs",
        (
            _column("openai-node.chat", "openai-node", "chat", resume=NO_CURSOR),
            Column(
                "openai-node.responses",
                "openai-node",
                "responses",
                partly={"error in the middle": AS_EVENT},
            ),
        ),
        ("openai",),
    ),
    Driver(
        "anthropic_python.py",
        (_column("anthropic-python.messages", "anthropic-python", "messages", resume=NO_CURSOR),),
        ("anthropic",),
    ),
    Driver(
        "anthropic_node.mjs",
        (_column("anthropic-ts.messages", "Anthropic TypeScript", "messages", resume=NO_CURSOR),),
        ("@anthropic-ai/sdk",),
    ),
    Driver(
        "ai_sdk.mjs",
        (
            _column("ai-sdk.chat", "AI SDK", "chat", resume=NO_CURSOR),
            Column(
                "ai-sdk.responses",
                "AI SDK",
                "responses",
                without={"resume": NO_CURSOR},
                partly={"stream": SCRIPTED_ONLY},
            ),
            _column("ai-sdk.messages", "AI SDK", "messages", resume=NO_CURSOR),
        ),
        ("ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "@ai-sdk/openai-compatible"),
    ),
    Driver(
        "llm_cli.py",
        (
            Column(
                "llm.chat",
                "llm",
                "chat",
                without={"resume": NO_CURSOR},
                partly=dict.fromkeys(("stream", "plain"), SHOWS_TEXT),
            ),
        ),
        ("llm",),
    ),
    Driver(
        "langchain_python.py",
        (
            _column("langchain.chat", "LangChain", "chat", resume=NO_CURSOR),
            _column("langchain.messages", "LangChain", "messages", resume=NO_CURSOR),
        ),
        ("langchain_openai", "langchain_anthropic"),
    ),
    Driver(
        "curl.py",
        (_column("curl.chat", "curl", "chat"),),
        (),
        is_short=True,
    ),
    Driver(
        "eventsource.mjs",
        (
            _column(
                "eventsource.runs",
                "EventSource in Chromium",
                "runs",
                plain="EventSource reads streams only",
                tools="EventSource hands out the events and reads none of them",
            ),
        ),
        ("playwright-core",),
        needs_chromium=True,
    ),
)
COLUMNS = tuple(column for driver in DRIVERS for column in driver.columns)
