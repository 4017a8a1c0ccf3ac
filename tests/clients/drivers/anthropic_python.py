"""anthropic-python: messages."""

from collections.abc import Generator
from typing import Any

import anthropic
from common import CITY, LENGTH, PROMPT, STOP, TOOLS, Answer, Driver, Stage

FINISH = {"end_turn": STOP, "max_tokens": LENGTH, "tool_use": TOOLS}
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
TOOL: Any = {"name": "get_weather", "description": "the weather", "input_schema": CITY}
TYPED: dict[int, type[Exception]] = {
    0: anthropic.APIError,
    400: anthropic.BadRequestError,
    429: anthropic.RateLimitError,
    503: anthropic.InternalServerError,
}


class Messages:
    """`messages`, streamed by the client's own helper."""

    cut = LENGTH
    typed = TYPED

    def __init__(self, url: str) -> None:
        self.client = anthropic.Anthropic(base_url=url, api_key="none")

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        answer = Answer()
        with self.client.with_options(max_retries=0).messages.stream(
            model=model,
            messages=MESSAGES,
            max_tokens=limit or 1000,
            tools=[TOOL] if tools else anthropic.omit,
        ) as stream:
            for event in stream:
                if event.type == "text":
                    answer.add(event.text)
                elif event.type == "message_stop":
                    whole = finished(event.message)
                    answer.finish, answer.tokens = whole.finish, whole.tokens
                    answer.call = whole.call
                yield answer
            stream.get_final_message()

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        return finished(
            client.messages.create(model=model, messages=MESSAGES, max_tokens=limit or 1000)
        )


def finished(message: Any) -> Answer:
    """What a finished message says."""
    calls = [block for block in message.content if block.type == "tool_use"]
    return Answer(
        text="".join(block.text for block in message.content if block.type == "text"),
        finish=FINISH.get(message.stop_reason),
        tokens=message.usage.output_tokens,
        call=(calls[0].name, calls[0].input) if calls else None,
    )


if __name__ == "__main__":
    stage = Stage.from_arguments()
    Driver(stage, ("anthropic",)).run("anthropic-python.messages", Messages(stage.url))
