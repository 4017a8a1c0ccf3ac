"""Forms: the fields that routing needs are found, and every byte of the rest is left alone."""

import email.mime.multipart
import email.mime.text
import email.policy
from contextlib import suppress
from email.generator import BytesGenerator
from io import BytesIO

import pytest
from aiohttp import FormData, MultipartWriter
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.formats import TRANSCRIPTIONS
from tidegate.core.formats.multipart import MAX_PARTS, MAX_VALUE_BYTES, fields, with_fields

TYPE = "multipart/form-data; boundary=abc"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'
MODEL = b'Content-Disposition: form-data; name="model"'
WANTED = ("model", "stream")


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"abc") -> bytes:
    """A form of these parts, each a head and its content."""
    each = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, content) for head, content in parts]
    return b"".join(each) + b"--%b--\r\n" % boundary


def changed_form(body: bytes, content_type: str, values: dict[str, str]) -> bytes:
    """The form with other values, in one piece."""
    return b"".join(with_fields(body, content_type, values))


def field(name: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"'.encode()


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        MODEL,
        b"Content-Disposition: form-data; name=model",
        b"content-disposition:form-data;name=model",
        b'CONTENT-DISPOSITION: form-data; NAME="model"',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; name="x"',
        b'Content-Disposition: form-data; filename="; name=file"; name="model"',
        b'Content-Disposition: form-data; filename="a\\"; name=\\"file"; name="model"',
        b"Content-Disposition: form-data; filename*=utf-8''name=x; name=model",
    ],
)
def test_a_field_is_found_however_its_head_is_written(head: bytes) -> None:
    """Case, order, quotes and what a file is called make no difference."""
    body = form((FILE, b"RIFF"), (head, b"whisper"), (field("language"), b"de"))
    assert fields(body, TYPE, WANTED) == {"model": "whisper"}


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="file"; filename="; name=model"',
        b'Content-Disposition: form-data; name="file"; filename="x.wav"; xname="model"',
        b'Content-Disposition: form-data; filename="name=model"',
        b'X-Content-Disposition: form-data; name="model"',
        b'Content-Type: text/plain; name="model"',
        b"Content-Disposition: form-data",
        b"",
    ],
)
def test_no_other_part_is_taken_for_it(head: bytes) -> None:
    """A file's name may spell anything."""
    assert fields(form((head, b"wrong"), (MODEL, b"m")), TYPE, WANTED) == {"model": "m"}


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=abc",
        'multipart/form-data; boundary="abc"',
        "multipart/form-data;boundary=abc",
        "multipart/form-data; charset=utf-8; BOUNDARY=abc",
        "multipart/form-data; boundary=abc; charset=utf-8",
        "multipart/form-data; xboundary=no; boundary=abc",
    ],
)
def test_the_boundary_is_read_as_it_is_written(content_type: str) -> None:
    """Quoted or not, first or last."""
    assert fields(form((MODEL, b"m")), content_type, WANTED) == {"model": "m"}


def test_a_quoted_boundary_may_hold_what_a_bare_one_may_not() -> None:
    """Spaces and colons stand within quotes."""
    body = form((MODEL, b"m"), boundary=b"=_ (a):b?")
    assert fields(body, 'multipart/form-data; boundary="=_ (a):b?"', WANTED) == {"model": "m"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"x--abc\r\n",
        b"--abcd",
        b"\r\n--ab\r\n",
        b"\r\n--abcd\r\n\r\n",
        b'\r\n--abcd\r\nContent-Disposition: form-data; name="model"\r\n\r\nwrong',
        b"\n--abc\n",
        b"\r--abc\r",
        b"\r\n -- abc\r\n",
        b"\r\n--abc-",
        bytes(range(256)) * 8,
    ],
)
def test_a_file_may_hold_anything_but_the_boundary_on_a_line_of_its_own(content: bytes) -> None:
    """What only looks like a boundary divides nothing."""
    body = form((FILE, content), (MODEL, b"m"))
    assert fields(body, TYPE, WANTED) == {"model": "m"}
    assert changed_form(body, TYPE, {"model": "n"}) == form((FILE, content), (MODEL, b"n"))


def test_what_may_stand_around_a_boundary() -> None:
    """A line end before the first, blanks behind any, anything behind the last."""
    body = b'\r\n--abc \t\r\n%b\r\n\r\nm\r\n--abc--  \r\nContent-Disposition: name="x"' % MODEL
    assert fields(body, TYPE, WANTED) == {"model": "m"}


def test_an_empty_field_is_there() -> None:
    """Of no bytes, but found, and replaced like any other."""
    assert fields(form((MODEL, b"")), TYPE, WANTED) == {"model": ""}
    assert changed_form(form((MODEL, b"")), TYPE, {"model": "n"}) == form((MODEL, b"n"))
    without_line_end = b"--abc\r\n%b\r\n\r\n--abc--" % MODEL
    assert fields(without_line_end, TYPE, WANTED) == {"model": ""}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "begin"),
        (b"junk" + form((MODEL, b"m")), "begin"),
        (b"--abcd\r\n%b\r\n\r\nm\r\n--abc--" % MODEL, "begin"),
        (form((MODEL, b"m"))[:-9], "breaks off"),
        (b"--abc\r\n%b\r\n\r\nm" % MODEL, "breaks off"),
        (b"--abc\r\n", "breaks off"),
        (b"--abc\r\n%b\r\n--abc--" % MODEL, "without an end"),
        (b"--abc\r\n--abc--", "without an end"),
        (form((b"X: " + b"x" * 20_000, b""), (MODEL, b"m")), "too long"),
        (form((MODEL, b"m"), (FILE, b"x"), (MODEL, b"n")), "more than one field `model`"),
        (form((MODEL, b"m" * (MAX_VALUE_BYTES + 1))), "too long"),
        (form((MODEL, b"\xff")), "not UTF-8"),
        (form(*[(b"", b"")] * (MAX_PARTS + 1)), "more than 1000 parts"),
        (form((FILE, b"\r\n--abcd" * 200), (MODEL, b"m")), "too many lines"),
    ],
)
def test_a_form_that_cannot_be_taken_apart_is_refused_with_a_sentence(
    body: bytes, why: str
) -> None:
    """What is missing or too much is named, and no byte of the form is."""
    with pytest.raises(ValueError, match=why):
        fields(body, TYPE, WANTED)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary=" "',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=é",
        'multipart/form-data; boundary="abc',
    ],
)
def test_without_a_boundary_there_is_no_form(content_type: str) -> None:
    """It is asked for, never guessed."""
    with pytest.raises(ValueError, match="boundary"):
        fields(form((MODEL, b"m")), content_type, WANTED)


@given(st.binary(max_size=300))
def test_no_form_is_too_strange(junk: bytes) -> None:
    """Whatever a body holds, it is read or refused."""
    for body in (junk, b"--abc\r\n" + junk, form((MODEL, junk)), form((junk, b""))):
        with suppress(ValueError):
            assert set(fields(body, TYPE, WANTED)) <= set(WANTED)


@given(st.integers(0, 400))
def test_a_form_that_was_cut_is_never_taken_for_whole(cut: int) -> None:
    """Only what stands behind the last boundary can be missing."""
    whole = form((FILE, b"RIFF" * 50), (MODEL, b"m"))
    body = whole[: min(cut, len(whole) - 3)]
    with pytest.raises(ValueError, match="form"):
        fields(body, TYPE, WANTED)


# --- what is changed ------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["a", "file", "prompt"]), st.binary(max_size=50))),
    st.integers(0, 5),
    st.text(max_size=20),
)
def test_another_model_name_and_every_other_byte_kept(
    others: list[tuple[str, bytes]], place: int, name: str
) -> None:
    """Wherever the model stands, only its value changes."""
    parts = [(field(key), content) for key, content in others]
    place = min(place, len(parts))
    before = [*parts[:place], (MODEL, b"fast"), *parts[place:]]
    after = [*parts[:place], (MODEL, name.encode()), *parts[place:]]
    assert changed_form(form(*before), TYPE, {"model": name}) == form(*after)


def test_a_field_that_is_not_there_is_not_added() -> None:
    """A form without the field keeps all its bytes."""
    body = form((FILE, b"RIFF"))
    assert changed_form(body, TYPE, {"model": "m"}) == body


def test_a_large_file_is_passed_over() -> None:
    """25 MB, as much as OpenAI takes: nothing of the file is looked at but for the boundary."""
    sound = b"\r\n--" * 6_250_000
    body = form((FILE, sound), (MODEL, b"m"))
    assert fields(body, TYPE, WANTED) == {"model": "m"}
    assert changed_form(body, TYPE, {"model": "large"}) == form((FILE, sound), (MODEL, b"large"))


# --- what others write ----------------------------------------------------------------------------


async def written_by_aiohttp(writer: MultipartWriter) -> bytes:
    pieces = []

    class Sink:
        async def write(self, data: bytes) -> None:
            pieces.append(bytes(data))

    await writer.write(Sink())  # type: ignore[arg-type]
    return b"".join(pieces)


async def test_what_aiohttp_writes_is_read() -> None:
    """Its fields, its file with a hostile name, and the whole again with another model."""
    data = FormData(quote_fields=False)
    data.add_field("file", b"RIFF\r\n--", filename='; name="model"', content_type="audio/wav")
    data.add_field("model", "fast")
    data.add_field("stream", "true")
    writer = data()
    assert isinstance(writer, MultipartWriter)
    body, content_type = await written_by_aiohttp(writer), writer.headers["Content-Type"]
    assert fields(body, content_type, WANTED) == {"model": "fast", "stream": "true"}
    changed = changed_form(body, content_type, {"model": "big"})
    assert changed == body.replace(b"\r\n\r\nfast\r\n", b"\r\n\r\nbig\r\n")


def test_what_the_standard_library_writes_is_read() -> None:
    """With the line ends of HTTP."""
    message = email.mime.multipart.MIMEMultipart("form-data")
    for name, value in (("file", "RIFF"), ("model", "fast")):
        part = email.mime.text.MIMEText(value, _charset="us-ascii")
        part.add_header("Content-Disposition", "form-data", name=name)
        message.attach(part)
    sink = BytesIO()
    BytesGenerator(sink, policy=email.policy.HTTP).flatten(message)
    _, _, body = sink.getvalue().partition(b"\r\n\r\n")
    content_type = message["Content-Type"]
    assert fields(body, content_type, WANTED) == {"model": "fast"}
    changed = changed_form(body, content_type, {"model": "big"})
    assert changed == body.replace(b"\r\n\r\nfast\r\n", b"\r\n\r\nbig\r\n")


def test_a_form_without_a_model_is_refused() -> None:
    """Nothing can be routed by it."""
    with pytest.raises(ValueError, match="no field `model`"):
        TRANSCRIPTIONS.parse_request(form((FILE, b"RIFF")), TYPE)
