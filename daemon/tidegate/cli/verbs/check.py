"""`tidegate check`: whether the config file is good; a running tidegate is not asked."""

from __future__ import annotations

import argparse
import sys

from tidegate import config
from tidegate.cli.failure import BAD_CONFIG
from tidegate.cli.places import find_places
from tidegate.cli.show.mistakes import mistakes_text
from tidegate.cli.show.printable import say, say_json, say_lines
from tidegate.config.check import find_place_warnings


def check(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or what is wrong and return 78."""
    places = find_places(arguments)
    try:
        loaded = config.load(places.named_config, places.state_dir)
    except config.ConfigError as error:
        if not arguments.json:
            say_lines(f"tidegate: {mistakes_text(error)}", file=sys.stderr)
            return BAD_CONFIG
        say_json({"ok": False, "errors": str(error).split("\n"), "warnings": []})
        return BAD_CONFIG
    warnings = [*loaded.warnings, *find_place_warnings(loaded.settings, places.runtime_dir)]
    if arguments.json:
        say_json({"ok": True, "errors": [], "warnings": warnings})
        return 0
    for warning in warnings:
        say(f"tidegate: warning: {warning}", file=sys.stderr)
    say(f"OK: {loaded.path or f'{places.config_file} is not there; the defaults are used'}")
    settings = loaded.settings
    say(f"  listen     {', '.join(settings.listen)}")
    names = ", ".join(upstream.name for upstream in settings.upstreams)
    say(f"  upstreams  {names or 'none; tidegate looks for some on this computer'}")
    if settings.models:
        say(f"  models     {', '.join(model.name for model in settings.models)}")
    say(f"  tokens     {len(loaded.tokens) or 'none; authentication is off'}")
    return 0
