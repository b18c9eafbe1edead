"""Every law on a tiny model of every architecture, and proof that the laws can fail."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import flash
import pytest
import tiny
import torch
from _pytest.mark import ParameterSet
from releases import skip_elsewhere

from tpcal.plans.executor import (
    cache,
    calls,
    choice_sets,
    decoder_inputs,
    executor,
    gather,
    handle,
    kv_columns,
    merging,
    passes,
)
from tpcal.plans.executor.choice_sets import ChoiceSets
from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families import find
from tpcal.plans.laws import LAWS, Case, run
from tpcal.plans.laws.trial import Trial
from tpcal.plans.laws.verdict import Verdict
from tpcal.plans.plan_records import MEAN, PROPORTIONAL, Cut, Plan
from tpcal.plans.selectors.random import Random

NAMES = [law.name for law in LAWS]
LAW = dict(zip(NAMES, LAWS, strict=True))
CASES = [(name, attn) for name in tiny.names() for attn in ("sdpa", "eager")]
VARIED = {
    "gemma3": "sliding windows and blocks of an image that see each other",
    "gemma4_shared": "layers that share keys and values",
    "idefics3": "a picture in several views",
    "kimi_k25": "compressed keys and values",
    "llama4": "chunked attention and layers without positions",
    "llava": "the plainest decoder",
    "paligemma": "a prefix that sees itself whole",
    "qwen2_5_vl": "positions in three dimensions",
    "qwen3_vl": "states of the tower added to layers",
}
"""Architectures that differ in structure, and in what: the usual run tries nearly every law on them
with sdpa."""
ON_TWO_ONLY = {"failed", "half precision", "image turn", "samples", "static cache", "threads"}
"""Laws that the usual run tries on the two architectures of `FAST` only: they are about calls and
caches, which the others share."""
EVERYWHERE = "reference"
"""The law that the usual run tries on every architecture with sdpa, and on those of `FAST` with
eager attention; `make test-all` tries all laws on all with both kernels."""
FAST = {("llava", "sdpa"), ("qwen2_5_vl", "sdpa")}
"""Cases of which `make test-fast` tries every law."""
RELEASES = {
    (name, "sdpa") for name in ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4_shared")
}
RELEASE_LAWS = {"reference", "rows alone", "kv cache", "text turn", "crop", "beams", "drafts"}
"""What `make test-versions` tries with every release of transformers."""
FLASH = {name: ("reference", "rows alone") for name in VARIED if name != "llama4"}
"""Laws that the usual run tries with the reference of flash attention, and the nightly run all;
transformers refuses it for Llama 4, whose chunks it cannot run."""
FLASH["llava"] = ("reference", "rows alone", "kv cache", "text turn", "crop", "beams", "drafts")
FLEX = {"gemma4_shared": ("reference",)}
"""Laws that the usual run tries with flex attention, not compiled: windows, images that see each
other, full layers and shared keys."""
MERGED = dict.fromkeys(VARIED, ("reference", "text turn"))
"""Laws that the usual run tries while tokens are merged and counted; the nightly run tries all."""
MERGED["llava"] = (
    *("reference", "recompute", "rows alone", "kv cache", "same choice", "text turn"),
    *("image turn", "crop", "static cache", "greedy", "beams", "drafts"),
)
MERGED_WITH_FLASH = {
    "llava": ("reference", "rows alone", "kv cache", "text turn", "crop"),
    "gemma3": ("reference", "rows alone"),
    "gemma4_shared": ("reference", "rows alone"),
}
"""The same with the reference of flash attention, whose layers then use another kernel."""
NO_FLEX = ("kimi_k25", "qwen2_5_vl", "qwen3_vl")
"""Architectures for which transformers refuses it."""
FLEX_AT_NIGHT = {name: tuple(NAMES) for name in VARIED if name not in NO_FLEX}
"""Laws that the nightly run tries with it: every one takes ten seconds and more."""
_AT_ONCE = ("reference", "recompute", "drop all", "text turn", "image turn", "crop", "greedy")
NOT_WITH_FLASH: dict[tuple[str, str], str] = {
    **{(name, "static cache"): "goes with the kernels sdpa and eager" for name in FLASH},
    **{
        ("paligemma", law): "lets the prompt see the answer"
        for law in (*_AT_ONCE, "samples", "drafts")
    },
    # Flash kernels do not let an image see itself in both directions, in one pass or in turns.
    **{
        (f"gemma{n}", f"{kind} turn"): "without a plan it differs"
        for n in ("3", "4_shared")
        for kind in ("text", "image")
    },
}
"""(architecture, law): why the law says nothing about it with a flash kernel."""
INAPPLICABLE: dict[tuple[str, str], str] = {
    # Without a cache it does not lengthen moe_mm_token_type_ids.
    ("ernie4_5_vl_moe", "samples"): "cannot without a cache: IndexError",
    ("ernie4_5_vl_moe", "drafts"): "the unpruned model cannot: IndexError",
    # Image features are not repeated for beams and samples.
    ("llama4", "beams"): "the unpruned model cannot",
    ("llama4", "samples"): "the unpruned model cannot",
    ("llama4_tempered", "beams"): "the unpruned model cannot",
    ("llama4_tempered", "samples"): "the unpruned model cannot",
    # Its temperatures count the padding.
    ("llama4_tempered", "rows alone"): "the unpruned model's own left-padded rows differ",
    # A second prefix sees less of the first than one prefix does of itself.
    ("paligemma", "image turn"): "without a plan it differs",
    ("paligemma2", "image turn"): "without a plan it differs",
}
"""(architecture, law): why the law says nothing about it; everything else must hold."""
NOT_WITH_FLEX = INAPPLICABLE | {
    (name, "static cache"): "the unpruned model's own logits differ" for name in FLEX_AT_NIGHT
}
"""The same with flex attention."""


def tried(name: str, attn: str, law: str) -> ParameterSet:
    """The law on a model, marked by how often it is tried there."""
    varied, main = name in VARIED, law == EVERYWHERE or (name, law) in INAPPLICABLE
    if attn == "sdpa":
        usual = main or (varied and law not in ON_TWO_ONLY)
    else:
        usual = main and (name, "sdpa") in FAST
    if (name, attn) in FAST or (varied and (attn, law) == ("sdpa", EVERYWHERE)):
        scope = pytest.mark.fast
    elif usual:
        scope = pytest.mark.usual
    else:
        scope = pytest.mark.nightly
    releases = [pytest.mark.versions] if (name, attn) in RELEASES and law in RELEASE_LAWS else []
    return pytest.param(name, attn, law, marks=[scope, *releases])


@lru_cache(maxsize=1)  # the laws of a case follow each other
def trial(name: str, attn: str) -> Trial:
    return Trial(tiny.case(name, attn))


@lru_cache(maxsize=1)
def merged_trial(name: str, merge: str, attn: str = "sdpa") -> Trial:
    return Trial(tiny.case(name, attn), merge=merge)


@pytest.mark.parametrize(("name", "attn", "law"), [tried(*c, law) for c in CASES for law in NAMES])
def test_the_law_holds(name, attn, law):
    verdict = LAW[law].judge(trial(name, attn))
    if verdict.error is not None:
        raise verdict.error
    reason = INAPPLICABLE.get((name, law))
    if verdict.holds is None and "the unpruned model" in verdict.detail:
        skip_elsewhere(verdict.detail)
    require(verdict, reason)


def require(verdict: Verdict, reason: str | None) -> None:
    """The law holds, or says nothing about the model for this reason."""
    if reason is None:
        assert verdict.holds, verdict.detail
    else:
        assert verdict.holds is None, verdict.detail
        assert reason in verdict.detail


def usual_or_nightly(
    all_laws: Mapping[str, Sequence[str]], usual: Mapping[str, Sequence[str]]
) -> list[ParameterSet]:
    """Laws on architectures: those in ``usual`` in the usual run, the others at night."""

    def scope(name: str, law: str) -> pytest.MarkDecorator:
        return pytest.mark.usual if law in usual.get(name, ()) else pytest.mark.nightly

    pairs = [(name, law) for name, laws in all_laws.items() for law in laws]
    return [pytest.param(*pair, marks=scope(*pair)) for pair in pairs]


@pytest.mark.parametrize(("name", "law"), usual_or_nightly(dict.fromkeys(FLASH, NAMES), FLASH))
def test_the_law_holds_with_flash_attention(name, law):
    verdict = LAW[law].judge(trial(name, flash.NAME))
    require(verdict, NOT_WITH_FLASH.get((name, law)))


@pytest.mark.parametrize(("name", "law"), usual_or_nightly(dict.fromkeys(VARIED, NAMES), MERGED))
def test_the_law_holds_while_tokens_are_merged(name, law):
    verdict = LAW[law].judge(merged_trial(name, PROPORTIONAL))
    require(verdict, INAPPLICABLE.get((name, law)))


@pytest.mark.parametrize(
    ("name", "law"), usual_or_nightly(dict.fromkeys(FLASH, NAMES), MERGED_WITH_FLASH)
)
def test_the_law_holds_while_tokens_are_merged_with_flash_attention(name, law):
    verdict = LAW[law].judge(merged_trial(name, PROPORTIONAL, flash.NAME))
    require(verdict, NOT_WITH_FLASH.get((name, law)))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_kept_tokens_become_means(name):
    require(LAW[EVERYWHERE].judge(merged_trial(name, MEAN)), None)


@pytest.mark.nightly
def test_transformers_refuses_flash_attention_for_chunks():
    with pytest.raises(ValueError, match="cannot handle chunked attention"):
        trial("llama4", flash.NAME).unpruned("left")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch and transformers
@pytest.mark.parametrize(("name", "law"), usual_or_nightly(FLEX_AT_NIGHT, FLEX))
def test_the_law_holds_with_flex_attention(name, law):
    with torch.compiler.set_stance("force_eager"):  # the C++ compiler takes minutes
        verdict = LAW[law].judge(trial(name, "flex_attention"))
    require(verdict, NOT_WITH_FLEX.get((name, law)))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch and transformers
@pytest.mark.parametrize("name", FLEX_AT_NIGHT)
def test_tokens_are_merged_and_counted_with_flex_attention(name):
    with torch.compiler.set_stance("force_eager"):
        for law in ("reference", "text turn"):
            require(LAW[law].judge(merged_trial(name, PROPORTIONAL, "flex_attention")), None)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NO_FLEX)
def test_transformers_refuses_flex_attention_for_some(name):
    with pytest.raises(ValueError, match="does not support .*flex_attention"):
        tiny.case(name, "flex_attention")


def test_the_table_of_exceptions_names_what_exists():
    assert {name for name, _ in INAPPLICABLE} <= set(tiny.names())
    assert {law for _, law in INAPPLICABLE} <= set(NAMES)
    assert {*VARIED, *(name for name, _ in FAST)} <= set(tiny.names())
    assert {EVERYWHERE, *ON_TWO_ONLY} <= set(NAMES)
    assert {name for name, _ in RELEASES} <= set(tiny.names())
    assert set(NAMES) >= RELEASE_LAWS


def test_laws_have_names_and_sentences_of_their_own():
    assert len(set(NAMES)) == len({law.says for law in LAWS}) == len(LAWS)
    assert all(law.says.endswith(".") and len(law.says) < 100 for law in LAWS)


def test_a_prompt_after_another_joins_tokens_images_and_counts():
    def row(n, n_images, **changes):
        words = torch.arange(n)[None]
        pixels = torch.ones(n_images, 2, 2)
        counts = {"n_images": torch.tensor([n_images]), "tiles": pixels[None, :, 0]}
        row = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixels": pixels}
        return {**row, **counts, **changes}

    case = Case("joined", None, (), pad_id=9, per_row=frozenset({"n_images", "tiles"}))
    first = case.padded(row(2, 1), 3)
    joined = case.followed(first, row(2, 2, tiles=torch.ones(1, 2, 3)))
    assert joined["input_ids"].tolist() == [[9, 0, 1, 0, 1]]
    assert joined["attention_mask"].tolist() == [[0, 1, 1, 1, 1]]
    assert joined["pixels"].shape == (3, 2, 2)
    assert joined["n_images"].tolist() == [3]
    assert joined["tiles"].shape == (1, 3, 3)  # one prompt of three images, padded
    longer = case.extended(joined, torch.tensor([[7, 8]]))
    assert longer["input_ids"].tolist() == [[9, 0, 1, 0, 1, 7, 8]]
    assert longer["attention_mask"].sum() == 6


# Mutants: an executor with one fault, and the laws that must find it.


def _tables_of_the_first_tokens(patch):
    def value(self, given, survivors, length):
        if isinstance(given, tuple):
            return tuple(value(self, item, survivors, length) for item in given)
        moves = survivors.places is not None and getattr(given, "ndim", 0) > 1
        return given[:, : survivors.places.shape[1]] if moves else given

    patch.setattr(gather.Gatherer, "_value", value)


def _states_of_the_wrong_tokens(patch):
    take = gather.take_columns
    patch.setattr(
        gather,
        "take_columns",
        lambda states, columns: (
            take(states, (columns - 1).clamp(min=0)) if states.ndim == 3 else take(states, columns)
        ),
    )


def _mask_without_its_last_key(patch):
    made = gather.layer_mask

    def mask(given, survivors, held, length):
        found = made(given, survivors, held, length)
        if found is not None and survivors.places is not None:
            found = found.clone()
            found[..., -1:, 0] = False if found.dtype == torch.bool else -1e9
        return found

    patch.setattr(gather, "layer_mask", mask)


def _filler_that_is_seen(patch):
    patch.setattr(kv_columns.Held, "mask", lambda self: None)


def _cache_that_reports_what_it_holds(patch):
    patch.setattr(cache.PrunedKV, "get_seq_length", lambda self: self.held.n_held)


def _crop_that_keeps_the_count(patch):
    def crop(self, n):
        self.keys, self.values = self.keys[..., :n, :], self.values[..., :n, :]

    patch.setattr(cache.PrunedKV, "crop", crop)


def _bytes_of_a_buffer_twice_as_long(patch):
    hold = cache.PrunedKV._hold

    def twice(self, held, keys, values):
        double = torch.cat([keys, keys], dim=-2)
        hold(self, held, double[..., : keys.shape[-2], :], values)

    patch.setattr(cache.PrunedKV, "_hold", twice)


def _one_token_more_than_planned(patch):
    planned = passes.n_keep
    patch.setattr(passes, "n_keep", lambda keep, n, *given: min(n, 1 + planned(keep, n, *given)))


def _choice_that_changes(patch):
    score = Random.score
    patch.setattr(Random, "score", lambda self, tokens: torch.rand(score(self, tokens).shape))


def _choice_that_depends_on_the_batch(patch):
    score = Random.score

    def by_row(self, tokens):
        scores = score(self, tokens)
        turn = torch.arange(len(scores))[:, None] + torch.arange(scores.shape[1])
        return scores.gather(1, turn % scores.shape[1])

    patch.setattr(Random, "score", by_row)


def _images_that_share_a_count(patch):
    of = ChoiceSets.of
    patch.setattr(ChoiceSets, "of", lambda prompt, scope: of(prompt, "prompt"))


def _ranks_that_go_on_in_the_next_image(patch):
    numbered = choice_sets.Apart._numbered

    def going_on(self, values, first=0):
        return numbered(self, values, 0 if first is self._rank else first)

    patch.setattr(choice_sets.Apart, "_numbered", going_on)


def _tokens_of_the_next_image(patch):
    tokens = choice_sets.Apart.tokens

    def shifted(self, of_prompts):
        right, own = tokens(self, of_prompts), self._column
        self._column = (own + 1).clamp(max=self._shape[1] - 1)
        hidden, self._column = tokens(self, of_prompts).hidden, own
        return replace(right, hidden=hidden)

    patch.setattr(choice_sets.Apart, "tokens", shifted)


def _choice_put_back_into_another_image(patch):
    together = choice_sets.Apart.together
    patch.setattr(
        choice_sets.Apart, "together", lambda self, given: together(self, given.roll(1, dims=0))
    )


def _grid_of_half_the_height(patch):
    boxes = ViewGrid.boxes
    patch.setattr(ViewGrid, "boxes", lambda self: boxes(self) * torch.tensor([1, 0.5, 1, 0.5]))


def _handle_that_stays(patch):
    patch.setattr(handle.Handle, "remove", lambda self: None)


def _a_hook_left_behind(patch):
    attach = executor.Executor._attach

    def and_one(self, *given):
        attach(self, *given)
        self._model.register_forward_hook(lambda *given: None)

    patch.setattr(executor.Executor, "_attach", and_one)


def _state_kept_after_an_error(patch):
    patch.setattr(
        passes.ForwardPass, "leaves_alone", lambda self, layer, arguments: self.length > 1e9
    )
    kept, make = [], executor.Executor._before_decoder

    def the_last_one(self, kwargs):
        return kept.pop() if kept else make(self, kwargs)

    patch.setattr(executor.Executor, "_before_decoder", the_last_one)
    clean = executor.Executor._clean

    def unless_failed(self, call):
        if sys.exc_info()[0] is not None:
            kept.append(call)
        return clean(self, call)

    patch.setattr(executor.Executor, "_clean", unless_failed)


def _threads_that_share_a_pass(patch):
    class Shared:
        value = None

        def get(self):
            return self.value

        def set(self, value):
            self.value = value

    shared = Shared()
    patch.setattr(calls, "INNERMOST", shared)
    patch.setattr(executor, "INNERMOST", shared)


def _drafts_that_ask(patch):
    patch.setattr(decoder_inputs, "n_drafts", lambda inputs, n_tokens: 0)


MUTANTS = {
    _tables_of_the_first_tokens: ["reference", "positions", "drop all"],
    _states_of_the_wrong_tokens: ["reference"],
    _mask_without_its_last_key: ["reference"],
    _filler_that_is_seen: ["reference", "rows alone"],
    _cache_that_reports_what_it_holds: ["text turn", "image turn"],
    _crop_that_keeps_the_count: ["crop"],
    _bytes_of_a_buffer_twice_as_long: ["kv cache"],
    _one_token_more_than_planned: ["kv cache", "same choice"],
    _choice_that_changes: ["same choice"],
    _choice_that_depends_on_the_batch: ["rows alone"],
    _images_that_share_a_count: ["same choice", "images alone"],
    _ranks_that_go_on_in_the_next_image: ["images alone"],
    _tokens_of_the_next_image: ["images alone"],
    _choice_put_back_into_another_image: ["images alone"],
    _grid_of_half_the_height: ["patches"],
    _handle_that_stays: ["removed"],
    _a_hook_left_behind: ["removed", "failed"],
    _state_kept_after_an_error: ["failed"],
    _threads_that_share_a_pass: ["threads"],
    _drafts_that_ask: ["drafts"],
}

CRASHES = {_crop_that_keeps_the_count, _state_kept_after_an_error, _threads_that_share_a_pass}
"""Those that the model itself trips over; others must be found by what the law compares."""


@pytest.mark.parametrize(
    ("mutant", "law"), [(m, law) for m, laws in MUTANTS.items() for law in laws]
)
def test_a_fault_breaks_the_law(mutant, law, monkeypatch):
    case = tiny.case("llava", "sdpa")
    case = Case("faulty", Trial(case).copied(), case.rows)
    mutant(monkeypatch)
    (verdict,) = run(case, [LAW[law]])
    assert verdict.holds is False, verdict.detail
    assert verdict.error is None or mutant in CRASHES, verdict.detail


# Mutants of merging, tried with plans that merge tokens and count them.


def _without_sizes(held):
    return kv_columns.Held(held.index, held.valid, held.n_seen, held.n_tail)


def _sizes_that_attention_does_not_count(patch):
    patch.setattr(passes.ForwardPass, "_log_sizes", lambda self, dtype: None)


def _sizes_that_a_second_cut_forgets(patch):
    patch.setattr(passes, "_sizes", lambda survivors, columns, valid: valid.float())


def _tokens_merged_into_the_next_kept_one(patch):
    most_alike = merging._most_alike

    def shifted(tokens, stays):
        into = most_alike(tokens, stays)
        for row, kept in enumerate(stays):
            own = kept.nonzero()[:, 0]
            gone = ~kept & (into[row] >= 0)
            rank = torch.searchsorted(own, into[row][gone])
            into[row][gone] = own[(rank + 1) % len(own)]
        return into

    patch.setattr(merging, "_most_alike", shifted)


def _states_that_stay_as_they_are(patch):
    made = merging.merged
    patch.setattr(merging, "merged", lambda t, *given: (t.hidden, made(t, *given)[1]))


def _means_without_weights(patch):
    mean = merging.mean_states
    patch.setattr(merging, "mean_states", lambda *given: mean(*given[:3]))


def _sizes_of_another_image(patch):
    together = choice_sets.Apart.together

    def rolled(self, given):
        # Of what is put back, only sizes are numbers without a further dimension.
        sizes = given.ndim == 2 and given.is_floating_point()
        return together(self, given.roll(1, dims=0) if sizes else given)

    patch.setattr(choice_sets.Apart, "together", rolled)


def _sizes_that_depend_on_the_batch(patch):
    made = merging.merged

    def by_row(*given):
        states, sizes = made(*given)
        return states, sizes * torch.arange(1, len(sizes) + 1)[:, None]

    patch.setattr(merging, "merged", by_row)


def _sizes_lost_by(name):
    def mutant(patch):
        right = getattr(kv_columns.Held, name)

        def lost(self, *given):
            found = right(self, *given)
            if isinstance(found, tuple):
                return _without_sizes(found[0]), *found[1:]
            return _without_sizes(found)

        patch.setattr(kv_columns.Held, name, lost)

    mutant.__name__ = f"_sizes_lost_by_{name}"
    return mutant


MUTANTS_OF_MERGING = {
    _sizes_that_attention_does_not_count: ["reference", "text turn"],
    _sizes_that_a_second_cut_forgets: ["reference"],
    _tokens_merged_into_the_next_kept_one: ["reference"],
    _states_that_stay_as_they_are: ["reference"],
    _means_without_weights: ["reference"],
    _sizes_of_another_image: ["reference"],
    _sizes_that_depend_on_the_batch: ["rows alone"],
    _sizes_lost_by("extended"): ["reference", "recompute", "text turn"],
    _sizes_lost_by("selected"): ["beams"],
    _sizes_lost_by("cropped"): ["crop"],
}
WINDOWS = "gemma3"
MUTANTS_OF_WINDOWS = {
    _sizes_lost_by("within"): ["reference", "text turn"],
    _sizes_lost_by("filling"): ["static cache"],
}
"""What goes wrong in a layer with a sliding window only."""


@pytest.mark.parametrize(
    ("name", "mutant", "law"),
    [
        (name, mutant, law)
        for name, mutants in (("llava", MUTANTS_OF_MERGING), (WINDOWS, MUTANTS_OF_WINDOWS))
        for mutant, laws in mutants.items()
        for law in laws
    ],
)
def test_a_fault_of_merging_breaks_the_law(name, mutant, law, monkeypatch):
    case = tiny.case(name, "sdpa")
    case = Case("faulty", Trial(case).copied(), case.rows)
    mutant(monkeypatch)
    verdict = LAW[law].judge(Trial(case, merge=PROPORTIONAL))
    assert verdict.holds is False, verdict.detail
    assert verdict.error is None, verdict.detail


def test_a_plan_without_effect_shows_nothing():
    case = tiny.case("llava", "sdpa")
    model = Trial(case).copied()
    for layer in find(model).layers(model):
        layer.self_attn.o_proj.weight.data.zero_()  # text never sees the image
    (verdict,) = run(Case("deaf", model, case.rows), [LAW["reference"]])
    assert verdict.holds is False
    assert "equality shows nothing" in verdict.detail


def test_a_plan_of_ones_own_is_tried_too():
    case = tiny.case("llava", "sdpa")
    plan = Plan((Cut(1, 0.75, "grid"),))
    (verdict,) = run(case, [LAW["reference"]], plan)
    assert verdict.holds
    assert verdict.detail.startswith("4 plans")


def test_a_model_that_cannot_be_cut_breaks_the_laws_and_says_why():
    case = tiny.case("llava", "sdpa")
    model = Trial(case).copied()
    model.config.text_config._attn_implementation_internal = "paged|eager"
    verdicts = list(run(Case("paged", model, case.rows), [LAW["reference"], LAW["crop"]]))
    assert [v.holds for v in verdicts] == [False, False]
    assert all("must not be paged" in v.detail for v in verdicts)
