"""What stands in one row of a data set: which columns, and question, answer and group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tpcal.plans.errors import UsageError, excerpt, listed

GUESSES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "img", "picture", "image_path", "file_name", "path"),
    "question": (
        *("question", "prompt", "instruction", "query", "conversations", "messages"),
        *("problem", "text", "input"),
    ),
    "answer": (
        *("answer", "answers", "multiple_choice_answer", "ground_truth", "response", "output"),
        *("target", "label", "labels"),
    ),
    "group": ("group", "category", "question_type", "task"),
}
"""Column names tried in this order where none is given."""
DEFAULT_GROUP = "all"


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None guesses from `GUESSES`."""

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    group: str | None = None

    def resolved(self, present: Sequence[str], source: str) -> Columns:
        """The same with every guess made; answer and group stay None where the data has none.

        Raises:
            UsageError: A named column, or one that must be there, is missing.
        """
        found: dict[str, str | None] = {}
        wrong = []
        for name in (f.name for f in fields(self)):
            given = getattr(self, name)
            found[name] = given or next((g for g in GUESSES[name] if g in present), None)
            if given is not None and given not in present:
                wrong.append(f"no column {given!r}")
            elif found[name] is None and name in ("image", "question"):
                wrong.append(f"no {name} column (name it with --{name}-column)")
        if wrong:
            raise UsageError(
                f"{source} has {' and '.join(wrong)}. It has these columns: {listed(present)}."
            )
        return Columns(**found)


def read_question(cell: Any, row: str) -> tuple[str, str | None]:
    """The question of a cell; of a conversation its first question and the answer to it.

    Image placeholders are left out: the chat template puts its own.

    Raises:
        UsageError: There is no text.
    """
    answer = None
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        turns = [_turn(turn) for turn in cell if isinstance(turn, Mapping)]
        asked = next((i for i, (who, _) in enumerate(turns) if who in ("user", "human")), None)
        cell = None if asked is None else turns[asked][1]
        if asked is not None and asked + 1 < len(turns):
            answer = turns[asked + 1][1] or None
    text = cell.replace("<image>", "").strip() if isinstance(cell, str) else ""
    if not text:
        raise UsageError(f"{row}: the question must be text; got {excerpt(cell)}.")
    return text, answer


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Who speaks and what, in LLaVA's form (from, value) or the chat form (role, content)."""
    content = turn.get("value", turn.get("content"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [p.get("text") for p in content if isinstance(p, Mapping)]
        content = " ".join(p for p in parts if isinstance(p, str))
    return str(turn.get("from", turn.get("role"))), str(content or "")


def read_answer(cell: Any, labels: Sequence[str] | None = None) -> str | None:
    """The answer of a cell: of several the most common, the first among equals; None without one.

    Args:
        cell: Text, a number, a class number, or a list of those or of ``{"answer": …}``.
        labels: Class names, where the cell holds a class number.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("answer", cell.get("text"))
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        read = [answer for item in cell if (answer := read_answer(item, labels)) is not None]
        return Counter(read).most_common(1)[0][0] if read else None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if labels is not None and isinstance(cell, int):
        return labels[cell] if 0 <= cell < len(labels) else None
    text = "" if cell is None else str(cell).strip()
    return text or None
