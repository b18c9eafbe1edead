"""Plans in folders and repositories; the real client of the Hub against a Hub on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import tpcal
from tpcal.cli import cli
from tpcal.plans import hub
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.plan_card import card
from tpcal.plans.plan_file import dump_plan, load_preset
from tpcal.plans.plan_names import PLAN
from tpcal.plans.plan_records import (
    FURTHER,
    OWN,
    Certificate,
    Condition,
    Cut,
    Loss,
    ModelIdentity,
    Plan,
)

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub, serving

MADE = Plan(
    cuts=(Cut(2, 0.5, "grid"), Cut(5, 0.0)),
    name="half",
    model=ModelIdentity(8, name="llava-1.5-7b"),
    loss=Loss(measured={"count": 0.125}, changed={"count": 0.02}),
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that is asked instead of the real one, by a client that is logged in."""
    from huggingface_hub import constants

    with serving(FakeHub()) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody_at_all")
        monkeypatch.chdir(tmp_path)
        hub.reachable.cache_clear()
        yield found
    hub.reachable.cache_clear()


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.reachable.cache_clear()


def test_a_pushed_plan_comes_back_the_same(fake: FakeHub) -> None:
    url = MADE.push_to_hub("org/plan", private=True)
    assert url.startswith(f"{fake.url}/org/plan/commit/")
    assert fake.private == {"org/plan": True}
    assert set(fake.repositories["org/plan"]["main"]) == {PLAN, "README.md"}
    for found in (tpcal.load_plan("org/plan"), Plan.from_pretrained("org/plan@main")):
        assert found == MADE
        assert found.digest == MADE.digest


def test_a_branch_and_a_commit_pin_a_plan(fake: FakeHub) -> None:
    MADE.push_to_hub("org/plan")
    first = fake.commits["org/plan", "main"]
    other = Plan(cuts=(Cut(1, 0.25, "grid"),))
    other.push_to_hub("org/plan")
    MADE.push_to_hub("org/plan", branch="careful")
    assert tpcal.load_plan("org/plan") == other
    assert tpcal.load_plan("org/plan@careful") == MADE
    assert tpcal.load_plan(f"org/plan@{first}") == MADE
    assert tpcal.load_plan("org/plan@careful", revision="main") == other


def test_a_readme_of_the_model_stays(fake: FakeHub, tmp_path: Path) -> None:
    fake.put("org/model", {"README.md": "# My model\n"})
    MADE.push_to_hub("org/model")
    held = fake.repositories["org/model"]["main"]
    assert held["README.md"] == "# My model\n"
    assert "## Cuts" in held["tpcal_plan.md"]
    (tmp_path / "README.md").write_text("# My model\n")
    MADE.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My model\n"
    assert (tmp_path / "tpcal_plan.md").exists()


def test_without_a_network_the_file_fetched_last_is_taken(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    MADE.push_to_hub("org/plan")
    tpcal.load_plan("org/plan")
    _offline(monkeypatch)
    assert tpcal.load_plan("org/plan") == MADE
    with pytest.raises(UsageError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        tpcal.load_plan("org/other")
    with pytest.raises(RunFailed, match="org/plan cannot be written, because HF_HUB_OFFLINE"):
        MADE.push_to_hub("org/plan")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/none", "neither a file nor a folder here. No repository org/none is on the Hub"),
        ("org/empty", f"org/empty has no {PLAN}"),
        ("org/empty@v9", "org/empty has no branch, tag or commit v9"),
        ("org/gated", "org/gated is gated"),
        ("plans/none.yaml", "No plan at plans/none.yaml. A plan is named by"),
        ("none", "a repository on the Hub (org/name)"),
        ("empty", f"empty must be a plan file; got a folder without {PLAN}"),
        ("org/broken", f"org/broken: {PLAN}: cuts[0].keep must be"),
    ],
)
def test_what_is_not_there_is_one_sentence(fake: FakeHub, name: str, said: str) -> None:
    fake.put("org/empty", {})
    fake.put("org/broken", {PLAN: "schema: 1\ncuts: [{layer: 1, keep: 3, selector: grid}]\n"})
    fake.gated.add("org/gated")
    Path("empty").mkdir()
    with pytest.raises(UsageError) as caught:
        tpcal.load_plan(name)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_account_that_may_not_write_is_told(fake: FakeHub) -> None:
    fake.read_only = True
    with pytest.raises(UsageError, match=r"may not do that in org/plan\. Log in"):
        MADE.push_to_hub("org/plan")
    with pytest.raises(UsageError, match="must be named org/name; got plan"):
        MADE.push_to_hub("plan")


def test_a_file_comes_before_a_repository(fake: FakeHub) -> None:
    MADE.push_to_hub("org/plan")
    other = load_preset("fastv")
    Path("org").mkdir()
    tpcal.save_plan(other, "org/plan")
    assert tpcal.load_plan("org/plan") == other


def test_local_paths_are_not_shared(tmp_path: Path) -> None:
    data = {"data": "../secret/questions.jsonl", "fingerprint": "sha256:0"}
    model = ModelIdentity(8, name="~/models/mine", fingerprint="sha256:1")
    plan = Plan(model=model, provenance={"data": data})
    plan.save_pretrained(tmp_path / "shared")
    for file in (tmp_path / "shared").iterdir():
        assert "secret" not in file.read_text()
        assert "mine" not in file.read_text()
    found = Plan.from_pretrained(tmp_path / "shared")
    assert found.model == ModelIdentity(8, fingerprint="sha256:1")
    assert found.provenance == {"data": {"fingerprint": "sha256:0"}}


def test_a_card_says_what_the_plan_says() -> None:
    proven = Certificate(0.05, 0.95, 700, 20, 0.05, "exact binomial", "all samples", "700 rows")
    text = card(Plan(**{**vars(MADE), "certificate": proven}), "org/plan")
    assert "library_name: tpcal" in text.split("---")[1]
    assert "base_model: llava-hf/llava-1.5-7b-hf" in text.split("---")[1]
    assert "tpcal.apply(model, 'org/plan')" in text
    assert "| 2 | 0.5 | grid |" in text
    assert "| count | – | 0.1250 | 2.0% |" in text
    assert "20 of 700 answers changed" in text


def test_a_card_says_how_tokens_leave_and_what_the_loss_was_measured_on() -> None:
    condition = Condition(0.1, visual_to_text_below=0.2)
    plan = Plan((Cut(4, 0.0, condition=condition),), merge="proportional", scope="image")
    text = card(plan, "org/plan")
    assert "merge proportional" in text
    assert "Every image of a prompt keeps its own share" in text
    assert "less than 0.1 of its attention to the image, and the image less than 0.2" in text
    lost = replace(plan, loss=Loss(measured={"count": 0.1}))
    assert "Measured with the whole plan." in card(lost, "org/plan")
    for samples, said in ((OWN, "the samples that chose the cuts."), (FURTHER, "others.")):
        known = replace(lost, provenance={"measured_on": samples})
        assert f"Measured with the whole plan on {said}" in card(known, "org/plan")
    predicted = replace(plan, loss=Loss(predicted={"count": 0.1}))
    assert "samples of the calibration. Not measured." in card(predicted, "org/plan")


def test_no_name_formats_the_card() -> None:
    import yaml

    evil = "<script>x</script>\n# Title | [a](http://b) `c`\n---\nbase_model: other/model"
    text = card(Plan(name=evil, source=evil, loss=Loss(measured={evil: 1.0})), "org/plan")
    assert "<script>" not in text
    assert "\n# Title" not in text
    assert "](http" not in text
    assert [line for line in text.splitlines() if line == "---"] == ["---", "---"]
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "tpcal",
        "tags": ["tpcal", "visual-token-pruning", "vision-language-model"],
    }


def test_the_commands_push_and_pull(fake: FakeHub) -> None:
    Path("plan.yaml").write_text(dump_plan(MADE))
    pushed = CliRunner().invoke(cli, ["push", "plan.yaml", "org/plan", "--branch", "v1"])
    assert pushed.exit_code == 0, pushed.output
    assert "org/plan@v1 has the plan" in pushed.output
    pulled = CliRunner().invoke(cli, ["pull", "org/plan@v1", "-o", "mine.yaml"])
    assert pulled.exit_code == 0, pulled.output
    assert Path("mine.yaml").read_text() == dump_plan(MADE)
    shown = CliRunner().invoke(cli, ["show", "org/plan@v1"])
    assert "keep 0.5 by grid" in shown.output
    Path("notes.yaml").write_text("mine: true\n")
    refused = CliRunner().invoke(cli, ["pull", "org/plan@v1", "-o", "notes.yaml"])
    assert refused.exit_code == 2
    assert Path("notes.yaml").read_text() == "mine: true\n"
