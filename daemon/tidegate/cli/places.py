"""The places that a verb's flags and the environment lead to."""

from __future__ import annotations

import argparse

from tidegate.config import places


def find_places(arguments: argparse.Namespace) -> places.Places:
    """The places for these arguments. Raises PlacesError."""
    return places.find(
        config=arguments.config,
        state_dir=arguments.state_dir,
        runtime_dir=arguments.runtime_dir,
    )
