from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tpcal.calibrate.evaluation.answer_cache import AnswerFile, AnswerFolder
from tpcal.calibrate.evaluation.generate import Answered, answer_all
from tpcal.calibrate.evaluation.variants import Pruned, RandomlyPruned
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Cut, Plan

ANSWERS = [Answered("one\nline\u2028", 16, 5, ((0, 8), (2, 0)), (9, 7)), Answered("", 0, 3)]
ABOUT = {"model": "x"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Holds `ANSWERS` to samples 4 and 5."""
    path = tmp_path / "eval-0" / "a.jsonl"
    AnswerFile(path, ABOUT).add(range(4, 6), ANSWERS)
    return path


def test_answers_are_read_as_they_were_given(file: Path) -> None:
    again = AnswerFile(file, ABOUT)
    assert again.has(range(4, 6))
    assert not again.has(range(3, 6))
    assert [again[4], again[5]] == ANSWERS


def test_answers_of_earlier_versions_have_no_sizes_of_images(file: Path) -> None:
    header, first, _ = file.read_text().splitlines()
    file.write_text(f"{header}\n{first.replace(', [9, 7]]', ']')}\n")
    assert AnswerFile(file, ABOUT)[4] == replace(ANSWERS[0], images=())


def test_an_answer_that_was_cut_off_was_not_given(file: Path) -> None:
    whole = file.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        file.write_bytes(whole[:-cut])
        again = AnswerFile(file, ABOUT)
        assert list(again) == [4]
        again.add(range(5, 6), ANSWERS[1:])
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "of other ones"), ("{}\n", "of other ones"), ("mine", "of other ones")],
)
def test_a_file_of_something_else_is_refused(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=f"it is {said}. Delete it, or answer anew with --fresh"):
        AnswerFile(file, ABOUT)


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '[1, "a", null, 3, []]', "{}", '[0, "", 1, 2, 3]']
)
def test_damage_names_the_line(file: Path, line: str) -> None:
    header, first, last = file.read_text().splitlines()
    file.write_text("\n".join([header, first, line, last]) + "\n")
    with pytest.raises(UsageError, match="damaged in line 3"):
        AnswerFile(file, ABOUT)


def test_a_file_that_was_deleted_meanwhile_is_written_again(file: Path) -> None:
    again = AnswerFile(file, ABOUT)
    shutil.rmtree(file.parent)
    again.add(range(6, 7), ANSWERS[:1])
    assert list(AnswerFile(file, ABOUT)) == [4, 5, 6]


def test_answers_of_another_model_are_not_taken(file: Path) -> None:
    with pytest.raises(UsageError, match="of other ones"):
        AnswerFile(file, {"model": "y"})


def test_a_run_goes_on_at_the_batch_and_a_repeated_one_asks_nothing(
    loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    variant = Pruned(Plan((Cut(1, 0.5, "grid"),)))
    asked: list[int] = []

    class Broken(Pruned):
        def applied(self, loaded: Loaded, start: int):  # type: ignore[no-untyped-def]
            asked.append(start)
            if start == 4 and len(asked) == 3:
                raise KeyboardInterrupt
            return super().applied(loaded, start)

    def run() -> tuple[Answered, ...]:
        kept = AnswerFolder(tmp_path, loaded, scenes, 2).of(variant)
        variants = [(Broken(variant.plan), kept)]
        return answer_all(loaded, scenes, variants, batch_size=2, max_new_tokens=2)[0]

    with pytest.raises(KeyboardInterrupt):
        run()
    whole = run()
    assert asked == [0, 2, 4, 4]
    assert run() == whole
    assert asked == [0, 2, 4, 4]
    assert len(whole) == 6


def test_another_processor_configuration_or_way_to_generate_begins_another_folder(
    loaded: Loaded, scenes: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path() -> Path:
        return AnswerFolder(tmp_path, loaded, scenes, 2).path

    images: Any = loaded.processor.image_processor
    paths = [path(), path()]
    monkeypatch.setattr(images, "size", {"height": 48, "width": 48})
    paths.append(path())
    monkeypatch.setattr(loaded.model.generation_config, "repetition_penalty", 1.5)
    paths.append(path())
    monkeypatch.setattr(loaded.model.config.text_config, "rms_norm_eps", 0.5)
    paths.append(path())
    assert paths[0] == paths[1]
    assert len(set(paths)) == 4


def test_folders_and_files_go_by_what_answers_depend_on(
    loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    folder = AnswerFolder(tmp_path, loaded, scenes, 2)
    others = [(scenes.part(0, 5), 2), (scenes, 3), (scenes.unanswered(), 2)]
    paths = [AnswerFolder(tmp_path, loaded, *other).path for other in others]
    assert len({folder.path, *paths}) == 4
    cuts = Plan((Cut(0, 0.5, "random"),))
    variants = [Pruned(), Pruned(cuts), RandomlyPruned(cuts, 2), RandomlyPruned(cuts, 3)]
    for variant in variants:
        folder.of(variant)
    assert len(list(folder.path.iterdir())) == 4
    files = sorted(folder.path.iterdir())
    for file in files:
        file.write_text("of something else\n")
    AnswerFolder(tmp_path, loaded, scenes, 2, fresh=True).of(variants[0])
    assert sorted(folder.path.iterdir()) == files
    assert [file.read_text() == "of something else\n" for file in files].count(True) == 3
