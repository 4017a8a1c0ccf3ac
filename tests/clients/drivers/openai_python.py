"""openai-python: chat completions, completions, responses."""

import json
from collections.abc import Generator
from typing import Any

import httpx2
import openai
from common import (
    LENGTH,
    PROMPT,
    SITUATIONS,
    STOP,
    TOOL,
    TOOLS,
    Answer,
    Client,
    Driver,
    Names,
    Stage,
    check,
    numbers,
)

TYPED: dict[int, type[Exception]] = {
    0: openai.APIError,
    400: openai.BadRequestError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
}
FINISH = {"stop": STOP, "length": LENGTH, "tool_calls": TOOLS}
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


class Chat:
    """`chat.completions`."""

    typed = TYPED
    cut = LENGTH

    def __init__(self, url: str) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        answer = Answer()
        name, arguments = "", ""
        with self.client.with_options(max_retries=0).chat.completions.create(
            model=model,
            messages=MESSAGES,
            stream=True,
            max_tokens=limit or openai.omit,
            tools=[{"type": "function", "function": TOOL}] if tools else openai.omit,  # type: ignore[list-item]
            stream_options={"include_usage": True} if limit else openai.omit,
        ) as stream:
            for chunk in stream:
                if chunk.usage:
                    answer.tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    answer.add(choice.delta.content)
                    answer.finish = FINISH.get(choice.finish_reason or "", answer.finish)
                    for call in choice.delta.tool_calls or []:
                        assert call.function
                        name += call.function.name or ""
                        arguments += call.function.arguments or ""
                yield answer
        if name:
            answer.call = (name, json.loads(arguments))
            yield answer

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        whole = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=limit or openai.omit
        )
        choice, usage = whole.choices[0], whole.usage
        return Answer(
            text=choice.message.content or "",
            finish=FINISH[choice.finish_reason],
            tokens=usage and usage.completion_tokens,
        )


def plain(chat: Client, names: Names) -> None:
    """A whole answer; the list of models comes with it."""
    SITUATIONS["plain"](chat, names)
    assert isinstance(chat, Chat)
    models = [model.id for model in chat.client.models.list()]
    check(names.genuine.partition("/")[2] in models, models)


class Completions:
    """`completions`, the older form."""

    typed = TYPED
    cut = LENGTH

    def __init__(self, url: str) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        answer = Answer()
        with self.client.with_options(max_retries=0).completions.create(
            model=model,
            prompt=PROMPT,
            stream=True,
            max_tokens=limit or openai.omit,
            stream_options={"include_usage": True} if limit else openai.omit,
        ) as stream:
            for chunk in stream:
                if chunk.usage:
                    answer.tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    answer.add(choice.text)
                    answer.finish = FINISH.get(choice.finish_reason or "", answer.finish)
                yield answer

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        whole = client.completions.create(
            model=model, prompt=PROMPT, max_tokens=limit or openai.omit
        )
        choice, usage = whole.choices[0], whole.usage
        return Answer(
            text=choice.text,
            finish=FINISH[choice.finish_reason],
            tokens=usage and usage.completion_tokens,
        )


class Responses:
    """`responses`."""

    typed = TYPED
    cut = STOP  # llama.cpp calls every end of a response completed

    def __init__(self, url: str) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def stream(
        self, model: str, *, tools: bool = False, limit: int | None = None
    ) -> Generator[Answer]:
        answer = Answer()
        with self.client.with_options(max_retries=0).responses.create(
            model=model,
            input=PROMPT,
            stream=True,
            max_output_tokens=limit or openai.omit,
            tools=[{"type": "function", "strict": False, **TOOL}] if tools else openai.omit,  # type: ignore[list-item]
        ) as stream:
            for event in stream:
                raise_on_failure(event)
                if event.type == "response.output_text.delta":
                    answer.add(event.delta)
                elif event.type in ("response.completed", "response.incomplete"):
                    whole = finished(event.response)
                    answer.finish, answer.tokens = whole.finish, whole.tokens
                    answer.call = whole.call
                yield answer
        check(answer.finish, f"the stream ended without its last event: {answer}")

    def ask(self, model: str, *, limit: int | None = None, retries: int | None = 0) -> Answer:
        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        return finished(
            client.responses.create(
                model=model, input=PROMPT, max_output_tokens=limit or openai.omit
            )
        )

    def resume(self, _: "Responses", names: Names) -> None:
        """A response in the background goes on where its reader left it, and can be read again."""
        head = []
        stream = self.client.responses.create(
            model=f"{names.box}/numbered:200:5", input=PROMPT, stream=True, background=True
        )
        for event in stream:
            head.append(event)
            if len(head) == 50:
                break
        stream.close()
        made: Any = next(each for each in head if each.type == "response.created")
        rest = list(
            self.client.responses.retrieve(
                made.response.id, stream=True, starting_after=head[-1].sequence_number
            )
        )
        seen: list[Any] = head + rest
        order = [each.sequence_number for each in seen]
        check(order == list(range(len(seen))), order)
        text = "".join(e.delta for e in seen if e.type == "response.output_text.delta")
        check(text == numbers(200), text)
        check(seen[-1].type == "response.completed", seen[-1].type)
        again = list(
            self.client.responses.retrieve(
                made.response.id, stream=True, starting_after=head[-1].sequence_number
            )
        )
        check(again == rest, "a second replay differs")


def raise_on_failure(event: Any) -> None:
    """Responses says in events of its own that it failed; the client hands them to its user."""
    if event.type == "response.failed":
        raise failure(event.response.error.message)
    if event.type == "error":
        raise failure(event.message)


def failure(message: str) -> openai.APIError:
    """What the user would make of such an event."""
    return openai.APIError(message, request=httpx2.Request("POST", "/v1/responses"), body=None)


def finished(response: Any) -> Answer:
    """What a finished response says."""
    calls = [item for item in response.output if item.type == "function_call"]
    finish = LENGTH if response.status == "incomplete" else STOP
    return Answer(
        text=response.output_text,
        finish=TOOLS if calls else finish,
        tokens=response.usage and response.usage.output_tokens,
        call=(calls[0].name, json.loads(calls[0].arguments)) if calls else None,
    )


if __name__ == "__main__":
    stage = Stage.from_arguments()
    driver = Driver(stage, ("openai",))
    driver.run("openai-python.chat", Chat(stage.url), plain=plain)
    driver.run("openai-python.completions", Completions(stage.url))
    responses = Responses(stage.url)
    driver.run("openai-python.responses", responses, resume=responses.resume)
