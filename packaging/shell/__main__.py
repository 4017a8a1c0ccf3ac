"""Writes the completions and the manual page anew: `make generated`."""

from __future__ import annotations

from pathlib import Path

from shell.completion import SHELLS
from shell.grammar import read
from shell.manual import manual
from tidegate.cli.parser import command_line
from tidegate.cli.shell.completion import SCRIPTS

PLACE = Path(__file__).resolve().parents[2] / "daemon" / "tidegate" / "cli" / "shell"

command = read(command_line())
for shell, write in SHELLS.items():
    (PLACE / SCRIPTS[shell]).write_text(write(command))
(PLACE / "tidegate.1").write_text(manual(command))
