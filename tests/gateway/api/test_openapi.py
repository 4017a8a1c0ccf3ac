"""The OpenAPI document: of every route, of nothing else, and true in what it repeats."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from fakes.client import get
from tidegate.core import formats
from tidegate.core.runs.state import RunState
from tidegate.core.runs.summary import AttemptSummary, RunSummary
from tidegate.core.settings import Token, Upstream
from tidegate.gateway.api import openapi
from tidegate.gateway.api.routes import ROUTES, find_route
from tidegate.gateway.server.auth import Access
from tidegate.gateway.server.errors import Refused

DOCUMENT: Any = openapi.document(ROUTES)
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_every_route_is_described_and_nothing_else() -> None:
    """Each line of the table is one operation, and each operation leads to its line."""
    described = {(method.upper(), path) for path, method, _ in OPERATIONS}
    assert described == {(r.method, openapi.template(r.path)) for r in ROUTES}
    assert len(described) == len(ROUTES)
    for path, method, operation in OPERATIONS:
        route, groups = find_route(method.upper(), path.replace("{id}", "x"))
        assert openapi.template(route.path) == path
        assert len(groups) == path.count("{id}")
        role = route.access.name.lower()
        asked = [] if route.access is Access.OPEN else [{"bearer": [role]}, {"apiKey": [role]}]
        assert operation["security"] == asked


def test_a_path_parameter_is_what_its_route_takes() -> None:
    """The pattern in the document and the one in the table are the same."""
    for path, method, operation in OPERATIONS:
        for parameter in operation["parameters"]:
            if parameter["in"] != "path":
                continue
            for value in ("x", "resp_0.:-", "a" * 80, "a" * 200, "a" * 201, "a/b", "ä", ""):
                taken = re.fullmatch(parameter["schema"]["pattern"], value) is not None
                try:
                    found = find_route(method.upper(), path.replace("{id}", value))[0]
                except Refused:
                    assert not taken
                else:
                    assert taken is (openapi.template(found.path) == path)


def test_every_operation_has_a_name_of_its_own() -> None:
    """Generators of clients make functions of them."""
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_every_reference_leads_somewhere() -> None:
    """To a component, or to the name of an operation."""
    text = json.dumps(DOCUMENT)
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', text):
        found = DOCUMENT
        for part in reference.split("/"):
            found = found[part]
    names = {operation["operationId"] for _, _, operation in OPERATIONS}
    for _, _, operation in OPERATIONS:
        for answer in operation["responses"].values():
            assert {link["operationId"] for link in answer.get("links", {}).values()} <= names


@pytest.mark.parametrize("form", formats.ALL, ids=lambda form: form.name)
def test_a_format_is_described_as_it_is(form: Any) -> None:
    """Whether it streams, in which framing, and which headers its upstream needs."""
    path = form.path if form.at_root else f"/v1{form.path}"
    operation = DOCUMENT["paths"][path]["post"]
    content = operation["responses"]["200"]["content"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert ("stream" in body["properties"]) is form.streams
    assert ("application/json" in content) is form.answers_json
    if form.streams:
        assert form.framing.content_type.partition(";")[0] in content
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names >= set(form.forwarded)
    assert ("x-on-disconnect" in names) is (form.streams or form is formats.SPEECH)
    assert form.parse_request(b'{"model": "m"}', "application/json").model == "m"


def test_runs_are_described_as_they_are_sent() -> None:
    """With every member, and none besides."""
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["Run"]["properties"]) == set(RunSummary.__struct_fields__)
    assert set(schemas["RunInFull"]["properties"]) == {
        *RunSummary.__struct_fields__,
        "attempt_list",
    }
    assert set(schemas["Attempt"]["properties"]) == set(AttemptSummary.__struct_fields__)
    for name in ("Run", "RunInFull", "Attempt", "Repair"):  # a member with a default is sent too
        assert schemas[name]["required"] == list(schemas[name]["properties"])
    assert schemas["Run"]["properties"]["state"] == {"enum": [state.value for state in RunState]}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages", "/v1/messages/x", "/api/tags"])
def test_an_error_is_described_as_its_clients_read_it(path: str) -> None:
    """OpenAI's, Anthropic's and Ollama's clients each know their own."""
    schemas = DOCUMENT["components"]["schemas"]
    said = json.loads(bytes(Refused(400, "why", "code").response(path).body))  # type: ignore[arg-type]
    described = schemas[openapi.error_schema(path)]
    assert set(said) == set(described["required"])
    if isinstance(said["error"], dict):
        assert set(said["error"]) == set(described["properties"]["error"]["required"])


async def test_it_needs_no_token_and_tells_no_secret(rigs) -> None:
    """Tools that read it have no token; it says nothing of upstreams, models or keys."""
    box = Upstream(name="secretbox", url="http://127.0.0.1:9")
    token = Token(name="laptop", sha256="0" * 64)
    rig = await rigs(box, tokens=[token], models={"hidden": ["secretbox/x"]})
    answer = await get(rig.base_url, "/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body) == json.loads(msgspec.json.encode(DOCUMENT))
    for word in (b"secretbox", b"hidden", b"laptop", token.sha256.encode()):
        assert word not in answer.body
