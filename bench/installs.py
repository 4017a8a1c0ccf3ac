"""Other gateways, installed when they are asked for: into build/peers, nowhere else.

Packages of Debian and Ubuntu are unpacked there, not installed: no root, no service, no file
outside this directory. What comes from npm and PyPI is pinned here; what comes from Debian is as
old as the system, and its version is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools import BUILD

PEERS = BUILD.parent / "peers"
PORTKEY = "1.15.2"
# Portkey asks for any 1.x; with those after this one its streamed answers fail with status 500.
HONO_NODE_SERVER = "1.13.7"
LITELLM = "1.106.0"
INSTALL_LIMIT_S = 600


class CannotInstallError(Exception):
    """This gateway is not to be had here; the message says why."""


def debian(package: str) -> list[str]:
    """Return the command that runs a Debian package's program, from here if it is not installed."""
    if installed := shutil.which(package, path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return [installed]
    root = PEERS / package
    if not (root / "unpacked").exists():
        _unpack(package, root)
    libraries = ":".join(map(str, root.glob("usr/lib/*-linux-gnu*")))
    programs = [*root.glob(f"usr/*bin/{package}")]
    if not programs:
        raise CannotInstallError(f"the package {package} has no program of its name")
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(programs[0])]


def portkey() -> list[str]:
    """Return the command that runs Portkey's gateway."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise CannotInstallError("it needs node and npm")
    folder = PEERS / f"portkey-{PORTKEY}"
    start = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    if not start.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {
            "private": True,
            "dependencies": {"@portkey-ai/gateway": PORTKEY},
            "overrides": {"@hono/node-server": HONO_NODE_SERVER},
        }
        (folder / "package.json").write_text(json.dumps(wanted))
        _run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return ["env", "NODE_ENV=production", "node", str(start)]


def litellm() -> list[str]:
    """Return the command that runs LiteLLM's proxy, from a Python environment of its own."""
    folder = PEERS / f"litellm-{LITELLM}"
    program = folder / "bin/litellm"
    if not program.exists():
        python = folder / "bin/python"
        _run(sys.executable, "-m", "venv", "--clear", folder)
        _run(python, "-m", "pip", "--quiet", "install", f"litellm[proxy]=={LITELLM}")
    return ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR", str(program)]


def version_of(command: list[str], *arguments: str) -> str:
    """Ask a program for its version: the first thing in its answer that looks like one."""
    found = re.search(r"\d+\.\d+[.\d]*", _run(*command, *arguments))
    return found[0] if found else "of unknown version"


def _unpack(package: str, root: Path) -> None:
    """Fetch a package, and what it needs that this system has not, and unpack them under `root`."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    plan = _run("apt-get", "--simulate", "--no-install-recommends", "install", package)
    # "Inst NAME (VERSION ...": new. With "[VERSION]" behind its name it is here in another version.
    names = re.findall(r"^Inst (\S+) \(", plan, re.MULTILINE)
    _run("apt-get", "--quiet", "download", *names, cwd=root)
    for archive in root.glob("*.deb"):
        _run("dpkg-deb", "--extract", archive, root)
        archive.unlink()
    (root / "unpacked").touch()


def _run(*command: object, cwd: Path | None = None) -> str:
    """Run to its end and return what it said. Raises CannotInstallError."""
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise CannotInstallError(f"there is no {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise CannotInstallError(f"{command[0]} took more than {INSTALL_LIMIT_S} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.output.strip().splitlines() or ["it said nothing"])[-1]
        raise CannotInstallError(f"{command[0]} failed: {last}") from error
    return done.stdout
