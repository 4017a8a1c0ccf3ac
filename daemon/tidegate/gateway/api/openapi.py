"""What is served here, as an OpenAPI 3.1 document.

It is made of the route table and of the format descriptions: paths, methods, path parameters,
which routes need a token, what streams and how an error looks all come from there, so that none of
it can be said twice. The words are in `descriptions`, by the name of a route's handler; the shapes
of what the gateway itself answers are in `schemas`.

What passes to an upstream and back is not described: it is its upstream's to say. So a request
may hold anything beside the few fields that routing needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, partial

import msgspec

from tidegate import __version__
from tidegate.core.formats import MESSAGES, RESPONSES
from tidegate.core.formats.base import Format
from tidegate.core.formats.multipart import MAX_VALUE_BYTES
from tidegate.gateway import web
from tidegate.gateway.api import descriptions, schemas
from tidegate.gateway.api.descriptions import Description
from tidegate.gateway.api.schemas import JSON, JsonObject, answer, content, header, ref
from tidegate.gateway.gateway import Gateway, Handler, Route
from tidegate.gateway.server.auth import Access, Caller

_ANY = "*/*"
_GROUP = re.compile(r"\(([^()]+)\)")
_MEDIA = re.compile("/v1/(?:images|audio)/")


async def describe(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Show the document of what this gateway serves."""
    return web.Response(body=encoded(gateway.routes.ROUTES), content_type=JSON)


@cache
def encoded(routes: tuple[Route, ...]) -> bytes:
    """Encode the document, when it is first asked for."""
    return msgspec.json.encode(document(routes))


def document(routes: Iterable[Route]) -> JsonObject:
    """Make the document. Raises KeyError for a route whose handler is not described."""
    paths: dict[str, JsonObject] = {}
    for route in routes:
        paths.setdefault(template(route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tidegate",
            "version": __version__,
            "description": descriptions.ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in descriptions.TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.SCHEMAS,
            "headers": schemas.HEADERS,
            "securitySchemes": schemas.SECURITY,
        },
    }


def template(path: re.Pattern[str]) -> str:
    """Write a route's path as OpenAPI does; at most one part of it varies."""
    return _GROUP.sub("{id}", path.pattern)


def error_schema(path: str) -> str:
    """Name the schema of the errors that clients of this path read."""
    if path.startswith("/v1/messages"):
        return "AnthropicError"
    return "OllamaError" if path.startswith("/api/") else "Error"


def _operation(route: Route) -> JsonObject:
    path = template(route.path)
    form = _form_of(route.handler)
    if form is None:
        name = route.handler.__name__
        about, operation_id = descriptions.BY_HANDLER[name], _camel(name.split("_"))
    else:
        about, operation_id = _about_form(form), _name(path)
    varying = [_path_parameter(group) for group in _GROUP.findall(route.path.pattern)]
    operation: JsonObject = {
        "operationId": operation_id,
        "summary": about.summary,
        "tags": [about.tag],
        "parameters": [*varying, *about.parameters],
        "responses": _responses(path, route.access, about, is_answer=form is not None),
        "security": _security(route.access),
    }
    if form is not None:
        operation["requestBody"] = _request_body(path, form)
    return operation


def _security(access: Access) -> list[JsonObject]:
    """Say which token a route asks for; in OpenAPI's words a scope is a role."""
    if access is Access.OPEN:
        return []
    return [{kind: [access.name.lower()]} for kind in schemas.SECURITY]


def _form_of(handler: Handler) -> Format | None:
    """Find the format of a route that asks an upstream."""
    form = handler.keywords["form"] if isinstance(handler, partial) else None
    assert form is None or isinstance(form, Format)
    return form


def _about_form(form: Format) -> Description:
    """Describe how a format is asked, and what it answers."""
    forms = (form, form.of_request(b'{"stream_format":"sse"}', JSON))  # as speech may be asked
    bodies: JsonObject = {JSON if form.answers_json else _ANY: {}}
    streaming = [each.framing.content_type.partition(";")[0] for each in forms if each.streams]
    bodies |= dict.fromkeys(streaming, ref("Events"))
    text = "The answer, as its upstream gives it"
    text = f"{text}: whole, or as a stream." if streaming else f"{text}."
    whole = answer(text, bodies, (schemas.RUN_ID, schemas.UPSTREAM_ID))
    whole["links"] = descriptions.RUN_LINKS
    headers = [descriptions.HOPS]
    if streaming:
        headers.append(descriptions.ON_DISCONNECT)
    headers += [header(name, f"Passed on as it is: {name}.") for name in form.forwarded]
    tag = (
        "anthropic" if isinstance(form, type(MESSAGES)) else "ollama" if form.at_root else "openai"
    )
    return Description(f"Ask for a {form.name}", {"200": whole}, tag, tuple(headers))


def _name(path: str) -> str:
    """Make an operation's id of a path: "createChatCompletions" for "/v1/chat/completions"."""
    words = re.findall("[a-z0-9]+", path)
    if words[0] == "v1":
        words = words[1:]
    elif words[0] == "api":
        words[0] = "ollama"
    else:
        words.append("atRoot")
    return _camel(["create", *words])


def _camel(words: list[str]) -> str:
    """Join words: "showRun" for "show", "run"."""
    return words[0] + "".join(word[0].upper() + word[1:] for word in words[1:])


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
        fields |= descriptions.RESPONSE_FIELDS
    body = {"type": "object", "required": ["model"], "properties": fields}
    bodies: JsonObject = {JSON: body | {"additionalProperties": True}}
    if _MEDIA.match(path):
        # In a form every value is text.
        text = {name: {"type": "string", "maxLength": MAX_VALUE_BYTES} for name in fields}
        bodies["multipart/form-data"] = body | {"properties": text}
    return {"required": True, "description": descriptions.BODY, "content": content(bodies)}


def _path_parameter(group: str) -> JsonObject:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "A slash in it may be written as it is." if group == ".+" else "An id.",
        "schema": {"type": "string", "minLength": 1, "pattern": f"^{group}$"},
    }


def _responses(path: str, access: Access, about: Description, *, is_answer: bool) -> JsonObject:
    """Describe what this route answers, and what every route of its kind may."""
    statuses = dict(descriptions.ALWAYS)
    if access is not Access.OPEN:
        statuses |= descriptions.WITH_TOKENS
    if is_answer:
        statuses |= descriptions.OF_UPSTREAMS
    error = ref(error_schema(path))
    bodies: JsonObject = {JSON: error}
    if is_answer:  # it may have been the upstream that said so
        bodies = {JSON: {"anyOf": [error, {}]}, _ANY: {}}
    found = {
        status: answer(text, bodies, descriptions.HEADERS_OF.get(status, ()))
        for status, text in statuses.items()
    }
    for status, told in about.answers.items():
        found[status] = answer(told, {JSON: error}) if isinstance(told, str) else told
    return dict(sorted(found.items()))
