from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.data.made_records import (
    RELEASED_ROLES,
    conversation,
    document,
    golden,
    jpeg,
    parts,
    phi3_like_tokenizer,
    provenance,
)
from xgen_mm.data.encoding import RecordEncoder, SampleError, picture_size
from xgen_mm.data.labels import TokenLimits, label_tokens
from xgen_mm.data.records import Conversation, Document, Picture, Record, Text, Turn
from xgen_mm.data.text_forms import RELEASED_FINE_TUNING, TextSettings, WrittenRecord, write_record

if TYPE_CHECKING:
    from xgen_mm import XGenMMProcessor

ALPHABET = ["a", " ", "\n", "é", "☃", "12", "the cat", " <image>", "<|end|>", "日本", "  ", "\t", "."]


@pytest.fixture(scope="module")
def packaged_processor() -> "XGenMMProcessor":
    from xgen_mm import XGenMMProcessor
    from xgen_mm.tiny.checkpoint import tiny_checkpoint

    return XGenMMProcessor.from_pretrained(tiny_checkpoint())


@pytest.fixture(scope="module")
def phi3_like_processor() -> "XGenMMProcessor":
    from xgen_mm import XGenMMImageProcessor, XGenMMProcessor

    image_processor = XGenMMImageProcessor(size={"height": 28, "width": 28}, image_aspect_ratio="none")
    return XGenMMProcessor(image_processor, phi3_like_tokenizer(), num_latents=1)


def tokens(processor: "XGenMMProcessor", ids: Any) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens([int(token) for token in ids])


def learned_tokens(processor: "XGenMMProcessor", sample: Any) -> list[str]:
    return tokens(processor, sample.labels[sample.labels != -100])


@pytest.mark.parametrize("name", golden()["cases"])
def test_released_settings_give_the_released_ids_and_labels(phi3_like_processor: "XGenMMProcessor", name: str) -> None:
    recorded = golden()
    case, pieces = recorded["cases"][name], recorded["pieces"]
    turns = tuple(Turn(RELEASED_ROLES[turn["from"]], parts(turn["value"])) for turn in case["conversation"])
    sample = RecordEncoder(phi3_like_processor, settings=RELEASED_FINE_TUNING)(Conversation(turns, provenance()))
    assert tokens(phi3_like_processor, sample.input_ids) == [pieces[str(token)] for token in case["input_ids"]]
    assert (sample.labels != -100).tolist() == [label != -100 for label in case["labels"]]
    assert np.array_equal(sample.labels[sample.labels != -100], sample.input_ids[sample.labels != -100])


def test_marks_that_swallow_white_space_keep_it_out_of_answers(phi3_like_processor: "XGenMMProcessor") -> None:
    sample = RecordEncoder(phi3_like_processor)(conversation("<image>the", "\n  The second one  ", "it", "A cat"))
    assert learned_tokens(phi3_like_processor, sample) == [
        *["▁The", "▁second", "▁one", "▁▁", "<|end|>"],
        *["▁A", "▁cat", "<|end|>"],
    ]


def test_pictures_inside_answers_are_not_learned(phi3_like_processor: "XGenMMProcessor") -> None:
    sample = RecordEncoder(phi3_like_processor)(conversation("is it", "<image> The cat <image>"))
    assert tokens(phi3_like_processor, sample.input_ids).count("<image>") == 2
    assert learned_tokens(phi3_like_processor, sample) == ["▁", "▁The", "▁cat", "▁", "<|end|>"]


def random_record(rng: np.random.Generator) -> Record:
    picture = Picture(jpeg(20, 30))

    def some_parts() -> tuple[Any, ...]:
        texts = [Text("".join(rng.choice(ALPHABET, size=rng.integers(0, 6)))) for _ in range(3)]
        return tuple((picture, *texts)[index] for index in rng.integers(0, 4, size=rng.integers(1, 4)))

    turns = [Turn(role, some_parts()) for _ in range(rng.integers(1, 4)) for role in ("user", "assistant")]
    kinds: list[Record] = [Conversation(tuple(turns), provenance()), Document(some_parts(), provenance())]
    return kinds[rng.integers(0, 2)]


@pytest.mark.parametrize("kind", ["packaged_processor", "phi3_like_processor"])
def test_ids_equal_the_processors_and_labels_spell_the_learned_text(kind: str, request: pytest.FixtureRequest) -> None:
    processor = request.getfixturevalue(kind)
    encoder = RecordEncoder(processor)
    rng = np.random.default_rng(0)
    for _ in range(40):
        record = random_record(rng)
        written = write_record(record, processor, settings=encoder.settings)
        images = [picture.load() for picture in written.pictures]
        expected = processor(text=written.text, images=images or None, add_special_tokens=False)["input_ids"][0]
        sample = encoder(record)
        assert sample.input_ids.tolist() == list(expected), written.text
        spelled = processor.tokenizer.decode(sample.labels[sample.labels != -100])
        learned = "".join(written.text[start:end] for start, end in written.learned)
        # White space at the edges of an answer may belong to the marks around it.
        assert "".join(spelled.split()) == "".join(learned.replace("<image>", "").split()), written.text


def test_stop_tokens_of_documents_are_learned_unless_switched_off(packaged_processor: "XGenMMProcessor") -> None:
    record = document("<image>one<image>two")
    stops = ["<|endofchunk|>", "<|endofchunk|>", "<|endoftext|>"]
    by_default = learned_tokens(packaged_processor, RecordEncoder(packaged_processor)(record))
    assert [token for token in by_default if token.startswith("<")] == stops
    settings = TextSettings(supervise_stop_tokens=False)
    without = learned_tokens(packaged_processor, RecordEncoder(packaged_processor, settings=settings)(record))
    assert without == [token for token in by_default if token not in stops]


@pytest.mark.parametrize(
    ("limits", "pictures"),
    [
        pytest.param(TokenLimits(max_tokens=200), 2, id="everything-fits"),
        pytest.param(TokenLimits(max_tokens=30), 1, id="second-picture-does-not-fit"),
        pytest.param(TokenLimits(max_text_tokens=4), 1, id="text-limit-counts-a-picture-once"),
    ],
)
def test_sample_over_its_limits_is_cut_in_front_of_a_picture(
    packaged_processor: "XGenMMProcessor", limits: TokenLimits, pictures: int
) -> None:
    record = document("<image>aqz<image>bqz", height=60, width=60)
    whole = RecordEncoder(packaged_processor)(record)
    per_picture = int((whole.input_ids == packaged_processor.image_token_id).sum()) // 2
    sample = RecordEncoder(packaged_processor, limits=limits)(record)
    assert (len(sample.pictures), len(sample.image_sizes)) == (pictures, pictures)
    assert int((sample.input_ids == packaged_processor.image_token_id).sum()) == pictures * per_picture
    assert sample.input_ids.tolist() == whole.input_ids[: len(sample)].tolist()
    assert sample.is_cut is (pictures == 1)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param(conversation("Only a question"), "nothing to learn", id="no-answer"),
        pytest.param(
            Document((Picture(b"no picture"), Text("x")), provenance()), "unreadable picture", id="no-header"
        ),
    ],
)
def test_record_that_cannot_be_used_is_refused_with_a_reason(
    packaged_processor: "XGenMMProcessor", record: Record, reason: str
) -> None:
    with pytest.raises(SampleError, match="Record `1` of `made`") as caught:
        RecordEncoder(packaged_processor)(record)
    assert caught.value.reason == reason


def test_picture_size_follows_the_orientation_in_the_header() -> None:
    from io import BytesIO

    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    picture = Picture(buffer.getvalue())
    assert picture_size(picture) == (30, 20)
    assert (picture.load().height, picture.load().width) == (30, 20)


@pytest.mark.parametrize("name", ["max_tokens", "max_text_tokens"])
def test_sample_exactly_as_long_as_its_limit_is_kept_whole(packaged_processor: "XGenMMProcessor", name: str) -> None:
    record = document("<image>aqz", height=60, width=60)
    whole = RecordEncoder(packaged_processor)(record)
    num_image_tokens = int((whole.input_ids == packaged_processor.image_token_id).sum())
    length = len(whole) if name == "max_tokens" else len(whole) - num_image_tokens + 1
    fitting = RecordEncoder(packaged_processor, limits=TokenLimits(**{name: length}))(record)
    assert (fitting.input_ids.tolist(), fitting.is_cut) == (whole.input_ids.tolist(), False)
    shorter = RecordEncoder(packaged_processor, limits=TokenLimits(**{name: length - 1}))(record)
    assert (shorter.input_ids.tolist(), shorter.is_cut) == (whole.input_ids[:-1].tolist(), True)


def test_picture_that_ends_at_the_limit_is_kept(packaged_processor: "XGenMMProcessor") -> None:
    record = document("<image>aqz<image>b", height=60, width=60)
    whole = RecordEncoder(packaged_processor)(record)
    end = int(np.flatnonzero(whole.input_ids == packaged_processor.image_token_id)[-1]) + 1
    for limit, pictures in ((end, 2), (end - 1, 1)):
        sample = RecordEncoder(packaged_processor, limits=TokenLimits(max_tokens=limit))(record)
        assert (len(sample.pictures), sample.is_cut) == (pictures, True)


def test_token_that_begins_where_a_learned_stretch_ends_is_not_learned(packaged_processor: "XGenMMProcessor") -> None:
    first = "<|endofchunk|>"
    written = WrittenRecord(text=f"{first}<|end|>", learned=((0, len(first)),), pictures=())
    sample = label_tokens(
        written,
        packaged_processor,
        image_lengths=[],
        settings=TextSettings(),
        limits=TokenLimits(),
        is_document=False,
    )
    assert tokens(packaged_processor, sample.input_ids) == [first, "<|end|>"]
    assert learned_tokens(packaged_processor, sample) == [first]
