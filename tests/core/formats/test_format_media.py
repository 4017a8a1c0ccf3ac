"""What the relay must know of images and sound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.formats import (
    IMAGE_EDITS,
    IMAGE_VARIATIONS,
    IMAGES,
    SPEECH,
    SPEECH_EVENTS,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)
from tidegate.core.formats.base import About, ErrorText, Meaning
from tidegate.core.formats.framing import RAW, SSE


def event(kind: str, **values: object) -> bytes:
    data = json.dumps({"type": kind, **values}).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


PARTIAL = event("image_generation.partial_image", b64_json="iVBOR", partial_image_index=0)
COMPLETED = event("image_generation.completed", b64_json="iVBOR", usage={"output_tokens": 9})
WORD = event("transcript.text.delta", delta="a")
DONE = b"data: [DONE]\n\n"
CHUNK = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'

ROWS = [
    (PARTIAL, Meaning.OUTPUT),
    (COMPLETED, Meaning.FINISH),
    (event("image_edit.partial_image", b64_json="iVBOR"), Meaning.OUTPUT),
    (event("image_edit.completed", b64_json="iVBOR"), Meaning.FINISH),
    (WORD, Meaning.OUTPUT),
    (event("transcript.text.segment", text="a"), Meaning.OUTPUT),
    (event("transcript.text.done", text="a"), Meaning.FINISH),
    (event("speech.audio.delta", audio="SUQz"), Meaning.OUTPUT),
    (event("speech.audio.done", usage={}), Meaning.FINISH),
    (event("error", error={"message": "no"}), Meaning.ERROR),
    (event("image_generation.failed"), Meaning.ERROR),
    (b'data: {"error":{"message":"no"}}\n\n', Meaning.ERROR),
    (event("image_generation.completed", error=None), Meaning.FINISH),
    (CHUNK, Meaning.OUTPUT),
    (FINISH, Meaning.FINISH),
    (DONE, Meaning.DONE),
    (b"data: not json\n\n", Meaning.OTHER),
    (b'data: {"type":7}\n\n', Meaning.OTHER),
]


@pytest.mark.parametrize(("raw", "meaning"), ROWS, ids=range(len(ROWS)))
def test_each_kind_of_event_is_told_from_the_others(raw: bytes, meaning: Meaning) -> None:
    """Typed events, and the chat chunks that some servers send of a transcription."""
    assert TRANSCRIPTIONS.meaning(raw) is meaning


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([PARTIAL, COMPLETED], Meaning.FINISH),
        ([PARTIAL, COMPLETED, DONE], Meaning.DONE),
        ([PARTIAL, COMPLETED, PARTIAL], Meaning.OPENING),
        ([PARTIAL, COMPLETED, PARTIAL, COMPLETED], Meaning.FINISH),
        ([PARTIAL], Meaning.OPENING),
        ([PARTIAL, event("error", error={"message": "no"})], Meaning.ERROR),
        ([CHUNK, FINISH, DONE], Meaning.DONE),
        ([CHUNK, FINISH], Meaning.FINISH),
    ],
    ids=range(8),
)
def test_what_is_done_is_whole_unless_more_came_after_it(events: list[bytes], end: Meaning) -> None:
    """Of several images each one is completed by itself."""
    assert IMAGES.verdict(events) is end


def test_a_stream_is_asked_for_where_there_is_one() -> None:
    """Images and transcriptions have one, variations and translations have none."""
    body = b'{"model":"m","stream":true,"n":1}'
    for form in (IMAGES, IMAGE_EDITS, TRANSCRIPTIONS):
        assert form.of_request(body, "") is form
        assert form.parse_request(body, "").stream is True
        assert form.parse_request(b'{"model":"m"}', "").stream is False
    for form in (IMAGE_VARIATIONS, TRANSLATIONS):
        assert form.of_request(body, "").parse_request(body, "").stream is False


@pytest.mark.parametrize(
    ("body", "content_type", "several"),
    [
        (b'{"model":"m","n":2}', "application/json", True),
        (b'{"model":"m","n":1}', "application/json", False),
        (b'{"model":"m","n":null}', "application/json", False),
        (b'{"model":"m","n":"2"}', "application/json", False),
        (b"not json", "application/json", False),
        (b'--a\r\nContent-Disposition: form-data; name="n"\r\n\r\n3\r\n--a--', "a", True),
        (b'--a\r\nContent-Disposition: form-data; name="n"\r\n\r\nx\r\n--a--', "a", False),
        (b"no form", "a", False),
    ],
)
def test_of_several_images_the_first_that_is_done_is_no_end(
    body: bytes, content_type: str, several: bool
) -> None:
    """Then only the body's own end says that all of them are there."""
    if content_type == "a":
        content_type = "multipart/form-data; boundary=a"
    form = IMAGES.of_request(body, content_type)
    assert (form.needs_end, form.name, form.path) == (several, IMAGES.name, IMAGES.path)


FORM = b'--abc\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@pytest.mark.parametrize(
    ("value", "stream"),
    [(b"true", True), (b"True", True), (b"1", True), (b"false", False), (b"0", False)],
)
def test_a_form_may_ask_for_a_stream(value: bytes, stream: bool) -> None:
    """In the words that its servers take."""
    body = FORM % (b"stream", value) + FORM % (b"model", b"m") + b"--abc--"
    wanted = TRANSCRIPTIONS.parse_request(body, "multipart/form-data; boundary=abc")
    assert (wanted.model, wanted.stream) == ("m", stream)


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b'{"model":"m","input":"a"}', SPEECH),
        (b'{"model":"m","stream_format":"audio"}', SPEECH),
        (b'{"model":"m","stream_format":null}', SPEECH),
        (b'{"model":"m","stream_format":7}', SPEECH),
        (b'{"model":"m","stream_format":"sse"}', SPEECH_EVENTS),
        (b'{"model":"m","stream":true}', SPEECH),
        (b"not json", SPEECH),
    ],
)
def test_a_speech_is_sound_unless_events_are_asked_for(body: bytes, form) -> None:
    """The request decides which of the two answers it is."""
    assert SPEECH.of_request(body, "") is form


def test_sound_is_no_stream_of_events_and_its_events_are() -> None:
    """Sound has nothing to resume by; its events are a stream without being asked."""
    body = b'{"model":"m","stream_format":"sse"}'
    assert SPEECH.parse_request(body, "").stream is False
    assert SPEECH_EVENTS.parse_request(body, "").stream is True


@given(st.binary(min_size=1, max_size=99))
def test_sound_is_never_looked_into(sound: bytes) -> None:
    """Whatever it spells, it is output, and neither an end nor an error."""
    assert SPEECH.framing.framer().feed(sound) == (sound, 1)
    assert SPEECH.framing.split(sound) == [sound]
    assert SPEECH.meaning(sound) is Meaning.OUTPUT
    assert SPEECH.whole_events(sound, 1) == 1
    assert not SPEECH.may_end(sound + DONE)
    assert SPEECH.verdict([sound, DONE]) is Meaning.OPENING


def test_what_passes_as_sound() -> None:
    """Everything but JSON, which may be an error behind a status of success."""
    for content_type in ("audio/mpeg", "application/octet-stream", "audio/wav; rate=24000", ""):
        assert RAW.takes(content_type)
    for content_type in ("application/json", "application/problem+json"):
        assert not RAW.takes(content_type)
    assert not SSE.takes("audio/mpeg")


def test_an_error_has_a_place_among_events_and_none_in_sound() -> None:
    """Of a fault in sound only the broken connection tells."""
    error = ErrorText(504, 'upstream "box" idle', "timeout_error", "idle_s")
    about = About(b"", "", "m", 0.0)
    assert SPEECH.error_events(error, about) == []
    [raw] = SPEECH_EVENTS.error_events(error, about)
    assert SPEECH_EVENTS.meaning(raw) is Meaning.ERROR
