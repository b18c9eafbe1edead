from __future__ import annotations

from pathlib import Path

from tpcal.planner.search.ledger import Ledger
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.settings import SearchSettings

ROOT = Path(__file__).parents[3]
WORDS = ("user_attr", "get_all_study_names", "load_study", "create_study")


def test_no_other_module_knows_study_names_or_attributes() -> None:
    folders = ("planner", "report", "commands", "views")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    offenders = [p.name for p in files if any(word in p.read_text() for word in WORDS)]
    assert offenders == ["ledger.py"]


def test_studies_keep_the_names_they_have_in_old_journals(make_world) -> None:
    profile = make_world(n_samples=24).profile()
    ledger = Ledger.open(None, profile)
    study = ledger.start(profile, "0.3", 7, [[], "tpe True", []], RepeatableTPE(0))
    assert study.study_name == "tpcal-499f9c9ba5dd-1c81b4eb-budget0.3-seed7-1dca916d"
    assert [s.study_name for s in ledger.studies(profile)] == [study.study_name]
    assert ledger.all_on(profile)
    other = make_world(n_samples=48).profile()
    assert not ledger.all_on(other)
    assert ledger.studies(other) == []


def test_searches_in_a_row_share_trials_time_and_progress() -> None:
    told = []
    settings = SearchSettings(10, progress=lambda *state: told.append(state))
    part = settings.part(done=4, n_trials=6, total=10, end=0.0)
    assert (part.n_trials, part.timeout, settings.end) == (6, 0.0, None)
    assert part.progress is not None
    part.progress(3, 6, "trials")
    assert told == [(7, 10, "trials")]
