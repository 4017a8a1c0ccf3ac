"""`tidegate completion`: print the script by which a shell completes the command.

The scripts and the manual page lie beside this file and are part of the package; packaging/shell
writes them from the parser (`make generated`), and a test compares them with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SCRIPTS = {"bash": "tidegate.bash", "zsh": "_tidegate", "fish": "tidegate.fish"}


def completion(arguments: argparse.Namespace) -> int:
    """Print the script for one shell."""
    script = Path(__file__).with_name(SCRIPTS[arguments.shell])
    print(script.read_text(encoding="utf-8"), end="")
    return 0
