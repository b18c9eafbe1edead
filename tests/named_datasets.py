"""Local copies of the data sets by name, with a few generated rows of the schemas on the Hub.

The schemas are written down here by hand, from the dataset cards and from what lmms-eval reads of
each row, and not from the catalog, so that a wrong column of the catalog is found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

ORG = "lmms-lab-encoder"
LITE = f"{ORG}/LMMs-Eval-Lite"
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")
Row = dict[str, Any]


def _image(i: int) -> Image.Image:
    return Image.new("RGB", (16 + i, 12), COLOURS[i % len(COLOURS)])


def _ten(i: int) -> list[str]:
    """Answers of ten people, eight of whom say the same."""
    return [COLOURS[i % 8]] * 8 + [COLOURS[(i + 1) % 8], "unanswerable"]


def _textvqa(i: int) -> Row:
    return {
        **{"image_id": f"im{i}", "question_id": i, "question": f"What IS written, {i}?"},
        **{"question_tokens": ["what"], "image": _image(i), "image_width": 16, "image_height": 12},
        **{"flickr_original_url": "", "flickr_300k_url": "", "answers": _ten(i)},
        **{"image_classes": ["Sign"], "set_name": "val", "ocr_tokens": ["STOP"]},
    }


def _docvqa(i: int) -> Row:
    return {
        **{"questionId": str(i), "question": f"What is the date, {i}?", "docId": i},
        **{"question_types": ["form"], "image": _image(i), "ucsf_document_id": "x"},
        **{"ucsf_document_page_no": "1", "answers": ["May 1", "1 May"], "data_split": "val"},
    }


def _infovqa(i: int) -> Row:
    return {
        **{
            "questionId": str(i),
            "question": f"How many, {i}?",
            "answers": [str(i), f"{i} people"],
        },
        **{"answer_type": ["single span"], "image": _image(i), "image_url": "", "ocr": "{}"},
        **{"operation/reasoning": ["counting"], "data_split": "val"},
    }


def _chartqa(i: int) -> Row:
    kind = ("human_test", "augmented_test")[i % 2]
    return {"type": kind, "question": f"How high, {i}?", "answer": str(i), "image": _image(i)}


def _gqa(i: int) -> Row:
    return {
        **{"id": str(i), "imageId": f"n{i % 3}", "question": f"Is it left, {i}?", "answer": "yes"},
        **{"fullAnswer": "Yes, it is.", "isBalanced": True, "semanticStr": "select"},
    }


def _gqa_image(i: int) -> Row:
    return {"id": f"n{i}", "image": _image(i)}


def _vqav2(i: int) -> Row:
    answers = [
        {"answer": text, "answer_confidence": "yes", "answer_id": k}
        for k, text in enumerate(_ten(i))
    ]
    return {
        **{"question_type": "what", "multiple_choice_answer": COLOURS[i % 8], "answers": answers},
        **{"image_id": i, "answer_type": "other", "question_id": i, "question": f"Colour, {i}?"},
        "image": _image(i),
    }


def _vizwiz(i: int) -> Row:
    return {
        **{"question_id": f"VizWiz_{i}.jpg", "image": _image(i), "question": f"What IS it, {i}?"},
        **{"answers": _ten(i), "category": "other"},
    }


def _okvqa(i: int) -> Row:
    return {
        **{"question_id": str(i), "image": _image(i), "question": f"Which sport, {i}?"},
        **{"answers": _ten(i), "question_type": "one", "answer_type": "other"},
    }


def _ai2d(i: int) -> Row:
    # Texts of choices that are numbers, as the diagrams have them: 1 is no letter and no index.
    options = ["3", "1", "0", "2"]
    return {
        **{"question": f"How many arrows, {i}?", "options": options, "answer": str(i % 4)},
        "image": _image(i),
    }


def _seedbench(i: int) -> Row:
    return {
        **{"answer": "ABCD"[i % 4], "choice_a": "One", "choice_b": "Two", "choice_c": "B"},
        **{"choice_d": "A", "data_id": str(i), "data_type": ("image", "video")[i % 3 == 2]},
        **{"question": f"How many, {i}?", "question_id": str(i), "question_type_id": 5},
        **{"image": [_image(i)] * (1 if i % 3 < 2 else 2), "segment": None},
    }


def _mmbench(i: int) -> Row:
    return {
        # Every third row is a rotation of the one before it.
        "index": i if i % 3 < 2 else 1_000_000 + i - 1,
        **{"question": f"Which one, {i}?", "hint": ("nan", "It is a pet.")[i % 2]},
        **{"answer": "AB"[i % 2], "A": "cat", "B": "dog", "C": "nan", "D": "nan"},
        **{"category": "object", "image": _image(i), "source": "x", "L2-category": "perception"},
        **{"comment": "nan", "split": "dev"},
    }


def _nocaps(i: int) -> Row:
    return {
        **{"image": _image(i), "image_coco_url": "", "image_date_captured": "", "image_id": i},
        **{"image_file_name": "x.jpg", "image_height": 12, "image_width": 16},
        **{"image_license": 0, "image_open_images_id": "x", "annotations_ids": [i, i + 1]},
        "annotations_captions": ["A red cat sits.", "A cat on a mat."],
    }


def _textcaps(i: int) -> Row:
    return {
        **{"question_id": str(i), "question": "Please describe", "image": _image(i)},
        **{"image_id": f"im{i}", "image_classes": ["Sign"], "flickr_original_url": ""},
        **{"caption_str": ["A sign says stop.", "A stop sign."], "reference_strs": ["A sign."]},
    }


def _flickr30k(i: int) -> Row:
    captions = ["A man runs.", "A runner."]
    return {
        **{"image": _image(i), "caption": captions, "sentids": ["1", "2"], "split": "test"},
        **{"img_id": str(i), "filename": f"{i}.jpg"},
    }


def _refcoco(i: int) -> Row:
    return {
        **{"question_id": str(i), "image": Image.new("RGB", (16, 12), "white")},
        **{"question": "Please describe", "answer": ["the cat", "cat on the left"]},
        **{"segmentation": [1.0, 2.0], "bbox": [2.0, 3.0, 5.0, 4.0], "iscrowd": 0},
        "file_name": "COCO_1.jpg",
    }


def _pope(i: int) -> Row:
    return {
        **{"id": str(i), "question_id": str(i), "question": f"Is there a cat, {i}?"},
        **{"answer": ("yes", "no")[i % 2], "image_source": "COCO", "image": _image(i)},
        "category": "random",
    }


def _scienceqa(i: int) -> Row:
    return {
        **{"image": _image(i), "question": f"Which is solid, {i}?", "choices": ["water", "ice"]},
        **{"answer": i % 2, "hint": ("", "Look at the table.")[i % 2], "task": "closed choice"},
        **{"grade": "grade2", "subject": "natural science", "topic": "physics"},
        **{"category": "matter", "skill": "solids", "lecture": "", "solution": ""},
    }


def _ocrbench(i: int) -> Row:
    return {
        **{"dataset": "IIIT5K", "question": "what is written?", "answer": ["STOP"]},
        **({"dataset": "HME100k", "question": "Write the formula."} if i % 3 == 2 else {}),
        **{"question_type": "Regular Text Recognition", "image": _image(i)},
    }


def _realworldqa(i: int) -> Row:
    choices = "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter."
    return {
        **{"image": _image(i), "question": (choices, "How many?")[i % 2]},
        **{"answer": ("B", "3")[i % 2], "image_path": f"{i}.webp"},
    }


def _mme(i: int) -> Row:
    return {
        **{"question_id": f"code/{i // 2}.png", "image": _image(i), "category": "count"},
        **{
            "question": "Is there one cat? Please answer yes or no.",
            "answer": ("Yes", "No")[i % 2],
        },
    }


LITE_SUBSETS: Mapping[str, Callable[[int], Row]] = {
    **{"textvqa_val": _textvqa, "docvqa_val": _docvqa, "chartqa": _chartqa, "gqa": _gqa},
    **{"infovqa_val": _infovqa, "vqav2_val": _vqav2, "vizwiz_vqa_val": _vizwiz, "ai2d": _ai2d},
    **{"ok_vqa_val2014": _okvqa, "seedbench": _seedbench, "mmbench_en_dev": _mmbench},
    **{"nocaps_val": _nocaps, "textcaps_val": _textcaps, "flickr30k_test": _flickr30k},
    "refcoco_bbox_val": _refcoco,
}
FULL: Mapping[str, Mapping[tuple[str, str], Callable[[int], Row]]] = {
    f"{ORG}/textvqa": {("default", "validation"): _textvqa},
    f"{ORG}/DocVQA": {
        ("DocVQA", "validation"): _docvqa,
        ("InfographicVQA", "validation"): _infovqa,
    },
    f"{ORG}/ChartQA": {("default", "test"): _chartqa},
    f"{ORG}/GQA": {
        ("testdev_balanced_instructions", "testdev"): _gqa,
        ("testdev_balanced_images", "testdev"): _gqa_image,
    },
    f"{ORG}/VQAv2": {("default", "validation"): _vqav2},
    f"{ORG}/VizWiz-VQA": {("default", "val"): _vizwiz},
    f"{ORG}/POPE": {("default", "test"): _pope},
    f"{ORG}/ScienceQA": {("ScienceQA-IMG", "test"): _scienceqa},
    f"{ORG}/ai2d": {("default", "test"): _ai2d},
    f"{ORG}/MMBench": {("en", "dev"): _mmbench},
    "echo840/OCRBench": {("default", "test"): _ocrbench},
    f"{ORG}/RealWorldQA": {("default", "test"): _realworldqa},
    f"{ORG}/MME": {("default", "test"): _mme},
    f"{ORG}/SEED-Bench": {("default", "test"): _seedbench},
}


def write(folder: Path, n_rows: int = 24, only: Collection[str] = ()) -> Path:
    """Writes copies of all repositories into a folder, as ``hf download`` leaves them.

    With ``only``, tables of other configurations are left out.
    """
    import datasets

    datasets.disable_progress_bars()
    for repository, tables in _repositories():
        configurations: dict[str, list[dict[str, str]]] = {}
        for (configuration, split), row in tables.items():
            if only and configuration not in only:
                continue
            file = Path(configuration) / f"{split}-00000-of-00001.parquet"
            _write(folder / repository / file, [row(i) for i in range(n_rows)])
            found = {"split": split, "path": str(file)}
            configurations.setdefault(configuration, []).append(found)
        if not configurations:
            continue
        card = [{"config_name": name, "data_files": f} for name, f in configurations.items()]
        text = f"---\n{yaml.safe_dump({'configs': card})}---\n"
        (folder / repository / "README.md").write_text(text)
    return folder


def _repositories() -> Iterator[tuple[str, Mapping[tuple[str, str], Callable[[int], Row]]]]:
    yield LITE, {(name, "lite"): row for name, row in LITE_SUBSETS.items()}
    yield from FULL.items()


def _write(file: Path, rows: list[Row]) -> None:
    import datasets

    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    image = datasets.List(datasets.Image()) if isinstance(rows[0].get("image"), list) else None
    if image is not None:
        table = table.cast_column("image", image)
    table.to_parquet(str(file))
