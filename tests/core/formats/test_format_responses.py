"""Responses: what each event means, how they end, and what is made of them in the background."""

import json

import pytest

from fakes.held import held
from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import About, ErrorText, Meaning
from tidegate.core.formats.framing import SSE
from tidegate.core.formats.responses import MOST_ITEMS, Rewriter, as_event, response_in


def event(kind: str, **values: object) -> bytes:
    return as_event(kind, {"type": kind, **values})


ROWS = [
    (event("response.created", response={}), Meaning.OPENING),
    (event("keepalive", sequence_number=3), Meaning.KEEP_ALIVE),
    (event("response.output_text.delta", delta=""), Meaning.KEEP_ALIVE),
    (event("response.completed", sequence_number="7", item=5), Meaning.DONE),
    (event("error", sequence_number={}), Meaning.ERROR),
    (event("response.queued", response={}), Meaning.KEEP_ALIVE),
    (event("response.in_progress", response={}), Meaning.KEEP_ALIVE),
    (event("response.output_item.added", item={"type": "message"}), Meaning.OPENING),
    (event("response.output_item.added", item={"type": "reasoning"}), Meaning.OPENING),
    (event("response.output_item.added", item={"type": "function_call"}), Meaning.OUTPUT),
    (event("response.content_part.added", part={"text": ""}), Meaning.OPENING),
    (event("response.content_part.added", part={"text": "a"}), Meaning.OUTPUT),
    (event("response.output_text.delta", delta="a"), Meaning.OUTPUT),
    (event("response.reasoning_text.delta", delta="a"), Meaning.OUTPUT),
    (event("response.function_call_arguments.delta", delta="{"), Meaning.OUTPUT),
    (event("response.completed", response={"error": None}), Meaning.DONE),
    (event("response.incomplete", response={}), Meaning.DONE),
    (event("response.failed", response={}), Meaning.ERROR),
    (event("error", message="no"), Meaning.ERROR),
    (b"data: [DONE]\n\n", Meaning.OTHER),
    (b'data: {"a":1}\n\n', Meaning.OTHER),
]


@pytest.mark.parametrize(("raw", "meaning"), ROWS, ids=range(len(ROWS)))
def test_each_kind_of_event_is_told_from_the_others(raw: bytes, meaning: Meaning) -> None:
    """Nothing that only prepares is output; three events end a stream."""
    assert RESPONSES.meaning(raw) is meaning


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_an_end_is_never_missed(kind: str) -> None:
    """With or without its name before it, and however JSON spells it."""
    spelled = kind.replace("p", "\\u0070").replace("f", "\\u0066")
    for raw in (event(kind), f'data: {{"type": "{spelled}"}}\n\n'.encode()):
        assert RESPONSES.may_end(raw)
        assert RESPONSES.meaning(raw) in {Meaning.DONE, Meaning.ERROR}


def test_our_error_goes_on_in_numbers_and_says_what_became_of_the_response() -> None:
    """A flat error and response.failed; behind an upstream's flat error only the latter."""
    about = About(event("response.output_text.delta", sequence_number=6), "resp_1", "m", 5.0)
    error = ErrorText(504, "idle", "timeout_error", "idle_s")
    flat, failed = (json.loads(SSE.data(each)) for each in RESPONSES.error_events(error, about))
    assert (flat["type"], flat["message"], flat["code"]) == ("error", "idle", "idle_s")
    assert (flat["sequence_number"], failed["sequence_number"]) == (7, 8)
    assert (failed["response"]["id"], failed["response"]["status"]) == ("resp_1", "failed")
    open_error = about._replace(last_event=event("error", sequence_number=9))
    [only] = RESPONSES.error_events(error, open_error)
    assert json.loads(SSE.data(only))["sequence_number"] == 10


# --- in the background --------------------------------------------------------------------------


def rewritten(*events: bytes) -> list[dict[str, object]]:
    about = About(b"", "resp_ours", "m", 5.0, background=True)
    block, count = Rewriter(about)(b"".join(events), len(events), 3)
    assert count == len(events)
    return [json.loads(SSE.data(each)) for each in SSE.split(block)]


def test_what_a_small_server_leaves_out_is_filled_in() -> None:
    """The model, the time, the lists, and which output and part an event belongs to."""
    created, added, delta, second, other = rewritten(
        event("response.created", response={"id": "theirs", "status": "in_progress"}),
        event("response.output_item.added", item={"id": "a", "type": "reasoning"}),
        event("response.output_text.delta", item_id="a", delta="x"),
        event("response.output_item.added", item={"id": "b", "type": "message"}),
        event("response.output_text.delta", item_id="b", delta="y"),
    )
    response = created["response"]
    assert isinstance(response, dict)
    assert (response["id"], response["model"], response["created_at"]) == ("resp_ours", "m", 5)
    assert (response["output"], response["tools"], response["background"]) == ([], [], True)
    places = [each.get("output_index") for each in (added, delta, second, other)]
    assert places == [0, 0, 1, 1]
    assert (delta["content_index"], other["content_index"]) == (0, 0)
    assert [each["sequence_number"] for each in (created, added, other)] == [3, 4, 7]


def test_what_is_there_is_not_changed() -> None:
    """But for the id and the number, which are ours."""
    response = {"id": "theirs", "model": "real", "output": [1], "created_at": 9, "x": 1.50}
    values = {"item_id": "a", "output_index": 4, "content_index": 2, "delta": "\u00e9"}
    created, delta, done = rewritten(
        event("response.created", sequence_number=99, response=response),
        event("response.output_text.delta", sequence_number=100, **values),
        event("response.output_text.done", item_id="a"),
    )
    shown = created["response"]
    assert isinstance(shown, dict)
    assert {name: shown[name] for name in response} == response | {"id": "resp_ours"}
    assert {name: delta[name] for name in values} == values
    assert done["output_index"] == 4  # as it was said before
    assert [created["sequence_number"], delta["sequence_number"]] == [3, 4]


def test_odd_events_are_numbered_as_far_as_they_can_be() -> None:
    """A member of the wrong kind spoils nothing; what is no event of ours passes as it is."""
    about = About(b"", "resp_ours", "m", 5.0)
    odd = event("response.x", sequence_number="seven", output_index=None, item_id=7)
    [event_raw] = SSE.split(Rewriter(about)(odd, 1, 0)[0])
    assert json.loads(SSE.data(event_raw))["sequence_number"] == 0
    hostile = b'data: {"type":"response.x\\ndata: [DONE]"}\n\n'
    for raw in (b"data: [DONE]\n\n", b'data: {"a":1}\n\n', b"data: 7\n\n", hostile):
        assert Rewriter(about)(raw, 1, 0) == (raw, 1)


def test_a_flood_of_items_is_bounded() -> None:
    """Whatever an upstream makes up, no more than so many are told apart."""
    rewriter = Rewriter(About(b"", "resp_ours", "m", 5.0))
    for number in range(MOST_ITEMS + 50):
        item = {"id": f"item{number}", "type": "message"}
        rewriter(event("response.output_item.added", item=item), 1, number)
    assert sum(text.startswith("item") for text in held(rewriter, str)) == MOST_ITEMS


def test_the_response_of_an_event_is_found() -> None:
    """A client can ask for it later."""
    found = response_in(event("response.completed", response={"id": "r"}))
    assert found is not None
    assert json.loads(found) == {"id": "r"}
    assert response_in(event("response.output_text.delta", delta="a")) is None
    assert response_in(b"data: [DONE]\n\n") is None
