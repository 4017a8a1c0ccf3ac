"""Shapes of what the gateway itself answers, and the pieces that OpenAPI tells them with.

What is a Struct is described from its fields; the rest is written out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tidegate.core.problems import Repair
from tidegate.core.records.usage import GROUPS, UsageLine
from tidegate.core.runs.state import RunState
from tidegate.core.runs.summary import AttemptSummary, RunSummary

JsonObject = dict[str, Any]  # a piece of the document

JSON = "application/json"
EVENTS = "text/event-stream"
RUN_ID = "x-run-id"
UPSTREAM_ID = "x-upstream-request-id"
_IDS = ("x-request-id", "request-id")


# --- pieces -------------------------------------------------------------------------------------


def ref(name: str, kind: str = "schemas") -> JsonObject:
    """Refer to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def answer(text: str, bodies: JsonObject | None = None, more: Iterable[str] = ()) -> JsonObject:
    """Describe an answer: its `bodies`, a shape a media type; its ids, and `more` headers."""
    told: JsonObject = {
        "description": text,
        "headers": {name: ref(name, "headers") for name in (*_IDS, *more)},
    }
    return told | ({"content": content(bodies)} if bodies else {})


def content(bodies: JsonObject) -> JsonObject:
    """Describe bodies by media type, each of its shape."""
    return {kind: {"schema": schema} for kind, schema in bodies.items()}


def json_answer(text: str, schema: str, links: JsonObject | None = None) -> JsonObject:
    """Describe an answer of JSON, and the operations that it leads to."""
    return answer(text, {JSON: ref(schema)}) | ({"links": links} if links else {})


def text_answer(text: str) -> JsonObject:
    """Describe an answer for a person."""
    return answer(text, {"text/plain": {"type": "string"}})


def header(name: str, text: str, schema: JsonObject | None = None) -> JsonObject:
    """Describe a header of a request; text unless `schema` says more."""
    schema = schema or {"type": "string"}
    return {"name": name, "in": "header", "description": text, "schema": schema}


def query(name: str, text: str, schema: JsonObject) -> JsonObject:
    """Describe a parameter in the query of a request."""
    return {"name": name, "in": "query", "description": text, "schema": schema}


def links(operations: Iterable[str], source: str) -> JsonObject:
    """Describe the operations that an answer leads to, by the id at `source` in it."""
    return {name: {"operationId": name, "parameters": {"id": source}} for name in operations}


def _object(required: Mapping[str, str], **more: JsonObject) -> JsonObject:
    """Describe an object whose members are all there: names and types, also "string|null"."""
    members: JsonObject = {}
    for name, kinds in required.items():
        kind = kinds.split("|")
        members[name] = {"type": kind if len(kind) > 1 else kind[0]}
    members |= more
    return {"type": "object", "required": list(members), "properties": members}


def _struct(kind: type[msgspec.Struct], **more: JsonObject) -> JsonObject:
    """Describe a Struct as it is sent: every member is there, one with a default too."""
    _, made = msgspec.json.schema_components([kind])
    shape: JsonObject = made[kind.__name__]
    members = shape["properties"] | more
    return {
        "type": "object",
        "description": shape["description"],
        "required": list(members),
        "properties": members,
    }


def _list(schema: str) -> JsonObject:
    """Describe a list as OpenAI's clients read it."""
    return _object({"object": "string"}, data=_many(schema))


def _many(schema: str) -> JsonObject:
    return {"type": "array", "items": ref(schema)}


# --- components ---------------------------------------------------------------------------------

_STATE = {"enum": [state.value for state in RunState]}
SCHEMAS: JsonObject = {
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
    "Run": _struct(RunSummary, state=_STATE),
    "RunInFull": _struct(RunSummary, state=_STATE, attempt_list=_many("Attempt")),
    "Attempt": _struct(AttemptSummary),
    "Runs": _list("Run"),
    "Model": _object(
        {"id": "string", "object": "string", "created": "integer", "owned_by": "string"}
    ),
    "Models": _list("Model"),
    "UsageLine": _struct(UsageLine),
    "Usage": _object(
        {"object": "string", "since": "number"},
        by={"enum": list(GROUPS)},
        data=_many("UsageLine"),
    ),
    "Repair": _struct(Repair),
    "Repairs": _list("Repair"),
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


def _response_header(text: str, *, always: bool = False) -> JsonObject:
    return {"description": text, "required": always, "schema": {"type": "string"}}


HEADERS: JsonObject = {
    "x-request-id": _response_header("The request's id; a run's is the same.", always=True),
    "request-id": _response_header("The same, where Anthropic's clients look for it.", always=True),
    RUN_ID: _response_header("The run's id, for /v1/runs."),
    UPSTREAM_ID: _response_header("What the upstream calls the request."),
    "Retry-After": _response_header("In how many seconds to come back."),
    "WWW-Authenticate": _response_header("Bearer."),
    "Accept-Encoding": _response_header("How a body may be sent."),
}
SECURITY: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
