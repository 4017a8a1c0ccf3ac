"""LangChain: ChatOpenAI and ChatAnthropic."""

from collections.abc import Callable, Generator
from typing import Any

import anthropic
import openai
from common import LENGTH, PROMPT, STOP, TOOL, TOOLS, Answer, Driver, Stage
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

FINISH = {
    "stop": STOP, "end_turn": STOP,
    "length": LENGTH, "max_tokens": LENGTH,
    "tool_calls": TOOLS, "tool_use": TOOLS,
}  # fmt: skip


class Chain:
    """A chat model of LangChain, which raises what the client beneath it raises."""

    cut = LENGTH

    def __init__(self, make: Callable[..., Any], errors: Any) -> None:
        self.make = make
        self.typed: dict[int, type[Exception]] = {
            0: errors.APIError,
            400: errors.BadRequestError,
            429: errors.RateLimitError,
            503: errors.InternalServerError,
        }

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        chat = self.make(model, limit, max_retries=0)
        answer, whole = Answer(), None
        for chunk in (chat.bind_tools([TOOL]) if tools else chat).stream(PROMPT):
            whole = chunk if whole is None else whole + chunk
            answer.add(chunk.text)
            yield answer
        if whole is not None:
            done = finished(whole)
            answer.finish, answer.tokens, answer.call = done.finish, done.tokens, done.call
            yield answer

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        more = {} if retries is None else {"max_retries": retries}
        return finished(self.make(model, limit, **more).invoke(PROMPT))


def finished(message: Any) -> Answer:
    """What a finished message says."""
    said = message.response_metadata
    reason = said.get("finish_reason") or said.get("stop_reason")
    calls = message.tool_calls
    return Answer(
        text=message.text,
        finish=FINISH.get(reason),
        tokens=message.usage_metadata and message.usage_metadata["output_tokens"],
        call=(calls[0]["name"], calls[0]["args"]) if calls else None,
    )


if __name__ == "__main__":
    stage = Stage.from_arguments()

    def chat(model: str, limit: int | None, **more: Any) -> ChatOpenAI:
        url, key = f"{stage.url}/v1", "none"
        return ChatOpenAI(
            base_url=url, api_key=key, model=model, max_tokens=limit, stream_usage=True, **more
        )

    def messages(model: str, limit: int | None, **more: Any) -> ChatAnthropic:
        return ChatAnthropic(
            base_url=stage.url, api_key="none", model=model, max_tokens=limit or 1000, **more
        )

    driver = Driver(stage, ("langchain-openai", "langchain-anthropic"))
    driver.run("langchain.chat", Chain(chat, openai))
    driver.run("langchain.messages", Chain(messages, anthropic))
