"""Reads what is in no config file: keys, secret headers and authorities of upstreams, addresses.

Keys and headers come from the environment, from a private file, or from systemd credentials. No
text made here repeats one, nor the value of `api_key_env`: people put the key itself there.
Addresses of receivers and of the heartbeat may stand in the file, and are taken out of the
settings: most hold a token. Authorities are public, and are read here because a worker is handed
values: it opens no file of the config's.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from tidegate.config.mistake import Mistake
from tidegate.core.http.header import MAX_VALUE_BYTES, is_value
from tidegate.core.notices.address import parse_address, parse_heartbeat_url
from tidegate.core.settings import Notify, OutwardHeartbeat, Settings
from tidegate.machine import private_file
from tidegate.machine.private_file import UnreadableFile

MAX_KEY_BYTES = 16 * 1024  # some clouds use signed tokens of 2 to 4 KiB

MAX_AUTHORITIES_BYTES = 512 * 1024  # a file; those that systems come with have 200 to 300 KiB
# All of it together crosses to a worker in one line, beside the settings and the tokens, whose
# length is bounded (`lines.MAX_LINE_BYTES`).
MAX_ALL_BYTES = 1024 * 1024

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END CERTIFICATE-----"
)
_KEY = re.compile(r"[!-~]+")  # what may stand in a header; no spaces, no line ends


class _SecretError(Exception):
    """Why there is no key; the text and the command become a Mistake's."""

    def __init__(self, text: str, command: str | None = None) -> None:
        super().__init__(text)
        self.command = command


def read_keys(
    settings: Settings, config_dir: Path, environ: Mapping[str, str], problems: list[Mistake]
) -> dict[str, str]:
    """Read the key of each upstream that names one; what is wrong is appended to `problems`."""
    keys: dict[str, str] = {}
    for n, upstream in enumerate(settings.upstreams):
        try:
            if upstream.api_key_env is not None:
                source = "api_key_env"
                keys[upstream.name] = _from_environment(upstream.api_key_env, environ)
            elif upstream.api_key_file is not None:
                source = "api_key_file"
                keys[upstream.name] = _from_file(upstream.api_key_file, config_dir, environ)
        except _SecretError as error:
            problems.append(Mistake(f"upstream[{n}].{source}", str(error), n, error.command))
    return keys


def read_headers(
    settings: Settings, config_dir: Path, environ: Mapping[str, str], problems: list[Mistake]
) -> dict[str, dict[str, str]]:
    """Read the headers of each upstream whose values are kept elsewhere, by upstream and name."""
    headers: dict[str, dict[str, str]] = {}
    for n, upstream in enumerate(settings.upstreams):
        for name, source in upstream.headers.items():
            if isinstance(source, str):
                continue
            try:
                if source.env is not None:
                    value = _variable(source.env, environ)
                else:
                    value = _content(source.file or "", config_dir, environ)
                if not is_value(value):
                    raise _SecretError(
                        f"what it leads to is not a header's value: one line of at most "
                        f"{MAX_VALUE_BYTES} printable ASCII characters"
                    )
                headers.setdefault(upstream.name, {})[name] = value
            except _SecretError as error:
                problems.append(
                    Mistake(f"upstream[{n}].headers.{name}", str(error), n, error.command)
                )
    return headers


def read_authorities(
    settings: Settings, config_dir: Path, problems: list[Mistake]
) -> dict[str, str]:
    """Read the certificates in each file that is a `ca_file`, by the name in the config."""
    found: dict[str, str] = {}
    for n, upstream in enumerate(settings.upstreams):
        name = upstream.ca_file
        if name is None or name in found:
            continue
        try:
            found[name] = _certificates(name, config_dir)
        except _SecretError as error:
            problems.append(Mistake(f"upstream[{n}].ca_file", str(error)))
    return found


def read_addresses(
    settings: Settings, config_dir: Path, environ: Mapping[str, str], problems: list[Mistake]
) -> dict[str, str]:
    """Read where each receiver is, by its name; what is wrong is appended to `problems`."""
    found: dict[str, str] = {}
    for n, receiver in enumerate(settings.notify):
        source, url = _address(receiver, f"notify[{n}]", config_dir, environ, problems)
        if url is not None and _is_good(url, parse_address, source, problems):
            found[receiver.name] = url
    return found


def read_heartbeat_url(
    settings: Settings, config_dir: Path, environ: Mapping[str, str], problems: list[Mistake]
) -> str | None:
    """Read where the heartbeat goes, if to anywhere, like `read_addresses`."""
    source, url = _address(settings.heartbeat, "heartbeat", config_dir, environ, problems)
    if url is not None and _is_good(url, parse_heartbeat_url, source, problems):
        return url
    return None


def _address(
    place: Notify | OutwardHeartbeat,
    at: str,
    config_dir: Path,
    environ: Mapping[str, str],
    problems: list[Mistake],
) -> tuple[str, str | None]:
    """Return the key that says where an address is, and the address, if it is to be had."""
    source = f"{at}.url"
    try:
        if place.url_file is not None:
            source = f"{at}.url_file"
            return source, _content(place.url_file, config_dir, environ)
        if place.url_env is not None:
            source = f"{at}.url_env"
            return source, _variable(place.url_env, environ)
    except _SecretError as error:
        problems.append(Mistake(source, str(error), command=error.command))
        return source, None
    return source, place.url


def _is_good(
    url: str, parse: Callable[[str], object], source: str, problems: list[Mistake]
) -> bool:
    """Tell whether it is an address; if not, that is appended to `problems`."""
    try:
        parse(url)
    except ValueError as error:
        led = "" if source.endswith(".url") else "what it leads to "
        problems.append(Mistake(source, f"{led}{error}"))
        return False
    return True


def without_addresses(settings: Settings) -> Settings:
    """Take every address out of the settings, which are shown to others."""
    return replace(
        settings,
        notify=[replace(each, url=None) for each in settings.notify],
        heartbeat=replace(settings.heartbeat, url=None),
    )


def size_problem(
    keys: Mapping[str, str],
    headers: Mapping[str, Mapping[str, str]],
    authorities: Mapping[str, str],
) -> Mistake | None:
    """Return a mistake if all this together is more than one line to a worker can hold."""
    texts = [*keys.values(), *authorities.values()]
    texts += [value for each in headers.values() for value in each.values()]
    if sum(map(len, texts)) <= MAX_ALL_BYTES:
        return None
    return Mistake("upstream", f"keys, headers and ca_files have more than {MAX_ALL_BYTES} bytes")


def variables_of(settings: Settings) -> Iterator[str]:
    """Yield the environment variables that hold a secret."""
    for upstream in settings.upstreams:
        if upstream.api_key_env is not None:
            yield upstream.api_key_env
        for source in upstream.headers.values():
            if not isinstance(source, str) and source.env is not None:
                yield source.env
    places: list[Notify | OutwardHeartbeat] = [*settings.notify, settings.heartbeat]
    for place in places:
        if place.url_env is not None:
            yield place.url_env


def _certificates(name: str, config_dir: Path) -> str:
    """Read the certificates in a PEM file, and nothing else: a private key may lie beside them."""
    if not name or not name.isprintable():
        raise _SecretError("must be the name of a file")
    try:
        path = config_dir / Path(name).expanduser()
        data = private_file.read(path, max_bytes=MAX_AUTHORITIES_BYTES, private=False)
    except FileNotFoundError as error:
        raise _SecretError(f"{error.filename}: there is no such file") from None
    except (OSError, RuntimeError, UnreadableFile) as error:
        raise _SecretError(str(error)) from None
    blocks = list(_CERTIFICATE.finditer(data.decode("latin-1")))
    if not blocks:
        raise _SecretError(
            f"{path}: has no certificate in PEM, -----BEGIN CERTIFICATE-----; one in DER becomes "
            "that by: openssl x509 -inform der"
        )
    if not all(_is_der("".join(block[1].split())) for block in blocks):
        raise _SecretError(f"{path}: a certificate in it is damaged")
    return "".join(f"{block[0]}\n" for block in blocks)


def _is_der(text: str) -> bool:
    """Tell whether it is base64 of one DER sequence of the length that it says, as X.509 begins.

    What is inside is judged by the worker's TLS: the watchdog loads none for this.
    """
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return False
    if len(data) < 4 or data[0] != 0x30 or not data[1] & 0x80:
        return False
    digits = data[1] & 0x7F
    return 1 <= digits <= 3 and len(data) == 2 + digits + int.from_bytes(
        data[2 : 2 + digits], "big"
    )


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    return _checked(_variable(name, environ))


def _variable(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise _SecretError(
            "the environment has no such variable, or an empty one; this is the variable's name, "
            "not what is in it"
        )
    return value


def _from_file(name: str, config_dir: Path, environ: Mapping[str, str]) -> str:
    return _checked(_content(name, config_dir, environ))


def _content(name: str, config_dir: Path, environ: Mapping[str, str]) -> str:
    if not name or not name.isprintable():
        raise _SecretError("must be the name of a file")
    try:
        if credential := _credential(name, environ):
            # systemd keeps the directory private; the file may be 0440 with an access list.
            return _read(credential, private=False)
        return _read(_beside_config(name, config_dir), private=True)
    except FileNotFoundError as error:
        raise _SecretError(f"{error.filename}: there is no such file") from None
    except UnreadableFile as error:
        raise _SecretError(str(error), error.command) from None
    except (OSError, RuntimeError) as error:
        raise _SecretError(str(error)) from None


def _beside_config(name: str, config_dir: Path) -> Path:
    """Return the file that the setting names, or what the service would find as a credential.

    So `tidegate check` and `doctor` judge a service's config as the service does, for those who
    may read the keys.
    """
    named = config_dir / Path(name).expanduser()
    kept = config_dir / "credentials" / name
    return kept if "/" not in name and not named.exists() and _is_file(kept) else named


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its directory is root's
        return False


def _credential(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the systemd credential of that name, see systemd.exec(5); None where there is none.

    Our unit loads a whole directory, whose files systemd then calls `tidegate_` and their name.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    there = {path.name: path for path in Path(directory).iterdir()}
    return there.get(name) or there.get(f"tidegate_{name}")


def _read(path: Path, *, private: bool) -> str:
    content = private_file.read(path, max_bytes=MAX_KEY_BYTES, private=private)
    return content.decode("ascii", "replace").strip()


def _checked(key: str) -> str:
    if len(key) > MAX_KEY_BYTES or not _KEY.fullmatch(key):
        raise _SecretError(
            f"what it leads to is not a key: one line of at most {MAX_KEY_BYTES} printable ASCII "
            "characters without spaces"
        )
    return key
