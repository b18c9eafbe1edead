"""The published JSON Schema of plans says what the reader says, where a schema can."""

from __future__ import annotations

import json
from importlib import resources

import jsonschema
import plan_schema
import pytest
import yaml

from tpcal.plans import selectors
from tpcal.plans.cost import DecoderShape, plan_cost
from tpcal.plans.errors import PlanError
from tpcal.plans.plan_file import dump_plan, load_preset, parse_plan, presets
from tpcal.plans.plan_records import (
    Certificate,
    Condition,
    Cut,
    Loss,
    ModelIdentity,
    Plan,
    ReachedBudget,
)

TEXT = resources.files("tpcal.plans").joinpath("plan.schema.json").read_text(encoding="utf-8")
VALIDATOR = jsonschema.Draft202012Validator(json.loads(TEXT))
OLDER = jsonschema.Draft7Validator(json.loads(TEXT))  # what many editors know
GRID = "{layer: 2, keep: 0.5, selector: grid}"
BOTH = {
    "cuts: []": "schema must be 1",
    "schema: 2": "schema must be 1",
    "schema: true": "schema must be 1",
    "schema: 1\nfoo: 1": "the plan keys must be among",
    "schema: 1\nname: 3": "name must be text",
    "schema: 1\ncuts: 3": "cuts must be a list",
    "schema: 1\ncuts: null": "cuts must be a list",
    "schema: 1\ncuts: [3]": "be a mapping",
    "schema: 1\nround_to: 0": "round_to must be an integer of at least 1",
    "schema: 1\nscope: row": "scope must be one of image, prompt",
    "schema: 1\nmerge: sum": "merge must be one of mean, proportional",
    "schema: 1\nprovenance: by hand": "provenance must be a mapping",
    "schema: 1\ncuts: [{keep: 0}]": "layer must be an integer",
    "schema: 1\ncuts: [{layer: 2}]": "keep must be a number",
    "schema: 1\ncuts: [{layer: -1, keep: 0}]": "layer must be at least 0",
    "schema: 1\ncuts: [{layer: 1.5, keep: 0}]": "layer must be an integer",
    "schema: 1\ncuts: [{layer: yes, keep: 0}]": "layer must be an integer",
    "schema: 1\ncuts: [{layer: 2, keep: 1.5, selector: grid}]": r"keep must be in \[0, 1\]",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5}]": "selector must be given",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: nrom}]": "no selector is called 'nrom'",
    "schema: 1\ncuts: [{layer: 2, keep: 0, selector: grid}]": "selector must be left out",
    "schema: 1\ncuts: [{layer: 2, keep: 0, params: {a: 1}}]": "selector must be left out",
    "schema: 1\ncuts: [{layer: 2, keep: 0, rate: 1}]": "keys must be among",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: grid, params: 1}]": "params must be a mapping",
    "schema: 1\ncuts: [{layer: 0, keep: 0, condition: {text_to_visual_below: 0.1}}]": "at least 1",
    "schema: 1\ncuts: [{layer: 1, keep: 0, condition: {}}]": "text_to_visual_below must be given",
    "schema: 1\ncuts: [{layer: 1, keep: 0, condition: {text_to_visual_below: 2}}]": "must be in",
    "schema: 1\nmodel: {name: a}": "model.n_layers must be given",
    "schema: 1\nmodel: {n_layers: null}": "model.n_layers must be given",
    "schema: 1\nmodel: {n_layers: 8.5}": "model.n_layers must be an integer",
    "schema: 1\nbudget: {target: 0.1}": "budget.reached must be given",
    "schema: 1\nbudget: {target: 1.1, reached: 1}": "budget.target must be in",
    "schema: 1\nbudget: {target: 1.1, reached: 1, kind: kv}": "budget.target must be in",
    "schema: 1\nbudget: {target: 1, reached: 1, kind: gold}": "budget.kind must be one of",
    "schema: 1\nloss: {measured: [1]}": "loss.measured must be a mapping",
    "schema: 1\nloss: {measured: {a: b}}": "loss.measured.a must be a number",
    "schema: 1\ncost: {counts: 3}": "cost.counts must be a list",
    "schema: 1\ncertificate: {n: 1}": "certificate.max_flips must be given",
}
READER = {
    f"schema: 1\ncuts: [{GRID}, {GRID}]": "layer must be above",
    f"schema: 1\ncuts: [{GRID}, {{layer: 3, keep: 0.6, selector: grid}}]": "keep must not rise",
    f"schema: 1\nmodel: {{n_layers: 2}}\ncuts: [{GRID}]": "must be below the model's 2 layers",
    f"schema: 1\ncuts: [{GRID}]\ndigest: sha256:0": "digest must match",
    "schema: 1\nround_to: 16.0": "round_to must be an integer",  # JSON has one kind of number
}
SCHEMA = (
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: grid, params: {a: 1}}]",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: dart, params: {image_pivots: 0}}]",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: diversity, params: {rule: min_max}}]",
    "schema: 1\ncuts: [{layer: 2, keep: 0.5, selector: diversity, params: {pivot: -1}}]",
)
"""Parameters of selectors: `apply` and `tpcal check` look at them, the reader does without torch."""


def _valid(text: str) -> bool:
    data = yaml.safe_load(text)
    valid = VALIDATOR.is_valid(data)
    assert OLDER.is_valid(data) == valid
    return valid


def test_the_file_is_what_the_records_and_selectors_say() -> None:
    assert plan_schema.text() == TEXT, "run: make docs"
    jsonschema.Draft202012Validator.check_schema(json.loads(TEXT))


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_as_shipped_and_as_written(name: str) -> None:
    folder = resources.files("tpcal.plans.presets")
    assert _valid(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    assert _valid(dump_plan(load_preset(name, n_layers=28)))


def test_a_plan_with_everything_in_it_is_valid() -> None:
    cuts = (Cut(2, 0.5, "dart", {"image_pivots": 2}), Cut(6, 0, condition=Condition(0.1)))
    bare = Plan(cuts, "all", "by hand", 16, ModelIdentity(8, "tiny", fingerprint="sha256:1"))
    shape = DecoderShape(8, 64, 128, 4, 2, 16, 100, 4)
    full = Plan(
        **{
            **vars(bare),
            "budget": ReachedBudget(40.0, 39.5, "ms"),
            "loss": Loss({"a": -0.001}, {"a": 0.1}, {"a": 0.2}, max_loss=0.3),
            "cost": plan_cost(bare, shape, 144, 20, [(20, 1.0), (164, 3.0)]),
            "certificate": Certificate(0.05, 0.95, 100, 1, 0.047, "exact", "all samples"),
            "provenance": {"seed": 0, "libraries": {"torch": "2"}},
        }
    )
    errors = [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(dump_plan(full)))]
    assert not errors
    assert parse_plan(dump_plan(full)) == full


@pytest.mark.parametrize("name", selectors.names())
def test_the_defaults_of_every_selector_are_valid(name: str) -> None:
    cut = {"layer": 2, "keep": 0.5, "selector": name, "params": selectors.parameters(name)}
    assert VALIDATOR.is_valid({"schema": 1, "cuts": [cut]})


@pytest.mark.parametrize(("text", "message"), BOTH.items())
def test_reader_and_schema_refuse(text: str, message: str) -> None:
    assert not _valid(text)
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


@pytest.mark.parametrize(("text", "message"), READER.items())
def test_only_the_reader_can_refuse(text: str, message: str) -> None:
    assert _valid(text)
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


@pytest.mark.parametrize("text", SCHEMA)
def test_the_schema_knows_the_parameters_of_selectors(text: str) -> None:
    assert not _valid(text)
    parse_plan(text)
