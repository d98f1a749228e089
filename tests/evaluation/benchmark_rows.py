"""Made-up rows in the column layouts of real benchmarks, and files that hold them."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from xgen_mm.evaluation.sources import KEY_COLUMN


def png(shade: int, *, height: int = 20, width: int = 30) -> bytes:
    """An encoded picture of one shade."""
    stream = io.BytesIO()
    Image.new("L", (width, height), shade % 256).save(stream, format="PNG")
    return stream.getvalue()


def stored(shade: int) -> dict[str, Any]:
    """A picture as `datasets` stores it in parquet files."""
    return {"bytes": png(shade), "path": None}


def in_base64(shade: int) -> str:
    """A picture as VLMEvalKit stores it."""
    return base64.b64encode(png(shade)).decode()


def _choices(**more: Any) -> dict[str, Any]:
    return {"A": "a cat", "B": "a dog", "C": "a hen", "D": "a cow", **more}


def tsv_choice(index: int, answer: str, **more: Any) -> dict[str, Any]:
    """A question with options in VLMEvalKit's form."""
    return _choices(index=index, image=in_base64(index), question=f"What is in picture {index}?", answer=answer) | more


def tsv_open(index: int, answer: Any, **more: Any) -> dict[str, Any]:
    """A question without options in VLMEvalKit's form."""
    row = {"index": index, "image": in_base64(index), "question": f"What is in picture {index}?", "answer": answer}
    return row | more


def _seed(index: int, answer: str, **more: Any) -> dict[str, Any]:
    row = {"question_id": f"q{index}", "question": f"What is in picture {index}?", "answer": answer}
    row |= {"choice_a": "a cat", "choice_b": "a dog", "choice_c": "a hen", "choice_d": "a cow"}
    return row | {"data_type": "image", "question_type_id": index % 2, "image": [stored(index)], **more}


def _vqa(index: int, answers: Any, **more: Any) -> dict[str, Any]:
    row = {"question_id": index, "image": stored(index), "question": f"Which colour is thing {index}?"}
    return row | {"answers": answers, **more}


def _caption(index: int, column: str, id_column: str = "image_id") -> dict[str, Any]:
    words = ("a red car on the road", "two dogs play in the snow", "a man reads a big newspaper")[index % 3]
    return {id_column: index, "image": stored(index), column: [words, words]}


def _vlguard() -> list[dict[str, Any]]:
    harm = {"harmful_category": "privacy", "harmful_subcategory": "names"}
    unsafe = {
        "id": "1",
        "image": "unsafe.png",
        "safe": False,
        "instr-resp": [{"instruction": "Name him", "response": "No"}],
    }
    pair = [
        {"safe_instruction": "What is it?", "response": "A tree"},
        {"unsafe_instruction": "Mock it", "response": "No"},
    ]
    return [unsafe | harm, {"id": "2", "image": "safe.png", "safe": True, "instr-resp": pair} | harm]


_TEN = ["red"] * 8 + ["blue"] * 2
_MMBENCH = {"category": "animals", "source": "web", "l2-category": "things"}
_MMMU = {f"image_{number}": None for number in range(1, 8)} | {"subfield": "Art", "topic_difficulty": "Easy"}
_NAMED = [{"image_id": str(number), "image": None} for number in range(6)]
_VISTA = {"question_type": "multi_choice", "answer_type": "text", "unit": None, "precision": None}

# Per task and layout: rows, of which the first two are answered in the tests.
ROWS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("seed_image", "hub"): [_seed(1, "A"), _seed(2, "D"), _seed(3, "A", data_type="video")],
    ("seed_image", "vlmevalkit"): [tsv_choice(1, "A", category="scene"), tsv_choice(2, "D", category="count")],
    ("seed_bench_2", "hub"): [
        _seed(1, "B", question="Compare <img> and <img>.", image=[stored(1), stored(2)]),
        _seed(2, "A", choice_a="a.jpg", choice_b="b.jpg", choice_c="c.jpg", choice_d="d.jpg")
        | {"image": [stored(shade) for shade in range(4)]},
    ],
    ("seed_bench_2", "vlmevalkit"): [tsv_choice(1, "A", category="scene"), tsv_choice(2, "D", category="count")],
    ("mmbench_en_dev", "hub"): [
        _choices(index=7, question="What?", hint="nan", answer="A", image=stored(7), **_MMBENCH),
        {"A": "a cow", "B": "a cat", "C": "nan", "D": "nan", "hint": "Look", "answer": "B", "question": "What?"}
        | {"index": 1_000_007, "image": stored(7), **_MMBENCH},
    ],
    ("mmbench_en_dev", "vlmevalkit"): [
        tsv_choice(7, "A", hint="", category="animals"),
        tsv_choice(1_000_007, "B", hint="Look", category="animals") | {"image": "7"},
    ],
    ("mmstar", "vlmevalkit"): [
        tsv_choice(1, "A", category="coarse", l2_category="scene"),
        tsv_choice(2, "D", category="fine", l2_category="count"),
    ],
    ("mmstar", "hub"): [
        {"index": 0, "image": stored(1), "answer": "B", "category": "coarse", "l2_category": "scene"}
        | {"question": "Which one?\nOptions: A: A cat is here., B: It is B. Good, C: a hen, D: a cow"},
        {"index": 1, "image": stored(2), "answer": "A", "category": "fine", "l2_category": "count"}
        | {"question": "How many?\nOptions: A: 1, B: 2, C: 3, D: 4"},
    ],
    ("mme", "hub"): [
        {"question_id": "code/1.png", "image": stored(1), "question": "Is it red? Please answer yes or no."}
        | {"answer": "Yes", "category": "color"},
        {"question_id": "code/1.png", "image": stored(1), "question": "Is it blue? Please answer yes or no."}
        | {"answer": "No", "category": "color"},
    ],
    ("mme", "vlmevalkit"): [
        tsv_open(1, "Yes", category="color", image_path="1.png"),
        tsv_open(2, "No", category="color", image_path="1.png"),
    ],
    ("cv_bench_2d", "hub"): [
        {"idx": 1, "type": "2D", "task": "Count", "image": stored(1), "question": "How many?", "choices": ["0", "1"]}
        | {"answer": "(B)", "prompt": "How many?\n(A) 0\n(B) 1", "source": "COCO"},
        {"idx": 2, "type": "2D", "task": "Count", "image": stored(2), "question": "How many?", "choices": ["0", "1"]}
        | {"answer": "(A)", "prompt": "How many? Really?\n(A) 0\n(B) 1", "source": "ADE20K"},
    ],
    ("cv_bench_3d", "hub"): [
        {"idx": number, "type": "3D", "task": "Depth", "image": stored(number), "question": "Which?"}
        | {
            "choices": ["box", "ball"],
            "answer": "(B)",
            "prompt": f"Which? {number}\n(A) box\n(B) ball",
            "source": "Omni3D",
        }
        for number in (1, 2)
    ],
    ("realworldqa", "vlmevalkit"): [tsv_choice(1, "A"), tsv_choice(2, "D")],
    ("realworldqa", "hub"): [
        {"image": stored(1), "answer": "B"}
        | {"question": "Where?\n\nA. Left\nB. Right\nPlease answer directly with only the letter."},
        {"image": stored(2), "question": "How many? Please answer directly with a single number.", "answer": "7"},
    ],
    ("mmmu_val", "hub"): [
        {"id": "validation_Art_1", "question": "Is <image 2> like <image 1>?", "options": "['yes', '<image 1>']"}
        | {"answer": "B", "question_type": "multiple-choice", **_MMMU, "image_1": stored(1), "image_2": stored(2)},
        {"id": "validation_Art_2", "question": "How much? <image 1>", "options": "[]", "answer": "12.5"}
        | {"question_type": "open", **_MMMU, "image_1": stored(3)},
    ],
    ("mmmu_val", "vlmevalkit"): [
        tsv_choice(1, "A", category="Art", split="validation", hint="", question="What is <image 1>?"),
        tsv_choice(2, "D", category="Art", split="validation", hint=""),
        tsv_choice(3, "D", category="Art", split="dev", hint=""),
    ],
    ("mathvista_mini", "hub"): [
        {"pid": "1", "query": "Hint: x\nQuestion: Which?", "decoded_image": stored(1), "choices": ["1 m", "2 m"]}
        | {"answer": "2 m", **_VISTA, "metadata": {"task": "geometry"}},
        {
            "pid": "2",
            "query": "Hint: y\nQuestion: How many?",
            "decoded_image": stored(2),
            "choices": None,
            "answer": "1.5",
        }
        | {**_VISTA, "question_type": "free_form", "answer_type": "float", "metadata": {"task": "geometry"}},
    ],
    ("mathvista_mini", "vlmevalkit"): [
        tsv_open(
            1, "2 m", choices="['1 m', '2 m']", task="geometry", answer_type="text", question_type="multi_choice"
        ),
        tsv_open(2, "15", choices="[]", task="geometry", answer_type="integer", question_type="free_form"),
    ],
    ("scienceqa_img", "hub"): [
        {"image": stored(number), "question": f"Which {number}?", "choices": ["a cat", "a dog"], "answer": number % 2}
        | {"hint": "Look." if number % 2 else "", "topic": "biology"}
        for number in (1, 2)
    ],
    ("scienceqa_img", "vlmevalkit"): [
        tsv_choice(1, "A", hint="Look", category="biology"),
        tsv_choice(2, "D", hint="", category="biology"),
    ],
    ("pope", "hub"): [
        {"id": str(number), "image": stored(number), "question": f"Is there a cat in picture {number}?"}
        | {"answer": answer, "category": "random", "image_source": f"COCO_{number}"}
        for number, answer in ((1, "yes"), (2, "no"))
    ],
    ("pope", "vlmevalkit"): [
        tsv_open(1, "Yes", category="random,popular"),
        tsv_open(2, "No", category="adversarial"),
    ],
    ("textvqa_val", "hub"): [_vqa(1, _TEN), _vqa(2, ["blue"] * 10)],
    ("textvqa_val", "vlmevalkit"): [tsv_open(1, json.dumps(_TEN)), tsv_open(2, str(["blue"] * 10))],
    ("ocrbench", "hub"): [
        {"image": stored(number), "question": f"What is written {number}?", "answer": ["CENTRE", "CENTER"]}
        | {"question_type": "Scene Text-centric VQA", "dataset": "made"}
        for number in (1, 2)
    ],
    ("ocrbench", "vlmevalkit"): [tsv_open(number, "['CENTRE']", category="Doc-oriented VQA") for number in (1, 2)],
    ("chartqa", "hub"): [
        {"image": stored(number), "question": f"How many {number}?", "answer": "100", "type": "human_test"}
        for number in (1, 2)
    ],
    ("chartqa", "vlmevalkit"): [tsv_open(number, "100", split="test_human") for number in (1, 2)],
    ("docvqa_val", "hub"): [
        {"questionId": number, "image": stored(number), "question": f"Who {number}?", "answers": ["Ann Lee", "Ann"]}
        for number in (1, 2)
    ],
    ("docvqa_val", "vlmevalkit"): [tsv_open(number, "['Ann Lee', 'Ann']") for number in (1, 2)],
    ("ai2d", "hub"): [
        {"image": stored(number), "question": f"Which {number}?", "options": ["a leaf", "a root"], "answer": "1"}
        for number in (1, 2)
    ],
    ("ai2d", "vlmevalkit"): [tsv_choice(1, "A"), tsv_choice(2, "D")],
    ("mm_vet", "hub"): [
        {"question_id": f"v1_{number}", "image": stored(number), "question": f"What {number}?", "answer": "a leaf"}
        | {"capability": "rec"}
        for number in (1, 2)
    ],
    ("mm_vet", "vlmevalkit"): [tsv_open(number, "a leaf", category="rec") for number in (1, 2)],
    ("hallusion_bench", "hub"): [
        {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": figure}
        | {"question_id": "0", "question": f"Same? {figure}", "gt_answer": answer, "image": stored(int(figure))}
        for figure, answer in (("0", "1"), ("1", "0"))
    ],
    ("hallusion_bench", "vlmevalkit"): [
        tsv_open(number, answer, category="VD") | {"index": f"VD_illusion_1_0_{number}_0", "l2-category": "illusion"}
        for number, answer in ((1, "Yes"), (2, "No"))
    ],
    ("blink", "hub"): [
        {"idx": f"val_{number}", "question": f"Which {number}?", "choices": ["left", "right"], "answer": "(B)"}
        | {"sub_task": "Jigsaw", "image_1": stored(1), "image_2": stored(2), "image_3": None, "image_4": None}
        for number in (1, 2)
    ],
    ("blink", "vlmevalkit"): [
        tsv_choice(number, "D", category="Jigsaw") | {"image": str([in_base64(1), in_base64(2)])} for number in (1, 2)
    ],
    ("q_bench_2", "hub"): [
        {"id": number, "image1": stored(1), "image2": stored(2), "question": f"Which is sharper {number}?"}
        | {"option0": "The first", "option1": "The second", "option2": "N/A", "option3": "N/A"}
        | {"correct_choice": "B", "question_concern": 0, "question_type": 1}
        for number in (1, 2)
    ],
    ("mantis_eval", "hub"): [
        {"id": "m1", "question_type": "multi-choice", "question": "Is <image> like <image>?", "answer": "B"}
        | {"images": [stored(1), stored(2)], "options": ["(A) Yes", "(B) No"], "category": "x"},
        {"id": "m2", "question_type": "short-answer", "question": "How many in <image>?", "answer": "three"}
        | {"images": [stored(3)], "options": [], "category": "x"},
    ],
    ("muirbench", "hub"): [
        {"idx": f"i{number}", "task": "Ordering", "question": f"Is <image> like <image>? {number}", "answer": "B"}
        | {"options": ["Yes", "<image>"], "image_list": [stored(1), stored(2), stored(3)]}
        for number in (1, 2)
    ],
    ("muirbench", "vlmevalkit"): [
        tsv_choice(number, "D", category="Ordering", question=f"Is <image> like <image>? {number}")
        | {"image": str([in_base64(1), in_base64(2)])}
        for number in (1, 2)
    ],
    ("vqav2_val", "hub"): [
        _vqa(number, [{"answer": word, "answer_id": 1} for word in _TEN], answer_type="other") for number in (1, 2)
    ],
    ("gqa", "vlmevalkit"): [tsv_open(number, "left") for number in (1, 2)],
    ("gqa", "joined"): [
        {"id": str(number), "imageId": stored(number), "question": f"Where {number}?", "answer": "left"}
        for number in (1, 2)
    ],
    ("pope", "official"): [
        {"question_id": number, "image": f"{number}.png", "text": "Is there a cat in the image?", "label": label}
        for number, label in ((1, "yes"), (2, "no"))
    ],
    ("ocrbench", "official"): [
        {"dataset_name": "made", "type": "Regular Text Recognition", "id": number, "image_path": f"{number}.png"}
        | {"question": f"what is written in the image {number}?", "answers": answers}
        for number, answers in ((1, "CENTRE"), (2, ["CENTRE", "CENTER"]))
    ],
    ("hallusion_bench", "official"): [
        {"category": "VD", "subcategory": "illusion", "visual_input": str(visual), "set_id": "0", "figure_id": figure}
        | {"question_id": "0", "question": f"Same? {figure}", "gt_answer": answer, "sample_note": "circle"}
        | {"filename": f"./{figure}.png" if visual else None}
        for visual, figure, answer in ((0, "0", "1"), (1, "1", "1"), (2, "2", "0"))
    ],
    ("chartqa", "official"): [
        {"imgname": f"{number}.png", "query": f"How many {number}?", "label": "100"} for number in (1, 2)
    ],
    ("mathvista_mini", "official"): [
        {
            KEY_COLUMN: "1",
            "pid": "1",
            "query": "Hint: x\nQuestion: Which?",
            "image": "1.png",
            "answer": "2 m",
            **_VISTA,
        }
        | {"choices": ["1 m", "2 m"], "metadata": {"task": "geometry"}},
        {
            KEY_COLUMN: "2",
            "pid": "2",
            "query": "Hint: y\nQuestion: How many?",
            "image": "2.png",
            "answer": "1.5",
            **_VISTA,
        }
        | {"choices": None, "question_type": "free_form", "answer_type": "float", "metadata": {"task": "geometry"}},
    ],
    ("scienceqa_img", "official"): [
        {KEY_COLUMN: key, "question": f"Which {key}?", "choices": ["a cat", "a dog"], "answer": int(key), "hint": ""}
        | {"image": image, "topic": "biology", "split": split}
        for key, image, split in (("0", "image.png", "test"), ("1", "image.png", "test"), ("2", None, "test"))
    ]
    + [{KEY_COLUMN: "9", "question": "Which?", "choices": ["a"], "answer": 0, "image": "image.png", "split": "train"}],
    ("mm_vet", "official"): [
        {KEY_COLUMN: f"v1_{number}", "imagename": f"{number}.png", "question": f"What {number}?", "answer": "a leaf"}
        | {"capability": ["rec"]}
        for number in (1, 2)
    ],
    ("seed_image", "official"): [
        _seed(number, answer, data_id=str(number)) | {"image": None} for number, answer in ((1, "A"), (2, "D"))
    ],
    ("textvqa_val", "official"): [_vqa(1, _TEN) | _NAMED[1], _vqa(2, ["blue"] * 10) | _NAMED[2]],
    ("textvqa_few_shot", "official"): [_vqa(number, _TEN) | _NAMED[number] for number in range(1, 6)],
    ("vizwiz_few_shot", "official"): [
        {"image": f"{number}.png", "question": f"Which {number}?", "answers": [{"answer": word} for word in _TEN]}
        for number in range(1, 6)
    ],
    ("mme", "folders"): [
        {"category": "color", "name": "1", "question": "Is it red? Please answer yes or no.", "answer": "Yes"},
        {"category": "color", "name": "1", "question": "Is it blue? Please answer yes or no.", "answer": "No"},
    ],
    ("cv_bench", "hub"): [
        {"idx": number, "type": source[:2], "task": "Count", "image": stored(number), "question": "How many?"}
        | {"choices": ["0", "1"], "answer": "(B)", "prompt": f"How many {number}?\n(A) 0\n(B) 1", "source": source[3:]}
        for number, source in enumerate(("2D COCO", "2D ADE20K", "3D Omni3D"))
    ],
    ("vlguard_unsafes", "official"): _vlguard(),
    ("vlguard_safe_unsafes", "official"): _vlguard(),
    ("vlguard_safe_safes", "official"): _vlguard(),
    ("vqav2_few_shot", "hub"): [
        _vqa(number, [{"answer": word} for word in _TEN], answer_type="other") for number in range(1, 7)
    ],
    ("textvqa_few_shot", "hub"): [_vqa(number, _TEN) for number in range(1, 7)],
    ("okvqa_few_shot", "hub"): [_vqa(number, ["surfboard"] * 10) for number in range(1, 7)],
    ("vizwiz_few_shot", "hub"): [_vqa(number, _TEN) for number in range(1, 7)],
    ("gqa_few_shot", "vlmevalkit"): [tsv_open(number, "left") for number in range(1, 7)],
    ("gqa_few_shot", "joined"): [
        {"id": str(number), "imageId": stored(number), "question": f"Where {number}?", "answer": "left"}
        for number in range(1, 7)
    ],
    ("coco_few_shot", "hub"): [_caption(number, "answer", "question_id") for number in range(6)],
    ("coco_few_shot", "karpathy"): [
        {"imgid": number, "filename": f"{number}.png", "sentences": _caption(number, "x")["x"], "split": "test"}
        for number in range(6)
    ],
    ("nocaps_few_shot", "hub"): [_caption(number, "annotations_captions") for number in range(6)],
    ("nocaps_few_shot", "captions"): [_caption(number, "answer") for number in range(6)],
    ("textcaps_few_shot", "hub"): [_caption(number, "caption_str") for number in range(6)],
}


def write_rows(rows: Sequence[dict[str, Any]], directory: Path, *, layout: str) -> Path:
    """Write rows the way data of that layout come: parquet, VLMEvalKit's TSV, or JSON with pictures beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    if layout == "vlmevalkit":
        target = directory / "rows.tsv"
        names = list(dict.fromkeys(name for row in rows for name in row))
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t", restval="")
            writer.writeheader()
            writer.writerows(rows)
        return target
    if layout == "folders":
        for row in rows:
            folder = directory / row["category"]
            folder.mkdir(exist_ok=True)
            (folder / f"{row['name']}.png").write_bytes(png(int(row["name"])))
            with (folder / f"{row['name']}.txt").open("a", encoding="utf-8") as file:
                file.write(f"{row['question']}\t{row['answer']}\n")
        return directory
    if layout in ("official", "karpathy"):
        target = directory / "test.json"
        rows = [{name: value for name, value in row.items() if (name, value) != ("image", None)} for row in rows]
        keyed = {row[KEY_COLUMN]: {**row} for row in rows if KEY_COLUMN in row}
        for row in keyed.values():
            row.pop(KEY_COLUMN)
        target.write_text(json.dumps(keyed or rows), encoding="utf-8")
        for key, row in keyed.items():
            if row.get("split") == "test":
                # ScienceQA has a directory per question.
                (directory / "test" / key).mkdir(parents=True)
                (directory / "test" / key / "image.png").write_bytes(png(int(key)))
        pictures = directory / "test"
        pictures.mkdir(exist_ok=True)
        for shade, name in enumerate(("unsafe.png", "safe.png", *(f"{number}.png" for number in range(6)))):
            (pictures / name).write_bytes(png(shade))
        return target
    import pyarrow.parquet  # type: ignore[import-untyped]

    target = directory / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), target)
    return target
