"""Headers and authorities of upstreams: what is read from elsewhere, and what is refused."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tidegate import config
from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.keys import MAX_ALL_BYTES, MAX_AUTHORITIES_BYTES, variables_of
from tidegate.core.settings import HeaderSource

CANARY = "sk-CANARY-5d1f"
BOX = '[[upstream]]\nname = "box"\nurl = "https://box.lan"\n'
HEADERS = f"{BOX}[upstream.headers]\n"
CA = trustme.CA()
Load = Callable[..., LoadedConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as a config file, with an environment that has nothing else in it."""

    def load_text(text: str, **environ: str) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return config.load(path, tmp_path, environ)

    return load_text


# --- headers --------------------------------------------------------------------------------------


def test_headers_are_texts_or_lead_to_secrets(load: Load, tmp_path: Path) -> None:
    """Texts are settings; what is in a variable or a file is kept apart and shown nowhere."""
    (tmp_path / "gate").write_text(f"{CANARY} two\n")
    (tmp_path / "gate").chmod(0o600)
    loaded = load(
        f'{HEADERS}X-Title = "at home"\nX-Env = {{ env = "GATE" }}\nX-File = {{ file = "gate" }}\n',
        GATE=f"{CANARY} one",
    )
    [box] = loaded.settings.upstreams
    assert box.headers == {
        "X-Title": "at home",
        "X-Env": HeaderSource(env="GATE"),
        "X-File": HeaderSource(file="gate"),
    }
    assert loaded.headers == {"box": {"X-Env": f"{CANARY} one", "X-File": f"{CANARY} two"}}
    assert set(loaded.hidden) == {f"{CANARY} one", f"{CANARY} two"}
    assert CANARY not in repr(loaded)
    assert list(variables_of(loaded.settings)) == ["GATE"]


def test_headers_may_come_from_credentials(load: Load, tmp_path: Path) -> None:
    """As keys do, where systemd keeps them."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "tidegate_gate").write_text(CANARY)
    (credentials / "tidegate_gate").chmod(0o440)
    loaded = load(f'{HEADERS}X-A = {{ file = "gate" }}', CREDENTIALS_DIRECTORY=str(credentials))
    assert loaded.headers == {"box": {"X-A": CANARY}}


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        (f'Host = "{CANARY}"', "Host", "set by tidegate itself"),
        (f'authorization = "Bearer {CANARY}"', "authorization", "api_key_file"),
        (f'"X Y" = "{CANARY}"', "X Y", "not a header name"),
        ('X-A = ""', "X-A", "printable ASCII"),
        (f'X-A = "{CANARY}\\r\\nHost: b"', "X-A", "printable ASCII"),
        (f'X-A = " {CANARY}"', "X-A", "printable ASCII"),
        (f'X-A = "{CANARY}é"', "X-A", "printable ASCII"),
        (f'X-A = ["{CANARY}"]', "X-A", "a text in quotes"),
        ("X-A = 3", "X-A", "a text in quotes"),
        ("X-A = {}", "X-A", "a text in quotes"),
        ('X-A = { env = "A", file = "b" }', "X-A", "a text in quotes"),
        (f'X-A = {{ value = "{CANARY}" }}', "X-A", "a text in quotes"),
        ("X-A = { env = 3 }", "X-A", "a text in quotes"),
        (f'X-A = {{ env = "{CANARY}" }}', "X-A", "no such variable"),
        ('X-A = { env = "TWO_LINES" }', "X-A", "not a header's value"),
        ('X-A = { file = "missing" }', "X-A", "no such file"),
        ('X-A = { file = "open" }', "X-A", "chmod 600"),
        ('X-A = { file = "" }', "X-A", "name of a file"),
        ('X-A = "1"\nx-a = "2"', "x-a", "is there twice"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_repeated(
    load: Load, tmp_path: Path, line: str, key: str, says: str
) -> None:
    """With the line, the key and what would be right."""
    (tmp_path / "open").write_text(CANARY)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(ConfigError, match=says) as caught:
        load(HEADERS + line, TWO_LINES=f"{CANARY}\r\nx: y")
    assert f"upstream[0].headers.{key}: " in str(caught.value)
    assert CANARY not in str(caught.value)


def test_headers_that_are_no_table_are_refused(load: Load) -> None:
    """And so are more of them than an upstream would take."""
    with pytest.raises(ConfigError, match=r"upstream\[0\]\.headers: must be a table"):
        load(f'{BOX}headers = "X-A: b"')
    with pytest.raises(ConfigError, match="more than 32 headers"):
        load(HEADERS + "".join(f'X-{n} = "a"\n' for n in range(33)))


# --- authorities ----------------------------------------------------------------------------------


def test_certificates_are_read_and_nothing_else_of_the_file(load: Load, tmp_path: Path) -> None:
    """Beside them there may be comments, and by mistake a private key."""
    two = CA.cert_pem.bytes() + trustme.CA().cert_pem.bytes()
    key = CA.private_key_pem.bytes()
    (tmp_path / "ca.pem").write_bytes(b"# mine \xff\n" + key + two.replace(b"\n", b"\r\n"))
    pem = load(f'{BOX}ca_file = "ca.pem"').authorities["ca.pem"]
    assert "PRIVATE" not in pem
    context = ssl.create_default_context(cadata=pem)
    assert len(context.get_ca_certs()) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no certificate in PEM"),
        (b"\x30\x82\x01\x00", "openssl x509 -inform der"),
        (CA.private_key_pem.bytes(), "has no certificate in PEM"),
        (CA.cert_pem.bytes().replace(b"MII", b"MIJ", 1), "is damaged"),
        (CA.cert_pem.bytes()[:-60] + b"\n-----END CERTIFICATE-----\n", "is damaged"),
        (b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "is damaged"),
        (b"x" * (MAX_AUTHORITIES_BYTES + 1), "larger than"),
        (None, "there is no such file"),
    ],
)
def test_a_file_without_a_good_certificate_is_refused(
    load: Load, tmp_path: Path, content: bytes | None, says: str
) -> None:
    """When the config is checked, and not when the upstream is first asked."""
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load(f'{BOX}ca_file = "ca.pem"')
    assert "upstream[0].ca_file: " in str(caught.value)


@pytest.mark.parametrize("url", ["http://box.lan", "unix:/run/x.sock"])
def test_certificates_are_of_use_with_tls_alone(load: Load, tmp_path: Path, url: str) -> None:
    """Elsewhere nothing would look at them, and the owner would believe otherwise."""
    (tmp_path / "ca.pem").write_bytes(CA.cert_pem.bytes())
    with pytest.raises(ConfigError, match=r"ca_file: is of use for an https:// url alone"):
        load(f'[[upstream]]\nname = "box"\nurl = "{url}"\nca_file = "ca.pem"')


def test_a_directory_or_a_pipe_is_no_file_of_certificates(load: Load, tmp_path: Path) -> None:
    """It is refused, and nothing is waited for."""
    (tmp_path / "ca.pem").mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        load(f'{BOX}ca_file = "ca.pem"')


# --- all of it ------------------------------------------------------------------------------------


def test_more_than_a_worker_can_be_told_is_refused(load: Load, tmp_path: Path) -> None:
    """A line between the processes has a bound; beyond it every worker would end."""
    (tmp_path / "k").write_text("k" * 16000)
    (tmp_path / "k").chmod(0o600)
    each = '[[upstream]]\nname = "u{}"\nurl = "http://h"\napi_key_file = "k"\n'
    most = MAX_ALL_BYTES // 16000
    load("".join(each.format(n) for n in range(most)))
    with pytest.raises(ConfigError, match=f"more than {MAX_ALL_BYTES} bytes"):
        load("".join(each.format(n) for n in range(most + 1)))
