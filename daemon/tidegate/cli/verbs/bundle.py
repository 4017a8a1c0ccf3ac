"""`tidegate bundle`: have the running tidegate write a bundle of evidence."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from tidegate.cli.failure import REFUSED, USAGE, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.decode import read_bundle
from tidegate.cli.show.printable import say, say_json
from tidegate.cli.show.screen import size_text
from tidegate.cli.verbs.ask import ask
from tidegate.core.protocol.control import ControlRequest
from tidegate.logs.file import refuse_strange_link


def bundle(arguments: argparse.Namespace) -> int:
    """Print the bundle's path; copy the bundle first if `--output` says where to."""
    written = read_bundle(ask(find_places(arguments), ControlRequest(verb="bundle")))
    path = Path(written.path)
    if arguments.output is not None:
        path = _copy(path, arguments.output)
    if arguments.json:
        say_json({"path": str(path), "bytes": written.bytes})
    else:
        say(f"{path}, {size_text(written.bytes)}")
    return 0


def _copy(bundle: Path, output: Path) -> Path:
    """Copy it for its owner alone, like the bundle itself. An existing file is overwritten."""
    place = output.absolute()
    if place.is_dir():
        place /= bundle.name
    try:
        source = bundle.open("rb")
    except OSError as error:
        raise CliError(f"{bundle}: {error.strerror}", REFUSED) from error
    with source:
        try:
            refuse_strange_link(place)
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "wb") as target:
                os.fchmod(fd, 0o600)
                shutil.copyfileobj(source, target)
        except OSError as error:
            text = f"{place}: {error.strerror}; the bundle is {bundle}"
            raise CliError(text, USAGE) from error
    return place
