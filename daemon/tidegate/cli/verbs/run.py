"""`tidegate run`: find the places, then become the watchdog."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tidegate import config
from tidegate.cli.places import find_places
from tidegate.config.places import PlacesError, make_private
from tidegate.core.protocol.worker import Ready
from tidegate.managers.launchd import activation
from tidegate.managers.systemd.notify import is_service
from tidegate.watchdog.upgrade.upgrade import STATE_VARIABLE


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop, and return the watchdog's exit code."""
    if activation.is_job():
        activation.limit_stderr()
    places = find_places(arguments)
    log_file = arguments.log_file.absolute() if arguments.log_file else None
    os.umask(0o077)  # logs, evidence and sockets are their owner's affair
    make_private(places.state_dir)
    try:
        make_private(places.runtime_dir)
    except PlacesError:
        if STATE_VARIABLE not in os.environ:  # else it goes on from where it serves now
            raise

    loaded: config.LoadedConfig | None = None

    def load() -> config.LoadedConfig:
        nonlocal loaded
        loaded = config.load(places.named_config, places.state_dir)
        return loaded

    def stand_in(reason: str) -> config.LoadedConfig:
        return config.stand_in(reason, places.named_config)

    def banner(ready: Ready, addresses: list[str]) -> None:
        from tidegate.cli.show.banner import banner_line, banner_text, print_calmly

        # A log is no place to copy a command from; an event is a line there.
        if is_service() or sys.stdout is None or not sys.stdout.isatty():
            logging.getLogger(__name__).info("%s", banner_line(ready, addresses, places))
            return
        has_tokens = loaded is not None and bool(loaded.tokens)
        print_calmly(banner_text(ready, addresses, places, log_file, has_tokens=has_tokens))

    from tidegate.watchdog import start

    return start.run(
        load=load,
        stand_in=stand_in,
        runtime_dir=places.runtime_dir,
        state_dir=places.state_dir,
        log_file=log_file,
        park=arguments.park,
        banner=banner,
    )
