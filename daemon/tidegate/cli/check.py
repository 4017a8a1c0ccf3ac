"""`tidegate check`: is this config good? Asked of the file, not of a running tidegate."""

from __future__ import annotations

import argparse
import sys

import msgspec

from tidegate import config
from tidegate.cli.failure import BAD_CONFIG
from tidegate.cli.here import find_places


def check(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or what is wrong and return 78."""
    places = find_places(arguments)
    try:
        loaded = config.load(places.named_config, places.state_dir)
    except config.ConfigError as error:
        if not arguments.json:
            raise
        print(_json(ok=False, errors=str(error).splitlines(), warnings=[]))
        return BAD_CONFIG
    if arguments.json:
        print(_json(ok=True, errors=[], warnings=loaded.warnings))
        return 0
    for warning in loaded.warnings:
        print(f"tidegate: warning: {warning}", file=sys.stderr)
    print(f"OK: {loaded.path or f'{places.config_file} is not there; the defaults are used'}")
    settings = loaded.settings
    print(f"  listen     {', '.join(settings.listen)}")
    names = ", ".join(upstream.name for upstream in settings.upstreams)
    print(f"  upstreams  {names or 'none; tidegate looks for some on this computer'}")
    if settings.models:
        print(f"  models     {', '.join(model.name for model in settings.models)}")
    print(f"  tokens     {len(loaded.tokens) or 'none; nobody is asked for one'}")
    return 0


def _json(*, ok: bool, errors: list[str], warnings: list[str]) -> str:
    return msgspec.json.encode({"ok": ok, "errors": errors, "warnings": warnings}).decode()
