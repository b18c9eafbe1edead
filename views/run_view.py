"""View of `tpcal run`: one answer, its tokens and its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.plans.formats import binary, percent
from tpcal.views.tables import QUIET

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.image_answer import ImageAnswer


def answer_view(answer: ImageAnswer) -> RenderableType:
    """The answer, the number of tokens that were kept, and the memory of the KV cache."""
    lines: list[RenderableType] = [Text(answer.text or "(no answer)"), Text()]
    counts = answer.counts if answer.n_tokens else ()  # without an image nothing can be left
    kept = ", ".join(f"{n} from layer {layer}" for layer, n in counts)
    lines.append(Text(f"visual tokens  {answer.n_tokens}{', ' + kept if kept else ''}", QUIET))
    saved = percent(1 - answer.kv_bytes / answer.unpruned_kv_bytes)
    sizes = f"{binary(answer.kv_bytes)}, unpruned {binary(answer.unpruned_kv_bytes)}"
    lines.append(Text(f"KV cache       {sizes}, saved {saved}", QUIET))
    return Group(*lines)
