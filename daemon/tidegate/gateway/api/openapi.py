"""What is served here, as an OpenAPI 3.1 document.

It is made of the route table and of the format descriptions: paths, methods, path parameters,
who needs a token, what streams and how an error looks all come from there, so that none of it can
be said twice. Only words and the shapes of what the gateway itself reads and answers are written
here, by the handler that they describe.

What passes to an upstream and back is not described: it is its upstream's to say. So a request
may hold anything beside the few fields that routing needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from tidegate import __version__
from tidegate.core.formats import MESSAGES, RESPONSES
from tidegate.core.formats.base import Format
from tidegate.core.formats.multipart import MAX_VALUE_BYTES
from tidegate.core.runs.run import State
from tidegate.gateway.api import create, health, ollama, response_socket, runs
from tidegate.gateway.api.models import list_models, show_model
from tidegate.gateway.api.responses import (
    cancel_response,
    delete_response,
    list_input_items,
    show_response,
)
from tidegate.gateway.gateway import Gateway, Route
from tidegate.gateway.server.auth import Access, Caller

JsonObject = dict[str, Any]  # a piece of the document

_JSON = "application/json"
_EVENTS = "text/event-stream"
_ANY = "*/*"
_GROUP = re.compile(r"\(([^()]+)\)")
_MEDIA = re.compile("/v1/(?:images|audio)/")


class _About(NamedTuple):
    """What a handler does, in words, and what it answers beyond what every route may."""

    name: str
    summary: str
    answers: JsonObject
    tag: str = "gateway"
    parameters: tuple[JsonObject, ...] = ()


async def show(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """The document of what this gateway serves."""
    return web.Response(body=encoded(gateway.routes.ROUTES), content_type=_JSON)


@cache
def encoded(routes: tuple[Route, ...]) -> bytes:
    """The document as JSON, made when it is first asked for."""
    return msgspec.json.encode(document(routes))


def document(routes: Iterable[Route]) -> JsonObject:
    """The document. Raises KeyError for a route whose handler nobody has described."""
    paths: dict[str, JsonObject] = {}
    for route in routes:
        paths.setdefault(template(route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tidegate",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "headers": _HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def template(path: re.Pattern[str]) -> str:
    """A route's path as OpenAPI writes it; at most one part of it varies."""
    return _GROUP.sub("{id}", path.pattern)


def error_schema(path: str) -> str:
    """The schema's name of the errors that clients of this path read."""
    if path.startswith("/v1/messages"):
        return "AnthropicError"
    return "OllamaError" if path.startswith("/api/") else "Error"


# --- an operation -------------------------------------------------------------------------------


def _operation(route: Route) -> JsonObject:
    path = template(route.path)
    form = _form_of(route.handler)
    about = _about_form(path, form) if form is not None else _ABOUT[route.handler]
    varying = [_path_parameter(group) for group in _GROUP.findall(route.path.pattern)]
    operation: JsonObject = {
        "operationId": about.name,
        "summary": about.summary,
        "tags": [about.tag],
        "parameters": [*varying, *about.parameters],
        "responses": _responses(path, route.access, about, is_answer=form is not None),
        "security": [] if route.access is Access.OPEN else [{"bearer": []}, {"apiKey": []}],
    }
    if form is not None:
        operation["requestBody"] = _request_body(path, form)
    return operation


def _form_of(handler: Callable[..., object]) -> Format | None:
    if isinstance(handler, partial) and handler.func is create.answer:
        form: Format = handler.keywords["form"]
        return form
    return None


def _about_form(path: str, form: Format) -> _About:
    """How a format is asked, and what it answers."""
    forms = (form, form.of_request(b'{"stream_format":"sse"}', _JSON))  # as speech may be asked
    content: JsonObject = {_JSON: _schema({})} if form.answers_json else {_ANY: _schema({})}
    streaming = [each.framing.content_type.partition(";")[0] for each in forms if each.streams]
    content |= {kind: _ref_schema("Events") for kind in streaming}
    text = "The answer, as its upstream gives it"
    answer = _answer(f"{text}: whole, or as a stream." if streaming else f"{text}.", content)
    answer["headers"] |= {name: _ref("headers", name) for name in (_RUN_ID, _UPSTREAM_ID)}
    answer["links"] = _RUN_LINKS
    headers: list[JsonObject] = [_HOPS]
    if streaming:
        headers.append(_ON_DISCONNECT)
    headers += [_header(name, f"Passed on as it is: {name}.") for name in form.forwarded]
    tag = (
        "anthropic" if isinstance(form, type(MESSAGES)) else "ollama" if form.at_root else "openai"
    )
    return _About(_name(path), f"Ask for a {form.name}", {"200": answer}, tag, tuple(headers))


def _name(path: str) -> str:
    """ "createChatCompletions" for "/v1/chat/completions"."""
    words = re.findall("[a-z0-9]+", path)
    if words[0] == "v1":
        words = words[1:]
    elif words[0] == "api":
        words[0] = "ollama"
    else:
        words.append("atRoot")
    return "create" + "".join(word[0].upper() + word[1:] for word in words)


def _request_body(path: str, form: Format) -> JsonObject:
    fields: JsonObject = {
        "model": {"type": "string", "description": "A model, an alias, or upstream/model."}
    }
    if form.streams:
        unasked = "true" if form.streams_unasked else "false"
        fields["stream"] = {
            "type": ["boolean", "null"],
            "description": f"Whether the answer comes as it grows; {unasked} where it is left out.",
        }
    if form is RESPONSES:
        fields |= _RESPONSE_FIELDS
    body = {
        "type": "object",
        "required": ["model"],
        "properties": fields,
        "additionalProperties": True,
    }
    content: JsonObject = {_JSON: _schema(body)}
    if _MEDIA.match(path):
        # In a form every value is text.
        text = {name: {"type": "string", "maxLength": MAX_VALUE_BYTES} for name in fields}
        content["multipart/form-data"] = _schema(
            {"type": "object", "required": ["model"], "properties": text}
        )
    return {"required": True, "description": _BODY, "content": content}


def _path_parameter(group: str) -> JsonObject:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "A slash in it may be written as it is." if group == ".+" else "An id.",
        "schema": {"type": "string", "minLength": 1, "pattern": f"^{group}$"},
    }


def _responses(path: str, access: Access, about: _About, *, is_answer: bool) -> JsonObject:
    """What this route answers, and what every route of its kind may."""
    statuses = dict(_ALWAYS)
    if access is not Access.OPEN:
        statuses |= _OF_TOKENS
    if is_answer:
        statuses |= _OF_ANSWERS
    error = _schema({"$ref": f"#/components/schemas/{error_schema(path)}"})
    found: JsonObject = {}
    for status, text in statuses.items():
        content: JsonObject = {_JSON: error}
        if is_answer:  # it may have been the upstream that said so
            content = {_JSON: _schema({"anyOf": [error["schema"], {}]}), _ANY: _schema({})}
        found[status] = _answer(text, content, _HEADERS_OF.get(status, ()))
    # Where the table line of a handler says only a text, it is an error like the others.
    for status, answer in about.answers.items():
        told = isinstance(answer, str)
        found[status] = _answer(answer, {_JSON: error}) if told else answer
    return dict(sorted(found.items()))


# --- pieces -------------------------------------------------------------------------------------

_RUN_ID = "x-run-id"
_UPSTREAM_ID = "x-upstream-request-id"
_IDS = ("x-request-id", "request-id")


def _schema(schema: Mapping[str, Any]) -> JsonObject:
    return {"schema": dict(schema)}


def _ref(kind: str, name: str) -> JsonObject:
    return {"$ref": f"#/components/{kind}/{name}"}


def _ref_schema(name: str) -> JsonObject:
    return {"schema": _ref("schemas", name)}


def _answer(text: str, content: JsonObject | None = None, more: Iterable[str] = ()) -> JsonObject:
    answer: JsonObject = {
        "description": text,
        "headers": {name: _ref("headers", name) for name in (*_IDS, *more)},
    }
    if content:
        answer["content"] = content
    return answer


def _json_answer(text: str, schema: str, links: JsonObject | None = None) -> JsonObject:
    answer = _answer(text, {_JSON: _schema(_ref("schemas", schema))})
    return answer | ({"links": links} if links else {})


def _text_answer(text: str) -> JsonObject:
    return _answer(text, {"text/plain": _schema({"type": "string"})})


def _header(name: str, text: str, schema: Mapping[str, Any] | None = None) -> JsonObject:
    kind = schema or {"type": "string"}
    return {"name": name, "in": "header", "description": text, "schema": kind}


def _query(name: str, text: str, schema: Mapping[str, Any]) -> JsonObject:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _links(operations_: Iterable[str], source: str) -> JsonObject:
    return {name: {"operationId": name, "parameters": {"id": source}} for name in operations_}


def _object(required: Mapping[str, str], **more: JsonObject) -> JsonObject:
    """An object whose members are all there: names and types, "string|null" among them."""
    members: JsonObject = {}
    for name, kinds in required.items():
        kind = kinds.split("|")
        members[name] = {"type": kind if len(kind) > 1 else kind[0]}
    members |= more
    return {"type": "object", "required": list(members), "properties": members}


_DESCRIPTION = (
    "An LLM streaming gateway. Requests go to an upstream that speaks their format, answers come"
    " back with their bytes unchanged; only what the gateway itself reads and says is described"
    " here. Where GET is, HEAD is too. An error has the form that the clients of its route read."
    " A token is asked for once there is one."
)
_TAGS = {
    "openai": "OpenAI's API, and what has grown around it.",
    "anthropic": "Anthropic's API.",
    "ollama": "Ollama's own API.",
    "runs": "Answers by their own ids: look at them, come back to them, end them.",
    "gateway": "The gateway itself.",
}
_BODY = (
    "Beside these fields everything passes to the upstream as it came. It may be sent as gzip or"
    " deflate, with Content-Encoding, and is limited by max_body as sent and as inflated."
)
_ALWAYS = {
    "400": "A request that is no request, or a Host that is no host.",
    "403": "A Host that is not allowed, or a page of another site.",
    "408": "The head or the body took longer than header_s or body_s.",
    "431": "A header or the target is longer than 8190 bytes, or the whole head than 32 KiB.",
    "500": "A fault of the gateway's own; its log says more.",
    "503": "No place, no memory or no connection now.",
}
_TOO_MANY = "Too many wrong tokens came from the client's address; a valid one is let in."
_OF_TOKENS = {
    "401": "No token, none that is valid, or valid ones of different owners.",
    "429": _TOO_MANY,
}
_OF_ANSWERS = {
    "404": "There is no such model; the message names those there are.",
    "409": "The run was cancelled before there was anything to answer with.",
    "413": "The body is larger than max_body.",
    "415": "The body is sent neither as gzip or deflate nor as it is.",
    "417": "Another Expect than 100-continue.",
    "429": f"The upstream has had enough for now. {_TOO_MANY}",
    "502": "No upstream could answer; the message says which one and why.",
    "504": "A limit was reached before there was an answer; the message names it.",
    "508": "This request has come through too many tidegates: an upstream leads back here.",
    "4XX": "What the upstream had against the request, as it said it.",
    "5XX": "What was wrong at the upstream, as it said it.",
}
_HEADERS_OF = {
    "401": ("WWW-Authenticate",),
    "415": ("Accept-Encoding",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def _told(text: str, schema: str = "string", *, always: bool = False) -> JsonObject:
    return {"description": text, "required": always, "schema": {"type": schema}}


_HEADERS = {
    "x-request-id": _told("The request's id; a run's is the same.", always=True),
    "request-id": _told("The same, where Anthropic's clients look for it.", always=True),
    _RUN_ID: _told("The run's id, for /v1/runs."),
    _UPSTREAM_ID: _told("What the upstream calls the request."),
    "Retry-After": _told("In how many seconds to come back."),
    "WWW-Authenticate": _told("Bearer."),
    "Accept-Encoding": _told("How a body may be sent."),
}
_HOPS = _header(
    "x-tidegate-hops",
    "Through how many tidegates the request has come. The fifth in a row answers 508.",
    {"type": "integer", "minimum": 0, "maximum": 3},
)
_ON_DISCONNECT = _header(
    "x-on-disconnect",
    "What becomes of the answer when its reader leaves; to continue, it has to be a stream.",
    {"enum": ["cancel", "continue", ""], "default": "cancel"},
)
_AFTER = {"type": "integer", "minimum": -1, "maximum": 2**53 - 1}
_STARTING_AFTER = _query("starting_after", "The last event that you have.", _AFTER)
_LAST_EVENT_ID = _header("Last-Event-ID", "The same, as browsers say it.", _AFTER)
_STREAM = _query("stream", "true: its events are sent.", {"type": "string"})
_LIMIT = _query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000})
_RESPONSE_FIELDS: JsonObject = {
    "background": {
        "type": ["boolean", "null"],
        "description": "Answer at once, with an id to come back with; store must not be false.",
    },
    "store": {
        "type": ["boolean", "null"],
        "description": "Whether the answer can be asked for later; true where it is left out.",
    },
    "previous_response_id": {
        "type": ["string", "null"],
        "description": "The answer that this one goes on from: it goes to the same upstream.",
    },
}

_RUN_MEMBERS = {
    "id": "string",
    "object": "string",
    "reason": "string|null",
    "model": "string",
    "upstream": "string|null",
    "attempts": "integer",
    "created": "number",
    "ended": "number|null",
    "first_seq": "integer",
    "next_seq": "integer",
    "bytes": "integer",
    "subscribers": "integer",
}
_STATE = {"enum": [state.value for state in State]}
_ATTEMPT = _object(
    {
        "number": "integer",
        "upstream": "string",
        "model": "string",
        "tries": "integer",
        "outcome": "string|null",
        "seconds": "number",
        "upstream_request_id": "string|null",
    }
)
_LIST = {"object": "string"}


def _many(schema: str) -> JsonObject:
    return {"type": "array", "items": _ref("schemas", schema)}


_SCHEMAS = {
    "Error": _object(
        {},
        error=_object(
            {"message": "string", "type": "string", "param": "string|null", "code": "string|null"}
        ),
    ),
    "AnthropicError": _object(
        {}, type={"const": "error"}, error=_object({"type": "string", "message": "string"})
    ),
    "OllamaError": _object({"error": "string"}),
    "Run": _object(_RUN_MEMBERS, state=_STATE),
    "RunInFull": _object(_RUN_MEMBERS, state=_STATE, attempt_list=_many("Attempt")),
    "Attempt": _ATTEMPT,
    "Runs": _object(_LIST, data=_many("Run")),
    "Model": _object(
        {"id": "string", "object": "string", "created": "integer", "owned_by": "string"}
    ),
    "Models": _object(_LIST, data=_many("Model")),
    "Repair": _object(
        {
            "id": "string",
            "since": "number",
            "severity": "string",
            "cause": "string",
            "fix": "string",
        }
    ),
    "Repairs": _object(_LIST, data=_many("Repair")),
    "OllamaModels": _object({}, models={"type": "array", "items": {"type": "object"}}),
    "OllamaVersion": _object({"version": "string"}),
    "Response": {"type": "object", "description": "A response, as OpenAI has it."},
    "Deleted": _object({"id": "string", "object": "string", "deleted": "boolean"}),
    # Without a type: OpenAPI 3.1 does not say whether it would be that of an event or of them all.
    "Events": {"description": "Whole events, or lines of JSON, one after the other."},
    "Alive": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string"}, "parked": {"type": "string"}},
    },
    "Ready": _object(
        {
            "status": "string",
            "generation": "integer",
            "memory_level": "integer",
            "draining": "boolean",
        },
        reasons={"type": "array", "items": {"type": "string"}},
    ),
    "Document": {"type": "object", "required": ["openapi", "info", "paths"]},
}

_RUN_LINKS = _links(("showRun", "streamRun", "cancelRun"), f"$response.header.{_RUN_ID}")
_LISTED_LINKS = _links(("showRun", "streamRun", "cancelRun"), "$response.body#/data/0/id")
_NO_RUN = "There is no such run: released, never there, or not yours."
_NO_RESPONSE = "There is no such response: released, never there, or not yours."
_NO_OLLAMA = "No upstream speaks Ollama's own API, or none answers."
_GONE = "It is no longer held."
_SHOWN = _json_answer("The response as it is now.", "Response")
_EVENT_CONTENT: JsonObject = {_EVENTS: _ref_schema("Events")}

_ABOUT: dict[Callable[..., object], _About] = {
    show_response: _About(
        "showResponse",
        "A response as it is now, or its events",
        {
            "200": _answer(
                "The response, or its events.",
                {_JSON: _schema(_ref("schemas", "Response")), **_EVENT_CONTENT},
            ),
            "404": _NO_RESPONSE,
            "410": _GONE,
        },
        "openai",
        (_STREAM, _STARTING_AFTER, _LAST_EVENT_ID),
    ),
    response_socket.converse: _About(
        "converseResponses",
        "Responses over WebSocket, one after another",
        {
            "101": {"description": "A WebSocket: each event of an answer a text of JSON."},
            "405": "It was not asked for as a WebSocket.",
        },
        "openai",
    ),
    list_input_items: _About(
        "listInputItems",
        "Not kept here: always 404",
        {"404": "There is no such response, or what was asked for it is not kept."},
        "openai",
    ),
    delete_response: _About(
        "deleteResponse",
        "Forget a response, and end it if need be",
        {"200": _json_answer("It is forgotten.", "Deleted"), "404": _NO_RESPONSE},
        "openai",
    ),
    cancel_response: _About(
        "cancelResponse",
        "End a background response",
        {"200": _SHOWN, "404": _NO_RESPONSE, "410": _GONE},
        "openai",
    ),
    ollama.tags: _About(
        "listOllamaModels",
        "The models of every Ollama",
        {"200": _json_answer("The models.", "OllamaModels"), "502": _NO_OLLAMA},
        "ollama",
    ),
    ollama.loaded: _About(
        "listLoadedModels",
        "The models that every Ollama has in memory",
        {"200": _json_answer("The models.", "OllamaModels"), "502": _NO_OLLAMA},
        "ollama",
    ),
    ollama.version: _About(
        "showOllamaVersion",
        "The version of the first Ollama that answers",
        {"200": _json_answer("The version.", "OllamaVersion"), "502": _NO_OLLAMA},
        "ollama",
    ),
    list_models: _About(
        "listModels",
        "The models, from memory, at once",
        {
            "200": _json_answer(
                "The models.", "Models", _links(("showModel",), "$response.body#/data/0/id")
            )
        },
        "openai",
    ),
    show_model: _About(
        "showModel",
        "One model",
        {"200": _json_answer("The model.", "Model"), "404": "There is no model of that name."},
        "openai",
    ),
    runs.list_runs: _About(
        "listRuns",
        "Your runs, newest first",
        {"200": _json_answer("The runs.", "Runs", _LISTED_LINKS)},
        "runs",
        (_LIMIT,),
    ),
    runs.show_run: _About(
        "showRun",
        "One run",
        {"200": _json_answer("The run.", "RunInFull"), "404": _NO_RUN},
        "runs",
    ),
    runs.stream_run: _About(
        "streamRun",
        "The events of a run, from a cursor on; over WebSocket when asked to upgrade",
        {
            "101": {"description": "A WebSocket: each event a text {seq, event, data}."},
            "200": _answer("The events, each with its number as its id.", _EVENT_CONTENT),
            "204": _answer("The run is over, and you have all of it."),
            "404": _NO_RUN,
            "410": "Events behind the cursor are no longer held; the message names the oldest.",
        },
        "runs",
        (_STARTING_AFTER, _LAST_EVENT_ID),
    ),
    runs.cancel_run: _About(
        "cancelRun",
        "End a run; one that is over is shown as it is",
        {"200": _json_answer("The run.", "Run"), "404": _NO_RUN},
        "runs",
    ),
    health.list_repairs: _About(
        "listRepairs",
        "What somebody should mend: since when, why, and how",
        {"200": _json_answer("Open problems, the worst first.", "Repairs")},
    ),
    health.metrics: _About("showMetrics", "For Prometheus", {"200": _text_answer("Every metric.")}),
    health.alive: _About(
        "isAlive", "It is alive, if only parked", {"200": _json_answer("It is alive.", "Alive")}
    ),
    health.ready: _About(
        "isReady",
        "Whether it can serve",
        {
            "200": _json_answer("It can serve.", "Ready"),
            "503": _answer(
                "It cannot serve, and why; or all connections are in use.",
                {_JSON: _schema({"anyOf": [_ref("schemas", "Ready"), _ref("schemas", "Error")]})},
                ("Retry-After",),
            ),
        },
    ),
    health.welcome: _About(
        "welcome",
        "One sentence for a person",
        {"200": _text_answer("The sentence."), "503": _text_answer("It is parked, and why.")},
    ),
    show: _About("describe", "This document", {"200": _json_answer("This document.", "Document")}),
}
