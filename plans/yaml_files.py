"""Files: atomic writing, and safe reading of YAML from untrusted sources."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from tpcal.plans import temporary_files
from tpcal.plans.errors import UsageError

MAX_YAML_BYTES = 1_000_000
BYTES_PER_NODE = 50
"""A file may hold one value for this many bytes of its size limit. More values would take minutes
to read, and no file that tpcal writes has nearly as many."""
MAX_DEPTH = 32
"""Largest depth of nested lists and mappings; deeper data could be read but not be written."""
MAX_DIGITS = 100
"""Largest number of digits of a number; parsing takes time quadratic in it."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses constructs that plain files do not need and attacks use.

    It refuses aliases (a few lines of them expand to gigabytes), merge keys, tags (those of
    numbers and dates make PyYAML fail on invalid values), repeated keys, text that is not valid
    Unicode, numbers of many digits, and more or deeper values than any file of tpcal has.

    It is pure Python, because the C loader composes nodes without a place for these checks.
    """

    def __init__(self, text: str, max_nodes: int) -> None:
        super().__init__(text)
        self._depth, self._n_left = 0, max_nodes

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._n_left -= 1
        if self._n_left < 0:
            raise _refused(event, "it holds more values than such a file can need")
        if self._depth > MAX_DEPTH:
            raise _refused(event, f"lists and mappings must be nested at most {MAX_DEPTH} deep")
        if isinstance(event, yaml.events.AliasEvent):
            raise _refused(event, "aliases are not allowed")
        if event.tag is not None:
            raise _refused(event, f"could not determine a constructor for the tag {event.tag!r}")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node, event)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "the same key stands twice in a mapping", node.start_mark
            )
        return mapping


def _check_scalar(node: Any, event: Any) -> None:
    kind = node.tag.rpartition(":")[2]
    if kind == "merge":
        raise _refused(event, "merge keys (<<) are not allowed")
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        raise _refused(event, f"numbers must have at most {MAX_DIGITS} digits")
    if problem := text_problem(node.value):
        raise _refused(event, f"text must {problem}")


def _refused(event: Any, problem: str) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)


def text_problem(text: str) -> str | None:
    """What the text of a file must and this one does not; None if it can be kept."""
    if not is_unicode(text):
        return "be Unicode; got half of a surrogate pair"
    # Printed, the escape character would command the terminal.
    return "not hold the escape character" if "\x1b" in text else None


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded; halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_yaml(text: str, source: str, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The data in a YAML text.

    Args:
        text: The YAML text.
        source: Name of the text in error messages, e.g. the path.
        max_bytes: Size limit of the file; it may hold one value per `BYTES_PER_NODE` bytes of it.

    Raises:
        UsageError: The text is not YAML, or contains something that `_Loader` refuses.
    """
    try:
        loader = _Loader(text, max_bytes // BYTES_PER_NODE)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{source}{where} must be plain YAML; {problem}.") from None
    except (RecursionError, ValueError, OverflowError) as error:
        raise UsageError(f"{source} must be plain YAML; got {error}.") from None


def read_yaml(path: Path | str, what: str, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The data in a YAML file.

    Args:
        path: File to read.
        what: Kind of file for error messages, e.g. "plan" or "profile".
        max_bytes: Largest size of the file.

    Raises:
        UsageError: The file is missing, unreadable, too large, not UTF-8, empty or not plain YAML.
    """
    path = Path(path)
    data = read_bytes(path, what, max_bytes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} must be a {what} in UTF-8 text; got binary data.") from None
    if not text.strip():
        raise UsageError(f"{path} must be a {what}; got an empty file.")
    return parse_yaml(text, str(path), max_bytes)


def read_bytes(path: Path, what: str, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes`` bytes.

    Raises:
        UsageError: The file is missing, unreadable or larger, or is a folder, a pipe or a device;
            reading those might never end.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            refuse_special(path, what, os.fstat(file.fileno()).st_mode)
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"No {what} at {path}.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} must be a {what} file; got a folder.") from None
    except ValueError as error:  # a name with a null byte
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > max_bytes:
        raise UsageError(f"{path} must be at most {max_bytes:,} bytes; got a larger file.")
    return data


def refuse_special(path: Path, what: str, mode: int) -> None:
    """Raises UsageError if ``mode`` is not that of a regular file."""
    kinds = ((stat.S_ISREG, ""), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"))
    got = next((name for is_kind, name in kinds if is_kind(mode)), "a device or socket")
    if got:
        raise UsageError(f"{path} must be a {what} file; got {got}.")


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file without waiting, even if it is a pipe that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Line(dict[str, Any]):
    """A mapping that `dump_yaml` writes on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # `_Loader` refuses aliases


_Dumper.add_representer(
    Line,
    lambda dumper, data: dumper.represent_mapping(
        "tag:yaml.org,2002:map", data.items(), flow_style=True
    ),
)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes this line break of ISO 8859 as it is, and reads it as a blank.
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump_yaml(data: Any) -> str:
    """YAML of plain data, keys in the given order; mappings of scalars and `Line` on one line."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=110,
        default_flow_style=None,
    )


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Writes a file so that readers see either the old content or the new, never a part of it.

    An existing file keeps its permissions, the links to it and, if the system permits, its owner.
    Temporary files that killed processes left in the folder are removed.

    Raises:
        UsageError: The folder cannot be written, or the path is not that of a regular file.
    """
    target = Path(os.path.realpath(path))
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        before = _status(target)
        if before is not None:
            refuse_special(Path(path), "regular", before.st_mode)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, new = temporary_files.new_file(target.parent)
        try:
            with os.fdopen(handle, "wb") as file:  # the lock is held until the file is renamed
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
                _set_access(new, before)
                os.replace(new, target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _set_access(new: Path, before: os.stat_result | None) -> None:
    """Gives a file the owner and permissions of the file it replaces, or those of a new file."""
    if before is None:
        os.chmod(new, 0o666 & ~_umask())  # temporary files are private
        return
    with contextlib.suppress(PermissionError, AttributeError):  # no right to, or no owners at all
        os.chown(new, -1, before.st_gid)
        os.chown(new, before.st_uid, -1)
    os.chmod(new, stat.S_IMODE(before.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
