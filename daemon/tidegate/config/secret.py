"""The keys of upstreams: from the environment, from a private file, or from systemd credentials.

No text made here repeats a key, nor the value of `api_key_env`: people put the key itself there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tidegate import small_file
from tidegate.config.problem import Problem
from tidegate.core.settings import Settings
from tidegate.small_file import UnreadableFile

MAX_KEY_BYTES = 16 * 1024  # some clouds use signed tokens of 2 to 4 KiB

_KEY = re.compile(r"[!-~]+")  # what may stand in a header; no spaces, no line ends


class _SecretError(Exception):
    """Why there is no key; the text becomes a Problem's."""


def read_keys(
    settings: Settings, config_dir: Path, environ: Mapping[str, str], problems: list[Problem]
) -> dict[str, str]:
    """The key of each upstream that names one; what is wrong is appended to `problems`."""
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
            problems.append(Problem(f"upstream[{n}].{source}", str(error)))
    return keys


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    key = environ.get(name, "").strip()
    if not key:
        raise _SecretError(
            "the environment has no such variable, or an empty one; this is the variable's name, "
            "not the key"
        )
    return _checked(key)


def _from_file(name: str, config_dir: Path, environ: Mapping[str, str]) -> str:
    if not name or not name.isprintable():
        raise _SecretError("must be the name of a file")
    try:
        if credential := _credential(name, environ):
            # systemd keeps the directory private; the file may be 0440 with an access list.
            return _checked(_read(credential, private=False))
        return _checked(_read(_beside_config(name, config_dir), private=True))
    except FileNotFoundError as error:
        raise _SecretError(f"{error.filename}: there is no such file") from None
    except (OSError, RuntimeError, UnreadableFile) as error:
        raise _SecretError(str(error)) from None


def _beside_config(name: str, config_dir: Path) -> Path:
    """The file that the setting names; or what the service would find as a credential.

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
    """The systemd credential of that name, see systemd.exec(5).

    Our unit loads a whole directory, whose files systemd then calls `tidegate_` and their name.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    there = {path.name: path for path in Path(directory).iterdir()}
    return there.get(name) or there.get(f"tidegate_{name}")


def _read(path: Path, *, private: bool) -> str:
    content = small_file.read(path, max_bytes=MAX_KEY_BYTES, private=private)
    return content.decode("ascii", "replace").strip()


def _checked(key: str) -> str:
    if len(key) > MAX_KEY_BYTES or not _KEY.fullmatch(key):
        raise _SecretError(
            f"what it leads to is no key: one line of at most {MAX_KEY_BYTES} printable ASCII "
            "characters without spaces"
        )
    return key
