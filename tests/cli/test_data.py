"""`xgen-mm data check`: what it counts, how it says so, and what it draws."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm
from PIL import Image

from xgen_mm.anyres import CellBox
from xgen_mm.cli import contact_sheet
from xgen_mm.cli import main as entry
from xgen_mm.cli.contact_sheet import (
    FILLS,
    MASKED,
    TILE,
    WIDTH,
    SamplePanel,
    Segment,
    TiledPicture,
    draw_contact_sheet,
)
from xgen_mm.data.formats.registry import FORMATS

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"


@pytest.fixture
def mixed_rows(tmp_path: Path) -> Path:
    """Two good rows, one with two pictures of different shape, and two broken ones."""
    shutil.copytree(FIXTURES / "pictures", tmp_path / "pictures")
    Image.new("RGB", (100, 30), (0, 120, 0)).save(tmp_path / "wide.png")
    said = [{"from": "human", "value": "<image><image>\nSame?"}, {"from": "gpt", "value": "No."}]
    rows = [
        {"id": "good", "image": ["pictures/red.png", "wide.png"], "conversations": said},
        {"id": "text", "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"id": "gone", "image": "gone.png", "conversations": said},
        {"id": "few", "image": ["wide.png"], "conversations": said},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "rows.json"


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert entry.main(["data", "check", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_data_check_json_counts_rows_pictures_faults_and_tokens(
    mixed_rows: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_json(capsys, str(mixed_rows), "--format", "llava_json", "--model", str(checkpoint))
    assert [found[name] for name in ("rows", "records", "pictures", "unfetched_urls")] == [4, 2, 2, 0]
    assert found["bad_rows"] == {"missing image": 1, "more <image> than images": 1}
    assert found["kinds"] == {"Conversation": 2}
    tokens = found["tokens"]
    # 48 x 64 and 30 x 100 pixels on 28-pixel tiles of four tokens: 2 x 2 tiles and 1 x 3 tiles, each with a thumbnail.
    assert tokens["image"] == 4 * (5 + 4)
    assert sum(entry["records"] for entry in tokens["histogram"]) == found["measured_records"] == 2
    assert tokens["min"] < tokens["max"] <= tokens["histogram"][-1]["up_to"]
    assert 0 < tokens["learned"] < tokens["total"] == tokens["min"] + tokens["max"]


def test_data_check_text_lists_reasons_with_examples(mixed_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["data", "check", str(mixed_rows), "--format", "llava_json"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "Rows 4, 2 of them broken" in shown
    assert "1 missing image" in shown
    assert any(line.startswith("Row `few` of `llava_json`, `image`: 2 `<image>` for 1 images") for line in shown)
    assert any(line.startswith("up to 64 ") or line.startswith("up to 128 ") for line in shown)


def test_data_check_raise_policy_stops_with_one_line(mixed_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["data", "check", str(mixed_rows), "--format", "llava_json", "--policy", "raise"]) == 2
    error = capsys.readouterr().err
    assert "xgen-mm: error: Row `gone` of `llava_json`, `image[0]`: there is no file 'gone.png'" in error


def test_data_check_limit_and_options_reach_the_reader(mixed_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_json(capsys, str(mixed_rows), "--format", "llava_json", "--limit", "2", "--option", "max_images=1")
    assert found["rows"] == 2
    assert found["bad_rows"] == {"too many images": 1}


def test_data_check_truncated_picture_is_a_broken_row(mixed_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red = mixed_rows.parent / "pictures" / "red.png"
    red.write_bytes(red.read_bytes()[:-60])
    found = check_json(capsys, str(mixed_rows), "--format", "llava_json")
    assert found["bad_rows"]["unreadable image"] == 1


def test_data_check_urls_are_counted_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    found = check_json(capsys, str(FIXTURES / "obelics.parquet"), "--format", "obelics")
    assert [found[name] for name in ("records", "unfetched_urls", "measured_records")] == [1, 2, 0]


def test_data_check_preference_pairs_are_measured_by_their_longer_side(capsys: pytest.CaptureFixture[str]) -> None:
    found = check_json(capsys, str(FIXTURES / "vlfeedback_rows.jsonl"), "--format", "vlfeedback")
    assert found["kinds"] == {"PreferencePair": 1}
    assert found["tokens"]["min"] == found["tokens"]["max"] > 0


def test_data_check_picture_shows_tiles_padding_and_learned_text(
    mixed_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "sheet.png"
    arguments = ["data", "check", str(mixed_rows), "--format", "llava_json", "--picture", str(target)]
    assert entry.main(arguments) == 0
    assert f"Wrote {target}" in capsys.readouterr().err
    with Image.open(target) as sheet:
        colours = {colour for _, colour in sheet.getcolors(maxcolors=2**20) or ()}
        assert sheet.width == WIDTH
    # The disc, the wide picture, the hatching of padding, and all three kinds of text.
    assert {(255, 0, 0), (0, 120, 0), MASKED, *FILLS.values()} <= colours


def test_data_check_picture_shows_both_answers_of_a_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[SamplePanel] = []

    def draw(panels: list[SamplePanel], **options: Any) -> Image.Image:
        drawn.extend(panels)
        return draw_contact_sheet(panels, **options)

    monkeypatch.setattr(contact_sheet, "draw_contact_sheet", draw)
    arguments = ["data", "check", str(FIXTURES / "vlfeedback_rows.jsonl"), "--format", "vlfeedback"]
    assert entry.main([*arguments, "--picture", str(tmp_path / "sheet.png")]) == 0
    learned = [[segment.text for segment in panel.segments if segment.kind == "learned"] for panel in drawn]
    assert learned == [["A red disc on white.<|end|>"], ["A cat.<|end|>"]]
    assert [len(panel.pictures) for panel in drawn] == [1, 0]
    assert ["chosen" in drawn[0].heading, "rejected" in drawn[1].heading] == [True, True]
    capsys.readouterr()


def test_data_check_progress_moves_with_every_row(
    mixed_rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"disable": False, "ncols": 80})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    check_json(capsys, str(mixed_rows), "--format", "llava_json", "--limit", "3")
    assert [(bar.n, bar.total) for bar in bars] == [(3, 3)]


def test_data_check_picture_without_a_sample_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "check", str(FIXTURES / "obelics.parquet"), "--format", "obelics"]
    assert entry.main([*arguments, "--picture", str(tmp_path / "sheet.png")]) == 2
    assert "has no sample to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION"),
        (["check", "x"], "the following arguments are required: --format"),
        (["check", "x", "--format", "obelix"], "Did you mean `obelics`?"),
        (["check", "gone.json", "--format", "obelics"], "`gone.json` is no file, directory or pattern"),
        (["check", "x", "--format", "obelics", "--limit", "0"], "'0' is no whole number above 0"),
        (["check", "x", "--format", "vlguard", "--option", "subsets"], "'subsets' is no option; write NAME=VALUE"),
        (["check", "x", "--format", "vlguard", "--option", "subsets=[a]"], "expected some of: unsafes"),
        (["check", "x", "--format", "vlguard", "--option", "subsets=["], "is no YAML"),
    ],
    ids=["action", "format", "unknown-format", "path", "limit", "option", "option-value", "option-yaml"],
)
def test_data_check_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_data_check_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entry.main(["data", "check", "--help"])
    shown = capsys.readouterr().out.split()
    assert {f"{name}".rstrip(",.") for name in FORMATS} <= {word.rstrip(",.") for word in shown}


def tiled(content: CellBox | None) -> TiledPicture:
    tile = Image.new("RGB", (28, 28), (10, 20, 30))
    return TiledPicture(
        original=Image.new("RGB", (80, 40)),
        caption="picture",
        tiles=(tile,) * 3,
        grid=(1, 2),
        content=content,
        cells_per_tile=4,
        num_fillers=2,
    )


@pytest.mark.parametrize(
    ("content", "share"),
    [(None, 0.0), (CellBox(0, 4, 0, 8), 0.0), (CellBox(1, 3, 0, 8), 0.5), (CellBox(0, 4, 2, 6), 0.5)],
    ids=["no-mask", "full", "rows", "columns"],
)
def test_contact_sheet_hatches_just_the_padding(content: CellBox | None, share: float) -> None:
    panel = SamplePanel(heading="one", pictures=(tiled(content),), segments=())
    pixels = np.asarray(draw_contact_sheet([panel], title="sheet"))
    legend = np.asarray(draw_contact_sheet([], title="sheet"))
    hatched = (pixels == MASKED).all(axis=-1).sum() - (legend == MASKED).all(axis=-1).sum()
    assert hatched == pytest.approx(2 * TILE**2 * share / 7, rel=0.1)


def test_contact_sheet_long_text_is_cut_and_grows_with_its_lines() -> None:
    heights = []
    for length in (10, 100, 50_000, 100_000):
        panel = SamplePanel(heading="x" * 500, pictures=(), segments=(Segment("naïve 中\n" * length, "learned"),))
        heights.append(draw_contact_sheet([panel], title="t" * 500).height)
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_data_command_is_imported_without_torch() -> None:
    code = "import sys, xgen_mm.cli.data; print(sorted(sys.modules.keys() & {'datasets', 'torch', 'transformers'}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("damage", ["missing", "damaged", "no-turns"])
def test_data_check_of_broken_rows_alone_fails(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    row = {"id": "1", "image": f"{damage}.png", "conversations": [] if damage == "no-turns" else turns}
    (tmp_path / "rows.json").write_text(json.dumps([row, row]), encoding="utf-8")
    command = ["data", "check", str(tmp_path / "rows.json"), "--format", "llava_json"]
    assert entry.main(command) == 1
    assert "Rows       2, 2 of them broken" in capsys.readouterr().out
