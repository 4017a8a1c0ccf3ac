"""Writes what tidegate is made of as CycloneDX JSON: `make sbom` → dist/tidegate-VERSION.cdx.json.

It is made from requirements.lock, pyproject.toml and packages.toml alone, without a network: each
package that runs, its licence, and the SHA-256 of every file that pip may install for it. The same
tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import locks
from locks import Locked, normalized

KNOWN = Path(__file__).resolve().with_name("packages.toml")
SPEC = "1.6"
NAMESPACE = uuid.UUID(
    "6f0a2d0e-7a4c-5d0f-9a39-7b1f8a6a5d11"
)  # of the serial numbers, ours for ever


def main() -> int:
    """Write the file and print its path."""
    parser = argparse.ArgumentParser(description="Write the bill of materials of tidegate.")
    parser.add_argument("--output", type=Path, default=locks.ROOT / "dist", metavar="DIR")
    arguments = parser.parse_args()
    bill = make()
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"tidegate-{bill['metadata']['component']['version']}.cdx.json"
    target.write_text(json.dumps(bill, indent=2) + "\n")
    print(target)
    return 0


def make() -> dict[str, Any]:
    """Make the bill of materials of this tree."""
    project = tomllib.loads((locks.ROOT / "pyproject.toml").read_text())["project"]
    licences: dict[str, str] = tomllib.loads(KNOWN.read_text())["licences"]
    locked = locks.read(locks.RUNTIME)
    version = _version()
    root = f"pkg:pypi/tidegate@{version}"
    direct = {
        normalized(re.match(r"[\w.-]+", each)[0])  # type: ignore[index]
        for each in project["dependencies"]
    }
    content = {
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "tidegate",
                "version": version,
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": root,
            }
        },
        "components": [_component(each, licences[each.key]) for each in locked],
        "dependencies": [
            {"ref": root, "dependsOn": [_purl(each) for each in locked if each.key in direct]}
        ],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(content, sort_keys=True))
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **content,
    }


def _component(each: Locked, licence: str) -> dict[str, Any]:
    purl = _purl(each)
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": each.key,
        "version": each.version,
        "scope": "required",
        "licenses": [{"expression": licence}],
        "purl": purl,
        # A hash belongs to a file, and there is one for each system and Python.
        "externalReferences": [
            {
                "type": "distribution",
                "url": purl,
                "comment": "every file that may be installed",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in each.hashes],
            }
        ],
    }
    if each.marker:
        component["properties"] = [{"name": "tidegate:marker", "value": each.marker}]
    return component


def _purl(each: Locked) -> str:
    return f"pkg:pypi/{each.key}@{each.version}"


def _version() -> str:
    text = (locks.ROOT / "daemon/tidegate/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "daemon/tidegate/__init__.py has no __version__"
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
