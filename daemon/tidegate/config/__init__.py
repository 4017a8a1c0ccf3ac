"""The config file: read, judged and turned into `Settings`, with all that is wrong said at once.

The watchdog is its only reader; a worker is handed the result. Three steps, each in a file of
its own: the text (`document`), the tables (`convert`: types, units, unknown keys) and what must
hold between them (`check`). Keys of upstreams come from elsewhere (`keys`), for a config file
is shown to others and a key must not be.

A mistake names the file, the line and the key, and never repeats a value that might be a secret
in the wrong place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.config import places, tokens
from tidegate.config.check import (
    find_exposed_addresses,
    find_problems,
    find_warnings,
    reached_by_others,
    without_consequences,
)
from tidegate.config.convert import to_settings
from tidegate.config.document import Document, read
from tidegate.config.keys import (
    read_addresses,
    read_authorities,
    read_headers,
    read_heartbeat_url,
    read_keys,
    size_problem,
    without_addresses,
)
from tidegate.config.mistake import ConfigError, Mistake
from tidegate.core.notices.address import (
    APPRISE,
    WEBHOOK,
    NoticeAddress,
    parse_address,
    secrets_in,
)
from tidegate.core.settings import Auth, Settings, Token

__all__ = [
    "ConfigError",
    "LoadedConfig",
    "find_token_needs",
    "load",
    "read_settings",
    "stand_in",
    "tokens_path",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """All that a worker needs to be configured."""

    settings: Settings
    secrets: dict[str, str] = field(repr=False)  # upstream name -> API key
    tokens: list[Token]
    path: Path | None  # None: there is no file, these are the defaults
    place: Path  # where the file is or would be, so that one that appears is noticed
    warnings: list[str]
    parked: str | None = None  # why it stands in for one that cannot be used
    # Upstream name -> header name -> value, of those whose values are not in the file.
    headers: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    authorities: dict[str, str] = field(default_factory=dict, repr=False)  # `ca_file` -> PEM
    addresses: dict[str, str] = field(default_factory=dict, repr=False)  # of receivers, by name
    heartbeat_url: str | None = field(default=None, repr=False)

    @property
    def hidden(self) -> list[str]:
        """Return every text that must not be shown."""
        return [
            *self.secrets.values(),
            *(v for each in self.headers.values() for v in each.values()),
            *(v for each in self.addresses.values() for v in secrets_in(each)),
            *(secrets_in(self.heartbeat_url) if self.heartbeat_url is not None else ()),
        ]


def stand_in(
    reason: str, path: Path | None, environ: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """Make what a parked tidegate runs on: it listens at the usual address, and says the reason."""
    listen = _listen_from(environ)
    return LoadedConfig(
        settings=Settings(listen=listen) if listen else Settings(),
        secrets={},
        tokens=[],
        path=None,
        place=(path or places.default_config_file()).absolute(),
        warnings=[],
        parked=reason,
    )


def load(
    path: Path | None, state_dir: Path, environ: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """Read and check the config file at `path`.

    None stands for the usual place, where it is allowed to be missing; a `path` that was given
    must exist. `TIDEGATE_LISTEN` (addresses, separated by commas) stands above `listen`. Raises
    ConfigError, whose text has one line for each problem.
    """
    document = _find(path)
    table = dict(document.table)
    if listen := _listen_from(environ):
        table["listen"] = listen
    settings, mistakes, found = _judge(table)
    keys = read_keys(settings, _beside(document), environ, found)
    headers = read_headers(settings, _beside(document), environ, found)
    authorities = read_authorities(settings, _beside(document), found)
    addresses = read_addresses(settings, _beside(document), environ, found)
    heartbeat_url = read_heartbeat_url(settings, _beside(document), environ, found)
    if problem := size_problem(keys, headers, authorities):
        found.append(problem)
    tokens_file = state_dir / settings.auth.tokens_file
    known = _tokens(tokens_file, found)
    if not known and not any(problem.key == "listen" for problem in found):
        found += find_exposed_addresses(settings)
    _refuse(document, mistakes, found)
    return LoadedConfig(
        settings=without_addresses(settings),
        secrets=keys,
        headers=headers,
        authorities=authorities,
        addresses=addresses,
        heartbeat_url=heartbeat_url,
        tokens=known,
        path=document.path,
        place=(path or places.default_config_file()).absolute(),
        warnings=[
            *find_warnings(settings),
            *_overruled(document.table, listen),
            *tokens.warnings(tokens_file, known),
            *_without_apprise(addresses),
            *_as_json(addresses),
        ],
    )


def read_settings(path: Path) -> Settings:
    """Read the settings of the config file at `path`, without what lies elsewhere.

    Keys, certificates and tokens may be for the service alone to read. Raises ConfigError.
    """
    document = read(path)
    settings, mistakes, found = _judge(document.table)
    _refuse(document, mistakes, found)
    return without_addresses(settings)


def find_token_needs(
    path: Path | None, bound: Iterable[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """List the addresses that keep the config at `path` from going without a token.

    Those are its own and what is `bound` already, as far as other computers reach them; none where
    `auth.allow_without_token` is set. Raises ConfigError.
    """
    document = _find(path)
    table = dict(document.table)
    if listen := _listen_from(environ):
        table["listen"] = listen
    settings, mistakes, found = _judge(table)
    _refuse(document, mistakes, found)
    if settings.auth.allow_without_token:
        return []
    return list(dict.fromkeys(reached_by_others([*settings.listen, *bound])))


def _judge(table: Mapping[str, object]) -> tuple[Settings, list[Mistake], list[Mistake]]:
    """Return the settings, the mistakes in types and keys, and what else is wrong with them."""
    mistakes: list[Mistake] = []
    settings = to_settings(table, mistakes)
    return settings, mistakes, find_problems(settings)


def _refuse(document: Document, mistakes: list[Mistake], found: list[Mistake]) -> None:
    """Raise ConfigError with every problem, if there is one."""
    if problems := mistakes + without_consequences(found, mistakes):
        raise document.error(problems)


def _overruled(table: Mapping[str, object], listen: list[str]) -> list[str]:
    """Warn of a setting whose change would have no effect."""
    if not listen or table.get("listen", listen) in (listen, ", ".join(listen)):
        return []
    return [f"listen: the environment's TIDEGATE_LISTEN ({', '.join(listen)}) stands above it"]


def _without_apprise(addresses: Mapping[str, str]) -> list[str]:
    """Warn of receivers that cannot be told anything by what is installed."""
    names = [name for name, url in addresses.items() if parse_address(url).kind == APPRISE]
    if not names:
        return []
    from importlib.util import find_spec  # noqa: PLC0415  (only where such a one is configured)

    if find_spec("apprise") is not None:
        return []
    return [
        f"notify: {', '.join(names)} can be told nothing without Apprise: pip install "
        "'tidegate[notify]', or use an address of ntfy:// or https://"
    ]


def _as_json(addresses: Mapping[str, str]) -> list[str]:
    """Warn of receivers that are ntfy's own server, and would show the JSON of a webhook."""
    found = [name for name, url in addresses.items() if _is_ntfy_page(parse_address(url))]
    return [
        f"notify: {name} would show people JSON; write its url as ntfy://ntfy.sh/TOPIC"
        for name in found
    ]


def _is_ntfy_page(address: NoticeAddress) -> bool:
    return address.kind == WEBHOOK and address.url.host == "ntfy.sh"


def _listen_from(environ: Mapping[str, str]) -> list[str]:
    return [word.strip() for word in environ.get("TIDEGATE_LISTEN", "").split(",") if word.strip()]


def tokens_path(path: Path | None, state_dir: Path) -> Path:
    """Return the path of the tokens' file that the config at `path` names.

    It asks no more of the config than to be TOML, so that the first token can be made for a
    config that is refused because there is no token. Raises ConfigError.
    """
    auth = _find(path).table.get("auth")
    name = auth.get("tokens_file") if isinstance(auth, dict) else None
    return state_dir / (name if isinstance(name, str) and name else Auth().tokens_file)


def _find(path: Path | None) -> Document:
    if path is not None:
        return read(path)
    usual = places.default_config_file()
    return read(usual) if usual.exists() else Document(path=None, text="", table={})


def _beside(document: Document) -> Path:
    return document.path.parent if document.path else Path.cwd()


def _tokens(path: Path, problems: list[Mistake]) -> list[Token]:
    try:
        return tokens.read(path)
    except tokens.TokenError as error:
        problems.append(Mistake("auth.tokens_file", str(error), command=error.command))
        return []
