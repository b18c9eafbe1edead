"""Runs of a case with and without plans; each run is made once and shared by all laws."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from tpcal.plans.executor import compat
from tpcal.plans.executor.architecture import flash_layers
from tpcal.plans.executor.handle import Report, apply, check
from tpcal.plans.executor.kernels import is_flash
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.families import find
from tpcal.plans.laws import rounding
from tpcal.plans.laws.case import Case, Inputs
from tpcal.plans.laws.outcomes import Broken, Inapplicable
from tpcal.plans.laws.reference import Merging, hidden_tokens, hiding, mergings
from tpcal.plans.laws.rounding import distance
from tpcal.plans.plan_records import UNCUT, Cut, Plan

N_STEPS = 2
"""Number of decode steps after a prefill: one that reads what the prefill left, and one that reads
what a step left."""
N_TOKENS = 4
"""Number of tokens that `generate` makes."""
_FINE = 1e-3  # share of the logits' spread; smaller rounding changes no choice
_COARSE = 0.5  # share of the logits' spread; larger rounding hides every difference
_LARGE = 2**31  # bytes of weights that are copied without a check of the free memory


@dataclass(frozen=True)
class TrialRun:
    """A prefill and `N_STEPS` decode steps."""

    logits: Tensor
    """[B, S + N_STEPS, V] logits."""
    cache: Cache
    report: Report | None
    """The report of the prefill; None without a plan."""

    @property
    def kept(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Original ranks kept by each cut in each row."""
        assert self.report is not None
        return tuple(cut.kept for cut in self.report.cuts)


class Trial:
    """A case, the plans that fit its model, and the results of their runs.

    Args:
        case: The model and its prompts.
        plan: A plan to test in addition to the suite's own plans.
        merge: The ``merge`` of the suite's own plans.
    """

    def __init__(self, case: Case, plan: Plan | None = None, merge: str | None = None) -> None:
        self.case = case
        self.merge = merge
        self.model = case.model
        self.family = find(case.model)
        self.n_layers = len(self.family.layers(case.model))
        self.given = plan
        self._runs: dict[tuple[str, str], TrialRun] = {}

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Plans whose logits are compared: by position, by attention, and with early cuts.

        The plan by attention chooses among all images of a prompt, the others in each image.
        """
        free = [at for at in range(self.n_layers) if self.fits(Cut(at, 0.0))]
        if len(free) < 3:
            problems = check(Plan((Cut(self.n_layers - 1, 0.0),)), self.model)
            raise Broken(f"only layers {free} can be cut before: {' '.join(problems)}")
        scored = [at for at in free if self.fits(Cut(at, 0.5, "attention"))]
        one, two, three = _spread([at for at in free if at > 0])
        cuts = (Cut(one, 0.5, "random"), Cut(two, 0.25, "grid"), Cut(three, 0.0))
        plans = {"content": Plan(cuts, scope="image")}
        if len(scored) >= 3:
            one, two, three = _spread(scored)
            cuts = (Cut(one, 0.5, "attention"), Cut(two, 0.25, "attention"), Cut(three, 0.0))
            plans["attention"] = Plan(cuts)
        if 0 in free:
            second = (Cut(scored[0], 0.2, "attention"),) if scored else ()
            plans["early"] = Plan((Cut(0, 0.4, "random"), *second), scope="image")
        plans = {name: replace(plan, merge=self.merge) for name, plan in plans.items()}
        if self.given is not None:
            plans["given"] = self.given
        return plans

    def fits(self, cut: Cut) -> bool:
        """Whether the model can be cut before this layer by this selector."""
        return not check(Plan((cut,)), self.model)

    @cached_property
    def left(self) -> dict[str, Tensor]:
        """All prompts as one batch, padded on the left."""
        return self.case.batch(self.case.rows, "left")

    @cached_property
    def right(self) -> dict[str, Tensor]:
        """All prompts as one batch, padded on the right."""
        return self.case.batch(self.case.rows, "right")

    def inputs(self, name: str) -> Inputs:
        """The inputs called ``left``, ``right``, or the number of a row."""
        return getattr(self, name) if name in ("left", "right") else self.case.rows[int(name)]

    @cached_property
    def n_visual(self) -> list[int]:
        """Number of visual tokens of each prompt."""
        return [int(self.visual(row).sum()) for row in self.case.rows]

    @property
    def with_images(self) -> list[int]:
        """Numbers of the prompts that have an image."""
        return [at for at, n in enumerate(self.n_visual) if n]

    def visual(self, inputs: Inputs) -> Tensor:
        """[B, S] bool, True at visual tokens."""
        found = self.family.visual_mask(self.model, inputs["input_ids"], None)
        return found & inputs["attention_mask"].bool()

    def text(self, inputs: Inputs) -> Tensor:
        """[B, S] bool, True at text, False at visual tokens and padding."""
        return inputs["attention_mask"].bool() & ~self.visual(inputs)

    def places(self, inputs: Inputs, cuts: Sequence[CutRecord], layer: int) -> list[Tensor] | None:
        """Places of each row's tokens that reach a layer; None before the first cut."""
        done = [cut for cut in cuts if cut.layer <= layer]
        if not done:
            return None
        visual, stays = self.visual(inputs), self.text(inputs)
        for row, ranks in enumerate(done[-1].kept):
            stays[row, visual[row].nonzero()[list(ranks), 0]] = True
        return [row.nonzero()[:, 0] for row in stays]

    def words(self, n_rows: int, n: int = N_STEPS, start: int = 0) -> Tensor:
        """[B, n] text tokens, the same in every row: the text of the prompt without images."""
        row = self.case.rows[self.n_visual.index(0)]["input_ids"][0, 1:]
        at = torch.arange(start, start + n, device=row.device) % len(row)
        return row[at].expand(n_rows, -1)

    def pruned(self, plan: str, inputs: str) -> TrialRun:
        """Prefill and decode under one of `plans`."""
        if (plan, inputs) not in self._runs:
            with apply(self.model, self.plans[plan], check=False) as handle:
                run = self.forward(self.inputs(inputs))
                self._runs[plan, inputs] = TrialRun(run.logits, run.cache, handle.last)
        return self._runs[plan, inputs]

    def unpruned(self, inputs: str) -> TrialRun:
        """Prefill and decode of the unpruned model."""
        if ("", inputs) not in self._runs:
            self._runs["", inputs] = self.forward(self.inputs(inputs))
        return self._runs["", inputs]

    def empty_cache(self) -> Cache:
        """A cache as `generate` makes it, because not every model makes one itself."""
        return DynamicCache(config=self.model.config)

    def forward(
        self, inputs: Inputs, n_steps: int = N_STEPS, cache: Cache | None = None
    ) -> TrialRun:
        """Prefill and decode steps whose input tokens are `words`, in an empty cache."""
        cache = self.empty_cache() if cache is None else cache
        out = self.model(
            **inputs,
            position_ids=self.case.numbered(inputs),
            **{compat.CACHE_NAME: cache},
            use_cache=True,
        )
        logits = [out.logits]
        so_far = inputs
        for step in range(n_steps):
            word = self.words(len(inputs["input_ids"]), 1, step)
            so_far = self.case.extended(so_far, word)
            logits.append(self.step(word, so_far, cache))
        return TrialRun(torch.cat(logits, dim=1), cache, None)

    def step(self, tokens: Tensor, so_far: Inputs, cache: Cache) -> Tensor:
        """Logits of text tokens [B, n], which are the end of ``so_far``, on a kept cache."""
        return self.model(
            input_ids=tokens,
            attention_mask=so_far["attention_mask"],
            position_ids=self.case.numbered(so_far)[..., -tokens.shape[1] :],
            **{compat.CACHE_NAME: cache},
            use_cache=True,
        ).logits

    def reference(
        self,
        inputs: Inputs,
        report: Report | None,
        n_steps: int = N_STEPS,
        plan: Plan = UNCUT,
    ) -> Tensor:
        """[B, S + n_steps, V] of the model with the dropped tokens hidden, words appended.

        Args:
            inputs: The prompts.
            report: What the plan kept of them; None: everything.
            n_steps: Number of words.
            plan: The plan, which may merge the dropped tokens into others.
        """
        self.maskable()
        whole = self.case.extended(inputs, self.words(len(inputs["input_ids"]), n_steps))
        cuts = report.cuts if report else ()
        visual = self.visual(whole)
        hidden = hidden_tokens(visual, cuts, self.n_layers)
        return self.masked(whole, hidden, mergings(visual, report, plan))

    def masked(self, inputs: Inputs, hidden: Tensor, merging: Sequence[Merging] = ()) -> Tensor:
        """[B, S, V] of the model with tokens [L, B, S] hidden, without a cache."""
        with hiding(self.model, hidden, merging):
            position_ids = self.case.numbered(inputs)
            return self.model(**inputs, position_ids=position_ids, use_cache=False).logits

    def maskable(self) -> None:
        """Raises Inapplicable for models in which a mask cannot replace a dropped token."""
        config = self.model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ()
        odd = sorted({kind for kind in kinds if "attention" not in kind or "linear" in kind})
        if odd:
            raise Inapplicable(
                f"no mask can hide a token from {' and '.join(odd)} layers, which read the "
                "sequence itself"
            )
        self.repeatable()

    def repeatable(self) -> None:
        """Raises Inapplicable if a prompt and its answer in one pass differ from one by one."""
        layers = flash_layers(self.family, self.model).values()
        kernel = self.model.config.get_text_config(decoder=True)._attn_implementation
        if is_flash(kernel) and not all(layer.causal for layer in layers):
            raise Inapplicable(
                "a flash kernel lets the prompt see the answer if both run at once, with or "
                "without a plan"
            )

    @property
    def allowed(self) -> float:
        """Largest difference of logits that is attributed to rounding.

        Raises:
            Inapplicable: Rounding changes the logits so much that a comparison shows nothing.
        """
        if self._rounding > _COARSE * self._std:
            raise Inapplicable(
                f"rounding alone may move logits by {self._rounding:.1e} and their standard "
                f"deviation is {self._std:.1e}, so equality shows nothing"
            )
        return self._rounding

    @property
    def is_exact(self) -> bool:
        """Whether rounding is too small to change the selection of a token or a word."""
        weight = next(self.model.parameters())
        precise = weight.dtype == torch.float64 or (
            weight.dtype == torch.float32 and not rounding.is_coarse(weight.device)
        )
        return precise and self._rounding <= _FINE * self._std

    @cached_property
    def _rounding(self) -> float:
        def run() -> Tensor:
            return self.at_text(self.left, self.forward(self.left, n_steps=0).logits)

        return rounding.allowed(self.model, run, self._reordered)

    def _reordered(self) -> float:
        """What another order of sums changes: in the rows alone, and beside a flash kernel.

        The kernel that stands in for a flash kernel in the reference rounds at other places.
        """
        found = self.unpruned_noise("left")
        if is_flash(self.model.config.get_text_config(decoder=True)._attn_implementation):
            with suppress(Inapplicable):  # the model has no reference
                runs = self.unpruned("left").logits, self.reference(self.left, None)
                found = max(found, distance(*(self.at_text(self.left, run) for run in runs)))
        return found

    @cached_property
    def _std(self) -> float:
        return float(self.at_text(self.left, self.unpruned("left").logits).float().std())

    def unpruned_noise(self, side: str, n_steps: int = N_STEPS) -> float:
        """Largest difference between the unpruned model's rows in a batch and alone."""
        together = self.unpruned(side)
        return max(
            self.row_difference(row, side, together, self.unpruned(str(row)), n_steps)
            for row in range(len(self.case.rows))
        )

    def row_difference(
        self, row: int, side: str, together: TrialRun, alone: TrialRun, n_steps: int = N_STEPS
    ) -> float:
        """Difference of a row in a batch from the row alone, at text and first decode steps."""
        real = _with_steps(self.inputs(side)["attention_mask"][row].bool(), n_steps)
        text = _with_steps(self.text(self.case.rows[row])[0], n_steps)
        return distance(
            together.logits[row, : len(real)][real][text], alone.logits[0, : len(text)][text]
        )

    def at_text(self, inputs: Inputs, logits: Tensor) -> Tensor:
        """[n, V] rows of logits at text of the prompts and at all steps after them."""
        text = self.text(inputs)
        return logits[_with_steps(text, logits.shape[1] - text.shape[1])]

    def require_close(self, found: float, what: str) -> float:
        """The difference itself, if it is within rounding; otherwise raises Broken."""
        if not found <= self.allowed:  # also if it is not a number
            raise Broken(f"{what}: largest difference {found:.1e} (allowed {self.allowed:.1e})")
        return found

    def within(self, found: Sequence[float]) -> str:
        """Text that states the largest of several differences that are within rounding."""
        return f"largest difference {max(found):.1e} (allowed {self.allowed:.1e})"

    def copied(self) -> PreTrainedModel:
        """A second model with the same weights; raises Inapplicable if the model is large."""
        n_bytes = sum(weight.nbytes for weight in self.model.parameters())
        if n_bytes > _LARGE:
            raise Inapplicable(f"a second copy of the model would take {n_bytes / 2**30:.0f} GiB")
        return copy.deepcopy(self.model)

    def generate(self, inputs: Inputs, n_tokens: int = N_TOKENS, **options: Any) -> Any:
        """What `generate` gives, greedily unless told otherwise, without special tokens."""
        fixed: Mapping[str, Any] = {
            "max_new_tokens": n_tokens,
            "min_new_tokens": n_tokens,
            "do_sample": False,
            "repetition_penalty": 1.0,
            "suppress_tokens": special_ids(self.model),
            "pad_token_id": self.case.pad_id,
        }
        return self.model.generate(**inputs, **{**fixed, **options})


def special_ids(model: PreTrainedModel) -> list[int]:
    """Token ids with a meaning in the model's config, which are therefore no words."""

    def ids(config: Mapping[str, Any]) -> Iterator[int]:
        for key, value in config.items():
            if isinstance(value, Mapping):
                yield from ids(value)
            elif "token_id" in str(key) or "token_index" in str(key):
                yield from value if isinstance(value, list | tuple) else [value]

    n_words = model.config.get_text_config(decoder=True).vocab_size
    found = {*ids(model.config.to_dict()), *ids(model.generation_config.to_dict())}
    return sorted(at for at in found if isinstance(at, int) and 0 <= at < n_words)


def _spread(layers: Sequence[int]) -> tuple[int, int, int]:
    """Three layers at a quarter, half and three quarters of at least three."""
    n = len(layers)
    one = min(n // 4, n - 3)
    two = min(max(n // 2, one + 1), n - 2)
    return layers[one], layers[two], layers[max(3 * n // 4, two + 1)]


def _with_steps(mask: Tensor, n_steps: int) -> Tensor:
    """The mask [..., S], extended by True for the decode steps after it."""
    return torch.nn.functional.pad(mask, (0, n_steps), value=True)
