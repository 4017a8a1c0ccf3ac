"""What schemathesis has to know beside the document; it runs in an environment of its own."""

import json
from typing import Any

import schemathesis

# Headers that make no difference are no fault in a request.
UNKNOWN_HEADER = "x-schemathesis-unknown-property"


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out what the document can say only in words: to continue takes a stream."""
    headers = {str(name).lower(): value for name, value in (case.headers or {}).items()}
    body = case.body if isinstance(case.body, dict) else {}
    continues = headers.get("x-on-disconnect") == "continue"
    stateless = body.get("background") is True and body.get("store") is False
    return not (
        (continues and body.get("stream") is not True) or stateless or UNKNOWN_HEADER in headers
    )


@schemathesis.check
def refusals_are_ours(context: Any, response: Any, case: Any) -> None:
    """A refusal has a status that is named, and exactly the form that its clients read."""
    if response.status_code < 400:
        return
    assert response.status_code != 500, "an internal error"
    named = set(case.operation.definition.raw["responses"]) | {"405"}
    assert str(response.status_code) in named, "a status that is not named"
    error = json.loads(response.content)
    if case.operation.path.startswith("/api/"):
        assert set(error) == {"error"}
        assert isinstance(error["error"], str)
    elif case.operation.path.startswith("/v1/messages"):
        assert (set(error), set(error["error"])) == ({"type", "error"}, {"type", "message"})
    else:
        assert set(error) == {"error"}
        assert set(error["error"]) == {"message", "type", "param", "code"}
