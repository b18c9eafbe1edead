"""Prints the oldest releases that pyproject.toml admits, as constraints for pip (make test-floors).

The tools of the extra `dev` are held to constraints.txt; pip chooses all that these need.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def floors(requirements: list[str]) -> dict[str, str]:
    """The version after `>=` or `==` of each requirement that has one, by its name."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, requirements):
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                found[canonicalize_name(requirement.name)] = bound.version
    return found


def constraints(project: dict[str, Any], pinned: list[str]) -> Iterator[str]:
    """Lines for pip: the floors of the requirements, and the pinned versions of the tools."""
    oldest = floors(project["dependencies"])
    tools = {
        canonicalize_name(Requirement(tool).name)
        for tool in project["optional-dependencies"]["dev"]
    }
    at = {tool: version for tool, version in floors(pinned).items() if tool in tools - set(oldest)}
    for name, version in sorted({**oldest, **at}.items()):
        yield f"{name}=={version}"


def main() -> None:
    """Prints the constraints of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    print(*constraints(project, [line for line in lines if line and line[0] != "#"]), sep="\n")


if __name__ == "__main__":
    main()
