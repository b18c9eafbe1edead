"""The plan file: round trips, every rule, and files that mean harm."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tpcal.plans import plan_file, plan_records
from tpcal.plans.errors import PlanError, UsageError
from tpcal.plans.plan_file import (
    SHORT_PRESETS,
    dump_plan,
    load_plan,
    load_preset,
    parse_plan,
    presets,
    save_plan,
)
from tpcal.plans.plan_records import (
    MEAN,
    MERGES,
    PROPORTIONAL,
    Condition,
    Cost,
    Cut,
    Loss,
    ModelIdentity,
    Plan,
    ReachedBudget,
    n_keep,
)

FULL = Plan(
    name="light",
    model=ModelIdentity(
        8, "embedded", None, "llava", "LlavaForConditionalGeneration", "sha256:00"
    ),
    budget=ReachedBudget(0.22, 0.2196),
    cuts=(
        Cut(1, 0.5, "balanced", {"attention_share": 0.3}),
        Cut(4, 0.0833, "attention"),
        Cut(6, 0.0, condition=Condition(0.1)),
    ),
    loss=Loss({"reading": 1e-05}, {"reading": 0.02}, {"reading": 0.0}),
    cost=Cost(144, 12, (72, 12, 12), 0.2196, 1.5e9, 6e9, 10_000, 40_000, 1.25, 4.5),
    provenance={"tpcal": "0.1.0", "seed": 0, "libraries": {"torch": "2.13.0"}},
)


@pytest.mark.parametrize(
    ("keep", "n_tokens", "count"),
    [(0.5, 5, 3), (0.0, 576, 0), (1.0, 576, 576), (0.001, 576, 1), (0.3, 0, 0), (0.0833, 576, 48)],
)
def test_keep_becomes_a_count_in_one_way(keep: float, n_tokens: int, count: int) -> None:
    assert n_keep(keep, n_tokens) == count


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    save_plan(FULL, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == FULL


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert dump_plan(FULL) == dump_plan(parse_plan(dump_plan(FULL)))


def test_digests_of_seen_samples_stand_below_what_a_person_reads() -> None:
    facts = {"profile": "sha256:0", "data": {"data": "embedded", "seen": "AAAAAAAA" * 500}}
    for provenance in (facts, {"data": {"seen": "AAAAAAAA"}}):
        plan = replace(FULL, provenance=provenance)
        *read, seen, last = dump_plan(plan).splitlines()
        assert seen == f"seen: {provenance['data']['seen']}"
        assert last.startswith("digest: ")
        assert not any("seen" in line for line in read)
        assert parse_plan(dump_plan(plan)) == plan


def test_a_file_with_seen_samples_in_its_provenance_loads_and_its_digest_fits() -> None:
    facts = {"data": {"data": "embedded", "seen": "AAAAAAAA"}}
    plan = replace(FULL, provenance=facts)
    data = yaml.safe_load(dump_plan(plan))
    data["provenance"]["data"]["seen"] = data.pop("seen")
    assert parse_plan(yaml.safe_dump(data)) == plan
    data["provenance"]["data"]["seen"] = "AAAAAAAB"
    with pytest.raises(PlanError, match="digest must match the content"):
        parse_plan(yaml.safe_dump(data))


def test_seen_samples_must_be_text_and_have_a_place() -> None:
    with pytest.raises(PlanError, match="seen must be text"):
        parse_plan("schema: 1\nseen: 5")
    with pytest.raises(PlanError, match=r"provenance\.data must be a mapping where seen is given"):
        parse_plan("schema: 1\nprovenance: {data: text}\nseen: AAAAAAAA")


def test_cuts_stand_on_one_line_each() -> None:
    lines = dump_plan(FULL).splitlines()
    assert "- {layer: 1, keep: 0.5, selector: balanced, params: {attention_share: 0.3}}" in lines


def test_counts_never_rise_and_conditions_count_as_not_firing() -> None:
    assert FULL.counts(144) == (72, 12, 12)
    assert FULL.schedule(144, 8) == [144, 72, 72, 72, 12, 12, 12, 12]


@pytest.mark.parametrize(
    ("keep", "n_tokens", "count"),
    [
        (0.5, 144, 80),
        (0.1, 144, 16),
        (0.01, 144, 16),
        (0.0, 144, 0),
        (0.95, 144, 144),
        (0.9, 150, 144),
        (0.5, 9, 9),
    ],
)
def test_counts_go_up_to_a_multiple_where_the_plan_says_so(
    keep: float, n_tokens: int, count: int
) -> None:
    assert n_keep(keep, n_tokens, 16) == count


def test_a_rounded_plan_counts_its_rounded_tokens() -> None:
    plan = parse_plan(
        "schema: 1\nround_to: 32\ncuts:\n- {layer: 1, keep: 0.5, selector: grid}\n"
        "- {layer: 3, keep: 0.45, selector: grid}\n- {layer: 4, keep: 0}"
    )
    assert plan.round_to == 32
    assert plan.counts(144) == (96, 96, 0)  # 72 and 65 tokens before rounding
    assert plan.counts(20) == (20, 20, 0)
    assert parse_plan(dump_plan(plan)) == plan


def test_a_plan_without_a_scope_chooses_among_the_whole_prompt_and_keeps_its_digest() -> None:
    old = Plan((Cut(2, 0.5, "grid"), Cut(5, 0.0)), name="old", round_to=16, model=ModelIdentity(8))
    made_before = "sha256:cdbb39c8be6a9bd0bca93ea13a67760e2291783f67cda4a614e3fec22e90e399"
    assert old.scope == "prompt"
    assert old.digest == made_before
    assert "scope" not in dump_plan(old)
    said = parse_plan("schema: 1\nscope: prompt\ncuts: [{layer: 5, keep: 0}]")
    assert said == parse_plan("schema: 1\ncuts: [{layer: 5, keep: 0}]")


def test_the_scope_of_images_survives_its_file_and_is_part_of_the_digest() -> None:
    plan = replace(FULL, scope="image")
    assert "\nscope: image\n" in dump_plan(plan)
    assert parse_plan(dump_plan(plan)) == plan
    assert plan.digest != FULL.digest
    assert plan.scaled(16).scope == "image"


def test_a_plan_that_drops_tokens_has_the_digest_of_earlier_versions() -> None:
    plan = replace(FULL, merge=None)
    assert plan.digest == FULL.digest
    assert "merge" not in dump_plan(plan)
    said = parse_plan("schema: 1\nmerge: null\ncuts: [{layer: 5, keep: 0}]")
    assert said == parse_plan("schema: 1\ncuts: [{layer: 5, keep: 0}]")


@pytest.mark.parametrize("merge", MERGES)
def test_merging_survives_the_file_and_is_part_of_the_digest(merge: str) -> None:
    plan = replace(FULL, merge=merge)
    assert f"\nmerge: {merge}\n" in dump_plan(plan)
    assert parse_plan(dump_plan(plan)) == plan
    assert len({FULL.digest, *(replace(FULL, merge=other).digest for other in MERGES)}) == 3
    assert plan.scaled(16).merge == merge
    assert plan.counts(144) == FULL.counts(144)


def test_what_a_plan_does_is_all_but_where_it_comes_from() -> None:
    plan = replace(FULL, round_to=16, scope="image", merge=PROPORTIONAL)
    acts = Plan(FULL.cuts, round_to=16, scope="image", merge=PROPORTIONAL)
    assert plan.acts == acts == acts.acts
    assert replace(plan, merge=MEAN).acts != acts


def test_choices_are_named_where_they_are_not_those_of_earlier_versions() -> None:
    assert Plan().choices == {}
    assert Plan(scope="image").choices == {"scope": "image"}
    assert Plan(merge=MEAN).choices == {"merge": "mean"}
    both = Plan(scope="image", merge=PROPORTIONAL)
    assert both.choices == {"scope": "image", "merge": "proportional"}


def test_counts_of_several_images_are_sums_over_images_in_their_scope() -> None:
    cuts = (Cut(1, 0.5, "grid"), Cut(3, 0.1, "grid"), Cut(4, 0.0))
    by_image, by_prompt = Plan(cuts, scope="image"), Plan(cuts)
    sizes = (9, 4, 1)
    assert by_image.counts(sizes) == (5 + 2 + 1, 1 + 1 + 1, 0)
    assert by_prompt.counts(sizes) == by_prompt.counts(14) == (7, 1, 0)
    assert by_image.schedule(sizes, 5) == [14, 8, 8, 3, 0]
    assert by_image.counts(9) == by_prompt.counts(9) == by_image.counts([9])
    assert by_image.counts(()) == by_prompt.counts(()) == (0, 0, 0)
    rounded = Plan(cuts, scope="image", round_to=4)
    assert rounded.counts(sizes) == (8 + 4 + 1, 4 + 4 + 1, 0)


def test_a_changed_plan_is_refused_until_its_digest_is_deleted() -> None:
    text = dump_plan(FULL).replace("keep: 0.5", "keep: 0.4")
    with pytest.raises(PlanError, match="digest must match the content.*Delete the digest line"):
        parse_plan(text)
    without = "\n".join(line for line in text.splitlines() if not line.startswith("digest"))
    assert parse_plan(without).cuts[0].keep == 0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: 2\ncuts: []", "schema must be 1 .*; got 2"),
        ("schema: true\ncuts: []", "schema must be 1 .*; got True"),
        ("schema: 1\nbudget: {target: null, reached: 0.1}", "budget.target must be given"),
        ("schema: 1\nmodel: {n_layers: null}", "model.n_layers must be given"),
        ("schema: 1\nprovenance: by hand", "provenance must be a mapping; got 'by hand'"),
        ("cuts: []", "schema must be 1 .*; got None"),
        ("[1]", "the plan must be a mapping; got"),
        ("schema: 1\ncuts: 3", "cuts must be a list of at most 1000 cuts; got 3"),
        ("schema: 1\nfoo: 1", "the plan keys must be among schema, cuts.*; got 'foo'"),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 1.5, selector: grid}]",
            r"cuts\[0\].keep must be in \[0, 1\]; got 1.5",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: .nan, selector: grid}]",
            r"cuts\[0\].keep must be a number; got nan",
        ),
        (
            "schema: 1\ncuts: [{layer: -1, keep: 1, selector: grid}]",
            r"cuts\[0\].layer must be at least 0; got -1",
        ),
        (
            "schema: 1\ncuts: [{layer: 1.5, keep: 1, selector: grid}]",
            r"cuts\[0\].layer must be an integer; got 1.5",
        ),
        (
            "schema: 1\ncuts: [{layer: yes, keep: 1, selector: grid}]",
            r"cuts\[0\].layer must be an integer; got True",
        ),
        ("schema: 1\nscope: row\ncuts: []", "scope must be one of image, prompt; got 'row'"),
        ("schema: 1\nscope: [image]\ncuts: []", "scope must be one of image, prompt; got"),
        ("schema: 1\nmerge: sum\ncuts: []", "merge must be one of mean, proportional; got 'sum'"),
        ("schema: 1\nmerge: [mean]\ncuts: []", "merge must be one of mean, proportional; got"),
        ("schema: 1\nmerge: yes\ncuts: []", "merge must be one of mean, proportional; got True"),
        ("schema: 1\nround_to: 0\ncuts: []", "round_to must be an integer of at least 1; got 0"),
        (
            "schema: 1\nround_to: yes\ncuts: []",
            "round_to must be an integer of at least 1; got True",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 0.5}]",
            r"cuts\[0\].selector must be given where keep is above 0",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 0.5, selector: nrom}]",
            r"no selector is called 'nrom'. Known: attention",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 0, selector: grid}]",
            r"cuts\[0\].selector must be left out where keep is 0",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 0}, {layer: 1, keep: 0}]",
            r"cuts\[1\].layer must be above the layer of the cut before it \(1\); got 1",
        ),
        (
            "schema: 1\ncuts: [{layer: 1, keep: 0}, {layer: 2, keep: 0.5, selector: grid}]",
            r"cuts\[1\].keep must not rise above .* \(0\); got 0.5",
        ),
        (
            "schema: 1\nmodel: {n_layers: 4}\ncuts: [{layer: 4, keep: 0}]",
            r"cuts\[0\].layer must be below the model's 4 layers; got 4",
        ),
        ("schema: 1\nmodel: {name: x}", "model.n_layers must be given"),
        ("schema: 1\nbudget: {target: 0.2}", "budget.reached must be given"),
        (
            "schema: 1\nbudget: {target: 2, reached: 0.1}",
            r"budget.target must be in \[0, 1\]; got 2",
        ),
        (
            "schema: 1\ncuts: [{layer: 0, keep: 0, condition: {text_to_visual_below: 0.1}}]",
            "must be at least 1 for a cut with a condition",
        ),
        ("schema: 1\nprovenance: {time: 2026-01-01}", "provenance.time must be text"),
    ],
)
def test_every_broken_rule_is_named(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


def test_all_problems_are_reported_at_once() -> None:
    text = "schema: 1\nfoo: 1\ncuts: [{layer: -1, keep: 2, selector: grid}, {layer: 3, keep: 0.5}]"
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "bad.yaml")
    assert len(caught.value.problems) == 4
    assert all(line.startswith("bad.yaml: ") for line in str(caught.value).splitlines())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.system [true]",
            "must be plain YAML; could not determine a con",
        ),
        ("a: &x [1]\nb: [*x, *x]", "line 2 must be plain YAML; aliases are not allowed"),
        ("a: 1\na: 2", "the same key stands twice"),
        ("a: [1", "must be plain YAML"),
        ("[" * 5000, "must be plain YAML"),
        ("a: \x00", "must be plain YAML"),
    ],
)
def test_harmful_yaml_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_plan(text, "plan.yaml")


def test_files_that_are_no_plans_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    with pytest.raises(UsageError, match="No plan at"):
        load_plan(path)
    path.write_text("")
    with pytest.raises(UsageError, match="must be a plan; got an empty file"):
        load_plan(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8 text; got binary data"):
        load_plan(path)
    path.write_bytes(b"a" * 1_000_001)
    with pytest.raises(UsageError, match="at most 1,000,000 bytes; got a larger file"):
        load_plan(path)
    with pytest.raises(UsageError, match="got a folder"):
        load_plan(tmp_path)


def test_writing_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.yaml"
    save_plan(FULL, path)

    def broken(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(UsageError, match="No space left on device"):
        save_plan(Plan(), path)
    monkeypatch.undo()
    assert load_plan(path) == FULL
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("n_layers", [1, 2, 4, 8, 28, 32, 40, 80])
def test_presets_scale_to_every_depth(name: str, n_layers: int) -> None:
    plan = load_preset(name, n_layers)
    layers = [cut.layer for cut in plan.cuts]
    assert layers == sorted(set(layers))
    assert all(0 <= layer < n_layers for layer in layers)
    assert parse_plan(dump_plan(plan)) == plan


def test_a_preset_at_its_own_depth_is_unchanged() -> None:
    for name in presets():
        plan = load_preset(name)
        assert plan.source, name
        assert plan.model is not None
        assert load_preset(name, plan.model.n_layers).cuts == plan.cuts


def test_cuts_of_a_scaled_schedule_never_share_a_layer() -> None:
    plan = Plan(
        model=ModelIdentity(32), cuts=(Cut(2, 0.5, "grid"), Cut(3, 0.2, "grid"), Cut(31, 0))
    )
    assert [cut.layer for cut in plan.scaled(8).cuts] == [1, 2, 7]
    assert [cut.layer for cut in plan.scaled(2).cuts] == [1]


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="No preset is called 'btpp'. Known: btp"):
        load_preset("btpp")


def test_a_method_with_several_schedules_has_a_short_name() -> None:
    methods = [name.split("-")[0] for name in presets()]
    several = {m for m in methods if methods.count(m) > 1 and m not in presets()}
    assert several == set(SHORT_PRESETS)
    for short, meant in SHORT_PRESETS.items():
        assert meant.startswith(f"{short}-")
        assert load_preset(short, 28) == load_preset(meant, 28)


@pytest.mark.parametrize(
    ("name", "n_layers", "average"),
    [
        ("btp-llava-released", 32, 129 / 576),
        ("btp-qwen-released", 28, 0.2723),
        ("btp-qwen-paper", 28, 0.2991),
        ("dart-128", 32, 159.75 / 576),
        ("fastv", 32, 306 / 576),
        ("pyramiddrop", 32, 270 / 576),
        ("vtw", 32, 0.5),
    ],
)
def test_presets_cost_what_their_papers_say(name: str, n_layers: int, average: float) -> None:
    schedule = load_preset(name).schedule(576, n_layers)
    assert sum(schedule) / (576 * n_layers) == pytest.approx(average, abs=5e-5)


def test_the_examples_in_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = [
        doctest.testmod(module, raise_on_error=False) for module in (plan_records, plan_file)
    ]
    assert sum(result.attempted for result in results) >= 15
    assert sum(result.failed for result in results) == 0


def test_text_that_would_command_a_terminal_is_not_written(tmp_path: Path) -> None:
    """A file with it could not be read again."""
    with pytest.raises(UsageError, match="name must be text"):
        save_plan(Plan(name="a\x1b[2J"), tmp_path / "plan.yaml")
    assert not list(tmp_path.iterdir())
