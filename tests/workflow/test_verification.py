"""`tpcal verify` on the built-in model: plans that lose what they state, and plans that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import tpcal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.measure import Measurer
from tpcal.cli import cli
from tpcal.planner.prediction.objective import MOST
from tpcal.plans.errors import GuardrailError, UsageError
from tpcal.plans.plan_records import Certificate, Cut, Loss, ModelIdentity, Plan
from tpcal.plans.progress import silent
from tpcal.workflow import verification
from tpcal.workflow.inputs import plan_model_new_samples

N = 42
PROVEN = Certificate(0.05, 0.95, 700, 20, 0.05, "exact binomial", "all samples")


def stating(groups: tuple[str, ...], loss: float) -> Plan:
    """A plan that loses most answers, and states another loss for every group."""
    return Plan(
        cuts=(Cut(2, 0.0),),
        model=ModelIdentity(8, name="embedded"),
        loss=Loss(measured=dict.fromkeys(groups, loss)),
    )


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return ModelChoice().load()


@pytest.fixture(scope="module")
def groups() -> tuple[str, ...]:
    return DataChoice(samples=14).load("eval").groups


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, loaded: Loaded, groups: tuple[str, ...]
) -> Path:
    """A folder with ``good.yaml``, which states what it loses on other samples, and two others."""
    made = tmp_path_factory.mktemp("verified")
    tpcal.save_plan(stating(groups, 0.0), made / "none.yaml")
    others = DataChoice(samples=N, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(made / "state"))
        lost = tpcal.verify(made / "none.yaml", model=loaded, data=others).tests[0].measured
    tpcal.save_plan(stating(groups, lost), made / "good.yaml")
    tpcal.save_plan(stating(groups, lost - 0.5), made / "lowered.yaml")
    return made


def test_a_plan_that_loses_what_it_states_passes(folder: Path, loaded: Loaded) -> None:
    found = tpcal.verify(folder / "good.yaml", model=loaded, data=DataChoice(samples=N))
    found.check()
    assert found.worse == ()
    assert found.tests[0].n == len(found.samples) == N
    assert found.to_json()["passed"] is True


def test_a_plan_whose_stated_loss_was_lowered_fails(folder: Path, loaded: Loaded) -> None:
    found = tpcal.verify(folder / "lowered.yaml", model=loaded, data=DataChoice(samples=N))
    with pytest.raises(GuardrailError, match=r"lowered\.yaml loses over 0\.01 nats more than it"):
        found.check()
    assert found.worse[0].group == "all samples"


@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_several_images_are_measured_in_the_scope_of_the_plan(loaded: Loaded, scope: str) -> None:
    scenes = DataChoice(samples=14).load("eval")
    images = tuple(sample.images[0] for sample in scenes)
    samples = Samples.of([Sample("0", images[:3], "Which?", "left")])
    plan = Plan(cuts=(Cut(1, 0.3, "diversity"),), scope=scope)
    own, other = (
        next(iter(Measurer(loaded, samples, like=Plan(scope=each)).losses(plan.cuts)))[1]
        for each in (scope, "prompt" if scope == "image" else "image")
    )
    found = verification._losses(plan, loaded, samples, 1, silent)
    assert found == pytest.approx(own, abs=1e-6)
    assert found != pytest.approx(other, abs=1e-5)


def test_no_sample_counts_more_than_in_a_stated_loss(loaded: Loaded) -> None:
    samples, plan = DataChoice(samples=14).load("eval"), Plan(cuts=(Cut(0, 0.0),))
    found = verification._losses(plan, loaded, samples, 14, silent)
    ((numbers, raw, _),) = Measurer(loaded, samples, batch_size=14).losses(plan.cuts)
    assert max(raw) > MOST
    limited = [min(float(loss), MOST) for loss in raw]
    assert found[numbers] == pytest.approx(limited, abs=1e-6)


def test_counts_are_rounded_as_the_plan_says(loaded: Loaded) -> None:
    samples = DataChoice(samples=14).load("eval")
    rounded = Plan(cuts=(Cut(1, 0.12, "grid"),), round_to=64)  # 17 of 144 tokens become 64
    alike = Plan(cuts=(Cut(1, 64 / 144, "grid"),))
    found, same = (
        verification._losses(plan, loaded, samples, 14, silent) for plan in (rounded, alike)
    )
    assert found == pytest.approx(same, abs=1e-6)
    unrounded = verification._losses(replace(rounded, round_to=None), loaded, samples, 14, silent)
    assert found != pytest.approx(unrounded, abs=1e-5)


def test_the_command_exits_with_4_and_one_sentence(folder: Path) -> None:
    few = ["--samples", str(N)]
    good = CliRunner().invoke(cli, ["verify", str(folder / "good.yaml"), *few])
    assert good.exit_code == 0, good.output
    assert good.output.splitlines()[-1].startswith("These samples do not show that the plan loses")
    assert "fewer than 8 samples" in good.output
    bad = CliRunner().invoke(cli, ["verify", str(folder / "lowered.yaml"), *few, "--json"])
    assert bad.exit_code == 4
    told = json.loads(bad.stdout)
    assert (told["passed"], told["tests"][0]["is_worse"]) == (False, True)
    assert "tpcal: error: " in bad.stderr
    assert "instead of" in bad.stderr.splitlines()[-1]


def test_a_plan_without_measured_losses_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ModelChoice, "load", None)
    with pytest.raises(UsageError, match="preset:fastv must state a measured loss"):
        tpcal.verify("preset:fastv")


def test_groups_that_the_plan_does_not_know_are_refused(
    tmp_path: Path, loaded: Loaded, groups: tuple[str, ...]
) -> None:
    tpcal.save_plan(stating(groups[1:], 0.1), tmp_path / "plan.yaml")
    with pytest.raises(UsageError, match=f"got {groups[0]}. Name the plan's data"):
        tpcal.verify(tmp_path / "plan.yaml", model=loaded, data=DataChoice(samples=14))


def test_too_few_samples_to_be_tested_are_refused(folder: Path, loaded: Loaded) -> None:
    with pytest.raises(UsageError, match="at least 8 new samples; got 7"):
        tpcal.verify(folder / "lowered.yaml", model=loaded, data=DataChoice(samples=7))


def test_samples_of_the_search_and_the_certificate_are_left_out(
    tmp_path: Path, loaded: Loaded, groups: tuple[str, ...]
) -> None:
    plan, path = stating(groups, 0.1), tmp_path / "plan.yaml"
    tpcal.save_plan(plan, path)

    def drawn() -> tuple[bytes, ...]:
        found = plan_model_new_samples(str(path), ModelChoice.of(loaded), DataChoice(), 14, silent)
        return found[2].identities

    first = drawn()
    assert drawn() == first
    facts = {"profile": "sha256:0", "data": {"data": "embedded", "seen": pack(first[:7])}}
    proven = replace(PROVEN, tested=pack(first[7:]))
    tpcal.save_plan(replace(plan, provenance=facts, certificate=proven), path)
    assert len(drawn()) == 14
    assert not set(drawn()) & set(first)


def test_finite_data_gives_what_is_new_and_the_search_s_kind_of_answers(
    tmp_path: Path, loaded: Loaded
) -> None:
    rows = []
    for i in range(6):
        Image.new("RGB", (96, 96), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "What is the background?", "answer": "red"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    everything = DataChoice(str(tmp_path / "rows.jsonl"), samples=6).load("eval").identities

    def drawn(seen: tuple[bytes, ...]) -> list[str | None]:
        data = {"data": "./rows.jsonl", "own_answers": True, "seen": pack(seen)}
        plan = replace(stating(("all",), 0.1), provenance={"profile": "sha256:0", "data": data})
        tpcal.save_plan(plan, tmp_path / "plan.yaml")
        _, _, samples = plan_model_new_samples(
            str(tmp_path / "plan.yaml"), ModelChoice.of(loaded), DataChoice(), 50, silent
        )
        return [sample.answer for sample in samples]

    assert drawn(everything[:4]) == [None, None]
    with pytest.raises(UsageError, match="Samples must be new; got 6"):
        drawn(everything)
