"""Builds dist/tidegate_VERSION_ARCH.deb from this tree with dpkg-deb; `make deb` calls it.

The package brings the locked dependencies with it, in an environment of its own under
/usr/lib/tidegate: what Debian has of them is older than tidegate needs, and another package's
upgrade must not change what a gateway runs on. Their C extensions are made for one minor version
of Python, that of `--python`, and the package depends on it.

The same tree gives the same bytes: times are clamped to SOURCE_DATE_EPOCH (by default that of the
last commit), bytecode carries no time, and nothing names the directory it was built in.
"""

from __future__ import annotations

import argparse
import email
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
REVISION = "1"
HOME = Path("usr/lib/tidegate")
DOC = Path("usr/share/doc/tidegate")
MAINTAINER = "tidegate maintainers <maintainers@tidegate.invalid>"  # DEBFULLNAME, DEBEMAIL win
OLDEST_LIBC = (2, 17)  # manylinux2014

SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
FILES = {
    # source: (place, mode)
    "packaging/deb/tidegate": ("usr/bin/tidegate", 0o755),
    "packaging/deb/needrestart.conf": ("etc/needrestart/conf.d/tidegate.conf", 0o644),
    "packaging/deb/lintian-overrides": ("usr/share/lintian/overrides/tidegate", 0o644),
    "packaging/config.toml": ("usr/share/tidegate/config.toml", 0o644),
    "daemon/tidegate/cli/shell/tidegate.bash": (
        "usr/share/bash-completion/completions/tidegate",
        0o644,
    ),
    "daemon/tidegate/cli/shell/_tidegate": ("usr/share/zsh/vendor-completions/_tidegate", 0o644),
    "daemon/tidegate/cli/shell/tidegate.fish": (
        "usr/share/fish/vendor_completions.d/tidegate.fish",
        0o644,
    ),
    "systemd/tidegate.service": ("usr/lib/systemd/system/tidegate.service", 0o644),
    "systemd/tidegate.socket": ("usr/lib/systemd/system/tidegate.socket", 0o644),
    "systemd/tidegate-user.service": ("usr/lib/systemd/user/tidegate.service", 0o644),
    "systemd/tidegate-user.socket": ("usr/lib/systemd/user/tidegate.socket", 0o644),
    "README.md": (f"{DOC}/README.md", 0o644),
}
ZIPPED = {
    "daemon/tidegate/cli/shell/tidegate.1": "usr/share/man/man1/tidegate.1.gz",
    "CHANGELOG.md": f"{DOC}/changelog.gz",
}
# Of what a wheel brings, what no installed program reads; RECORD and direct_url.json also name
# files and places of the build.
NOT_SHIPPED = ("RECORD", "REQUESTED", "direct_url.json")


def main() -> int:
    """Build the package and print its path."""
    parser = argparse.ArgumentParser(description="Build the Debian package of tidegate.")
    parser.add_argument("--python", default="/usr/bin/python3", help="whose minor version it needs")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR")
    arguments = parser.parse_args()
    os.umask(0o022)
    # What runs below must not differ from day to day either.
    os.environ |= {"SOURCE_DATE_EPOCH": str(_epoch()), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    version = f"{_version()}-{REVISION}"
    architecture = _said(["dpkg", "--print-architecture"])
    target = arguments.output / f"tidegate_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="tidegate-deb-") as scratch:
        tree = Path(scratch, "tree")
        site = _environment(tree, arguments.python, Path(scratch))
        _files(tree, version, site)
        _control(tree, version, architecture, arguments.python, site)
        arguments.output.mkdir(parents=True, exist_ok=True)
        _run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(target)])
    print(target)
    return 0


def _version() -> str:
    """Write a version as Debian orders them: 1.0rc1 comes before 1.0."""
    text = (ROOT / "daemon/tidegate/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "daemon/tidegate/__init__.py has no __version__"
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", found[1])


def _epoch() -> int:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, check=False
    )
    # An unpacked source archive is no repository; its files have the time of the release.
    return int(asked.stdout or (ROOT / "pyproject.toml").stat().st_mtime)


# --- the environment -----------------------------------------------------------------------------


def _environment(tree: Path, python: str, scratch: Path) -> Path:
    """Python's search path and all it finds there; the directory of the packages is returned."""
    minor = _minor(python)
    home = tree / HOME
    site = home / "lib" / f"python{minor}" / "site-packages"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python3").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {minor}\n"
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = scratch / "wheels"
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)])
    install = [*pip, "--python", python, "install", "--no-deps", "--no-compile"]
    install += ["--no-warn-script-location", "--root-user-action", "ignore", "--target", str(site)]
    _run([*install, "--require-hashes", "-r", str(ROOT / "requirements.lock")])
    _run([*install, *map(str, wheels.glob("tidegate-*.whl"))])
    for elsewhere in ("bin", "share"):
        shutil.rmtree(site / elsewhere, ignore_errors=True)
    for name in NOT_SHIPPED:
        for file in site.glob(f"*.dist-info/{name}"):
            file.unlink()
    for file in (*site.rglob("*.py"), *site.rglob("*.so")):
        file.chmod(0o644)
    # Nothing checks this bytecode against a time: a package's files change only with the package.
    _run(
        [python, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        + ["-s", str(tree), "-p", "/", str(site)]
    )
    return site


def _minor(python: str) -> str:
    return _said([python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])


# --- the other files -----------------------------------------------------------------------------


def _files(tree: Path, version: str, site: Path) -> None:
    for source, (place, mode) in FILES.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, tree / place)
        (tree / place).chmod(mode)
    for source, place in ZIPPED.items():
        _zip((ROOT / source).read_bytes(), tree / place)
    for page in sorted((ROOT / "docs").glob("*.md")):
        (tree / DOC / "docs").mkdir(exist_ok=True)
        shutil.copyfile(page, tree / DOC / "docs" / page.name)
    _zip(_debian_changelog(version).encode(), tree / DOC / "changelog.Debian.gz")
    (tree / DOC / "copyright").write_text(_copyright(site))
    # Keys of upstreams. systemd reads them as root and hands them to the service alone.
    (tree / "etc/tidegate/credentials").mkdir(mode=0o700, parents=True)


def _zip(text: bytes, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(gzip.compress(text, 9, mtime=0))


def _maintainer() -> str:
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{address}>" if name and address else MAINTAINER


def _debian_changelog(version: str) -> str:
    when = format_datetime(datetime.fromtimestamp(_epoch(), UTC))
    return (
        f"tidegate ({version}) stable; urgency=medium\n\n"
        "  * What changed in tidegate itself is in changelog.gz.\n\n"
        f" -- {_maintainer()}  {when}\n"
    )


def _copyright(site: Path) -> str:
    """Write Debian's machine-readable copyright file; each licence text is shipped."""
    parts = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: tidegate\n"
        "Comment: The packages of others are under /usr/lib/tidegate, unchanged. The full text of\n"
        " each licence is in the directory of that package whose name ends in .dist-info.\n"
    ]
    own = f"/{HOME}/{site.relative_to(site.parents[2])}"
    for info in sorted(site.glob("*.dist-info")):
        about = email.message_from_string((info / "METADATA").read_text())
        name = about["Name"]
        if name == "tidegate":
            parts.insert(1, "Files: *\nCopyright: the tidegate authors\nLicense: Apache-2.0\n")
            continue
        author = (
            about["Author"]
            or about["Author-email"]
            or about["Maintainer"]
            or f"the authors of {name}"
        )
        tops = sorted({f"{own}/{top}" for top in _tops(site, info)})
        parts.append(
            "Files: " + "\n ".join(tops) + "\n"
            f"Copyright: {' '.join(author.split())}\n"
            f"License: {_licence(about)}\n"
            f" Its text is in {own}/{info.name}.\n"
            f"Comment: {name} {about['Version']}\n"
        )
    parts.append(
        "License: Apache-2.0\n"
        " On Debian systems the text of the Apache License, Version 2.0, is in\n"
        " /usr/share/common-licenses/Apache-2.0.\n"
    )
    return "\n".join(parts)


def _tops(site: Path, info: Path) -> Iterable[str]:
    """List the entries of the directory that belong to a package, by its top_level.txt."""
    yield f"{info.name}/*"
    listed = info / "top_level.txt"
    name = info.name.split("-")[0]
    for top in listed.read_text().split() if listed.exists() else [name, name.lower()]:
        if (site / top).is_dir():
            yield f"{top}/*"
        elif (site / f"{top}.py").exists():
            yield f"{top}.py"


def _licence(about: email.message.Message) -> str:
    """Return a licence's short name, as the package itself states it."""
    if stated := about["License-Expression"]:
        return str(stated).replace(" AND ", " and ").replace(" OR ", " or ")
    kinds = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    if kinds:
        return str(kinds[0].rsplit(":: ", 1)[1].replace(" License", "").replace(" ", "-"))
    return str(about["License"] or "other").splitlines()[0].replace(" ", "-")


# --- what dpkg reads -----------------------------------------------------------------------------


def _control(tree: Path, version: str, architecture: str, python: str, site: Path) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    shipped = sorted(p for p in tree.rglob("*") if not p.is_relative_to(control))
    files = [p for p in shipped if p.is_file() and not p.is_symlink()]
    size_kib = sum(-(-p.stat().st_size // 1024) for p in files) + sum(p.is_dir() for p in shipped)
    description = textwrap.indent(
        textwrap.fill(
            "It stands between the clients of language models and the servers that run them, "
            "keeps every answer that is being streamed bounded and resumable, and watches its own "
            "memory, so that a stuck stream cannot fill it. Made for computers that stay on for "
            "months.",
            width=76,
        ),
        " ",
    )
    (control / "control").write_text(
        "Package: tidegate\n"
        f"Version: {version}\n"
        f"Architecture: {architecture}\n"
        f"Maintainer: {_maintainer()}\n"
        f"Installed-Size: {size_kib}\n"
        f"Depends: {', '.join(_depends(python, site))}\n"
        "Recommends: ca-certificates\n"
        "Suggests: curl\n"
        "Section: net\n"
        "Priority: optional\n"
        "Description: LLM streaming gateway that stays up for months\n"
        f"{description}\n"
    )
    conffiles = [f"/{p.relative_to(tree)}\n" for p in files if p.is_relative_to(tree / "etc")]
    (control / "conffiles").write_text("".join(conffiles))
    fixed = [p for p in files if not p.is_relative_to(tree / "etc")]
    sums = [(hashlib.md5(p.read_bytes()).hexdigest(), p.relative_to(tree)) for p in fixed]
    (control / "md5sums").write_text("".join(f"{digest}  {path}\n" for digest, path in sums))
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, control / name)
        (control / name).chmod(0o755)


def _depends(python: str, site: Path) -> list[str]:
    """Return the interpreter of the C extensions, and the C library they were linked with."""
    minor = _minor(python)
    major, number = map(int, minor.split("."))
    tags = "\n".join(file.read_text() for file in site.glob("*.dist-info/WHEEL"))
    # A wheel lists every version it is good for: the least of its own, the most of all wheels.
    needed = [OLDEST_LIBC]
    for wheel in tags.split("Wheel-Version:"):
        found = re.findall(r"manylinux_(\d+)_(\d+)_", wheel)
        needed += [min((int(a), int(b)) for a, b in found)] if found else []
    libc = ".".join(map(str, max(needed)))
    return [
        f"python3 (>= {minor})",
        f"python3 (<< {major}.{number + 1})",
        f"libc6 (>= {libc})",
        "adduser",
    ]


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout.decode(errors='replace')}")


def _said(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
