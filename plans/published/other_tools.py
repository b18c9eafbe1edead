"""Budgets and schedules in the notation of other tools.

A budget is a number with an optional word that states what it counts::

    0.22   22%   128/576               the share kept
    keep_ratio=0.22   22% kept         the same
    rate=0.78   78% pruned             the share pruned

A schedule is a list of cuts, or lists of layers and of shares kept::

    2:fastv:0.5,6:dart:0.3             layer:method:ratio of UniPruneBench
    layer_list=[8,16,24] image_token_ratio_list=[0.5,0.25,0.125]    PyramidDrop
    K=2 R=50%                          FastV
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan
from tpcal.plans.selectors import can_cut, names

KEPT = ("keep", "kept", "keep_ratio", "retain_ratio")
PRUNED = ("rate", "pruned", "prune_ratio", "sparsity")
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fastv": ("attention", {}),
    "pdrop": ("attention", {}),
    "pyramiddrop": ("attention", {}),
    "divprune": ("diversity", {"rule": "max_min"}),
    "todre": ("diversity", {"rule": "max_sum", "pivot": "farthest"}),
    "btp": ("balanced", {}),
    "pool": ("pooling", {}),
}
"""Names of selectors in other tools; the names of tpcal's own selectors are accepted as well."""
LAYERS = ("layers", "layer_list")
KEEPS = ("keeps", "image_token_ratio_list")
_WORD = re.compile(r"(\w+)=(\[[^\]]*\]|\S+)")


def share_kept(text: str) -> float:
    """The share of tokens that stay, from a budget in the notation of any tool.

    Example::

        share_kept("128/576")  # 0.222222222222
        share_kept("rate=0.78")  # 0.22

    Raises:
        UsageError: If the text is no budget; the message lists the accepted notations.
    """
    word, number = _word_and_number(text.replace(" %", "%").strip())
    share = 1 - number if word in PRUNED else number
    if word not in (*KEPT, *PRUNED) or not 0 < share <= 1:  # also catches nan
        raise UsageError(
            "A budget must be above 0 and at most 1: 0.22, 22%, 128/576, '78% pruned', or "
            f"WORD=0.22 with {', '.join(KEPT)} (what stays) or {', '.join(PRUNED)} (what goes); "
            f"got {text or 'nothing'}."
        )
    return round(share, 12)  # 1 - 0.78 is 0.21999999999999997


def _word_and_number(text: str) -> tuple[str, float]:
    word, sign, number = text.partition("=")
    if not sign:
        number, _, word = text.partition(" ")
        word = word or KEPT[0]
    return word.strip().lower().replace("-", "_"), _number(number)


def _number(text: str) -> float:
    """The value of 0.22, 22% or 128/576; nan if the text is none of these."""
    whole, slash, parts = text.strip().removesuffix("%").partition("/")
    try:
        number = float(whole) / (float(parts) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return math.nan
    if text.strip().endswith("%"):
        return math.nan if slash else number / 100
    return number


def schedule(text: str, n_layers: int) -> Plan:
    """The plan that a schedule of another tool describes.

    A cut is made before the layer that it names, as in those tools. Ratios in
    ``layer:method:ratio`` are shares of the tokens that the previous cut left, ratios in lists are
    shares of all tokens of the image, and R of FastV is the share pruned. A ratio of 0 drops all.

    Example::

        schedule("2:fastv:0.5", n_layers=32)

    Args:
        text: A schedule in one of the notations of this module. Methods are those of `METHODS` or
            selectors, with or without the suffix ``_intra_llm`` or ``_pre_llm``.
        n_layers: Decoder layers of the model that the schedule is for.

    Raises:
        UsageError: If the text is no such schedule, or breaks the rules of a plan.

    Source:
        UniPruneBench (arXiv 2511.02650), layer_prune.py: INTRA_LLM_LAYER_SPECS, "," or ";" between
        cuts, KEEP_RATIO of the visual tokens that are left. PyramidDrop (arXiv 2410.17247),
        --layer_list and --image_token_ratio_list, whose first entry, 1.0, may be left out. FastV
        (arXiv 2403.06764), K and R.
    """
    cuts = _lists(text) if "=" in text else _triples(text)
    for cut, after in zip(cuts, [*cuts[1:], None], strict=True):
        _check(text, cut, after, n_layers)
    source = f"tpcal convert, from: {' '.join(text.split())}"
    return Plan(cuts=tuple(cuts), source=source, model=ModelIdentity(n_layers), scope="image")


def _triples(text: str) -> list[Cut]:
    # Each ratio is relative to the cut before, so the keep is the product of the ratios so far.
    cuts, alive = [], 1.0
    for entry in filter(None, (e.strip() for e in re.split("[,;]", text))):
        layer, _, rest = entry.partition(":")
        method, _, ratio = rest.partition(":")
        if not layer.strip().isdecimal() or not 0 <= _number(ratio) <= 1:
            raise UsageError(
                f"A cut must be layer:method:ratio, such as 2:fastv:0.5, with the share kept of "
                f"the tokens that are left; got {entry!r}."
            )
        alive *= _number(ratio)
        cuts.append(_cut(int(layer), method, alive))
    if not cuts:
        raise UsageError("A schedule must have cuts, such as 2:fastv:0.5; got none.")
    return cuts


def _lists(text: str) -> list[Cut]:
    given = {key.lower(): value for key, value in _WORD.findall(text)}
    if _WORD.sub("", text).strip(" ,;"):
        raise _wrong_words(text)
    # FastV has one cut at layer K, which prunes the share R. PyramidDrop has a list of layers and
    # a list of shares kept.
    if set(given) == {"k", "r"}:
        layers, keeps, method = [_number(given["k"])], [1 - _number(given["r"])], "fastv"
    else:
        layers, keeps = _list(given, LAYERS, text), _list(given, KEEPS, text)
        method = given.pop("method", "pdrop")
        if given:
            raise _wrong_words(text)
    # The list of PyramidDrop may begin with 1.0, the share kept before the first cut.
    if keeps[:1] == [1.0] and len(keeps) == len(layers) + 1:
        keeps = keeps[1:]
    whole = all(layer >= 0 and layer.is_integer() for layer in layers)
    if len(keeps) != len(layers) or not whole or not all(0 <= k <= 1 for k in keeps):
        raise UsageError(
            "A schedule must have a whole layer for each share kept, which is in [0, 1]; got "
            f"{text!r}."
        )
    return [_cut(int(a), method, k) for a, k in zip(layers, keeps, strict=True)]


def _list(given: dict[str, str], known: Sequence[str], text: str) -> list[float]:
    found = [given.pop(name) for name in known if name in given]
    if len(found) != 1:
        raise _wrong_words(text)
    return [_number(item) for item in found[0].strip("[]").split(",")]


def _wrong_words(text: str) -> UsageError:
    return UsageError(
        f"A schedule must be layer:method:ratio,… or {LAYERS[1]}=[…] with {KEEPS[1]}=[…] "
        f"(short: {LAYERS[0]}, {KEEPS[0]}) and perhaps method=…, or K=… with R=…; got {text!r}."
    )


def _cut(layer: int, method: str, keep: float) -> Cut:
    name = method.strip().lower()
    name = name.removesuffix("_intra_llm").removesuffix("_pre_llm")
    if name not in METHODS and name not in names():
        known = ", ".join(sorted({*METHODS, *names()}))
        raise UsageError(f"No selector is known as {method.strip()!r}. Known: {known}.")
    selector, params = METHODS.get(name, (name, {}))
    return Cut(layer, round(keep, 6), selector, params) if keep > 0 else Cut(layer, 0.0)


def _check(text: str, cut: Cut, after: Cut | None, n_layers: int) -> None:
    subject = f"The cut before layer {cut.layer} of {text!r}"
    if cut.layer >= n_layers:
        raise UsageError(
            f"{subject} must stand in a decoder of {n_layers} layers, 0 to {n_layers - 1}."
        )
    if after is not None and not (cut.layer < after.layer and cut.keep >= after.keep):
        raise UsageError(f"{subject} must come before layers that keep as much or less.")
    if cut.selector is not None and not can_cut(cut.selector, cut.params, cut.layer):
        raise UsageError(
            f"{subject} must be at layer 1 or later, as {cut.selector} reads attention."
        )
