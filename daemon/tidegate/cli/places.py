"""The config file and the directories that a verb's flags and the environment lead to."""

from __future__ import annotations

import argparse

from tidegate import config
from tidegate.config import places
from tidegate.core.settings import DrainLimits


def find_places(arguments: argparse.Namespace) -> places.Places:
    """Return the places for these arguments. Raises PlacesError."""
    return places.find(
        config=arguments.config,
        state_dir=arguments.state_dir,
        runtime_dir=arguments.runtime_dir,
    )


def stop_limit_s(found: places.Places) -> float:
    """Return how long the tidegate of these places lets answers finish when it stops, in seconds.

    A config that is not there or not good says nothing, and the default holds.
    """
    try:
        return config.read_settings(found.config_file).drain.stop_limit_s
    except (config.ConfigError, OSError):
        return DrainLimits().stop_limit_s
