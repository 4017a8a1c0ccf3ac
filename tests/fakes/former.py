"""Former versions of tidegate, out of the repository's history, installed behind a link."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from fakes.scenario import ROOT


def install_former(commit: str, folder: Path) -> Path:
    """Unpack that commit's source below `folder`; returns a link to it, as a package has one."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "daemon"], capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip("needs the repository's history")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder / "former", filter="data")
    link = folder / "installed"
    link.symlink_to(folder / "former" / "daemon")
    return link


def install_present(link: Path) -> None:
    """Turn the link to the present version, in one step."""
    new = link.with_name("new")
    new.symlink_to(ROOT / "daemon")
    new.replace(link)
