"""Safe reading of the JSON files that commands of tpcal write, with a check of every value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tpcal.plans.errors import UsageError
from tpcal.plans.yaml_files import is_unicode, read_bytes

MAX_BYTES = 50_000_000
T = TypeVar("T")


def read_json(path: Path, command: str, from_json: Callable[[Any], T]) -> T:
    """The record in a JSON file that a command wrote with ``--output``.

    Args:
        path: The file.
        command: Name of the command, for error messages.
        from_json: Makes the record of the file's data. What it raises for missing keys and wrong
            values becomes the reason in the error message.

    Raises:
        UsageError: If the file is missing or holds something else.
    """
    rule = f"{path} must be the JSON that tpcal {command} -o FILE.json writes"
    data = read_bytes(path, f"file of tpcal {command}", MAX_BYTES)
    try:
        read = json.loads(data.decode("utf-8"))
        if not is_unicode(json.dumps(read, ensure_ascii=False)):
            raise ValueError("text that is no Unicode")
        return from_json(read)
    except KeyError as error:
        raise UsageError(f"{rule}; {error.args[0]!r} is missing in it. Write it again.") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{rule}; got something else: {reason}. Write it again.") from None


def number(value: Any) -> float:
    """The value as a float; raises ValueError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def optional_text(value: Any) -> str | None:
    """The value as text; None stays None."""
    return None if value is None else str(value)
