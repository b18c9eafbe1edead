"""Files: atomic writing, and reading of YAML nobody has to trust."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tpcal.plans.errors import UsageError

MAX_YAML_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Refuses aliases (a few lines of them expand to gigabytes) and repeated keys.

    Pure Python, because the C loader composes nodes where no check can be put.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, "aliases are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "the same key stands twice in a mapping", node.start_mark
            )
        return mapping


def parse_yaml(text: str, source: str) -> Any:
    """The data in a YAML text.

    Args:
        text: The YAML.
        source: Named in errors, e.g. the path.

    Raises:
        UsageError: Not YAML, holds tags, aliases or repeated keys, or is nested beyond reason.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{source}{where} must be plain YAML; {problem}.") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{source} must be plain YAML; got {error}.") from None


def read_yaml(path: Path | str, what: str, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The data in a YAML file.

    Args:
        path: File to read.
        what: Kind of file, for errors: "plan", "profile".
        max_bytes: Larger files are refused before they are read.

    Raises:
        UsageError: Missing, unreadable, too large, not UTF-8, empty or not plain YAML.
    """
    path = Path(path)
    data = read_bytes(path, what, max_bytes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} must be a {what} in UTF-8 text; got binary data.") from None
    if not text.strip():
        raise UsageError(f"{path} must be a {what}; got an empty file.")
    return parse_yaml(text, str(path))


def read_bytes(path: Path, what: str, max_bytes: int) -> bytes:
    """The bytes of a file no larger than ``max_bytes``; anything else is a UsageError."""
    if not path.exists():
        raise UsageError(f"No {what} at {path}.")
    if path.is_dir():
        raise UsageError(f"{path} must be a {what} file; got a folder.")
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > max_bytes:
        raise UsageError(f"{path} must be at most {max_bytes:,} bytes; got a larger file.")
    return data


class Line(dict[str, Any]):
    """A mapping that `dump_yaml` writes on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # our own reader refuses them


_Dumper.add_representer(
    Line,
    lambda dumper, data: dumper.represent_mapping(
        "tag:yaml.org,2002:map", data.items(), flow_style=True
    ),
)


def dump_yaml(data: Any) -> str:
    """YAML of plain data: keys in the given order, leaves and every `Line` on one line."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=110,
        default_flow_style=None,
    )


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Writes a file so that readers see the old content or the new, never half of it.

    Raises:
        UsageError: The folder cannot be written.
    """
    path = Path(path)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp made it private
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
