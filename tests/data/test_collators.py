import logging
from typing import TYPE_CHECKING

import pytest
import torch

from tests.data.made_records import conversation, document, jpeg, parts, provenance
from xgen_mm.data.collators import (
    LevelNormaliser,
    LevelReader,
    PaddingCollator,
    RecordCollator,
    TileReader,
    preference_example,
)
from xgen_mm.data.encoding import RecordEncoder, Sample, SampleError
from xgen_mm.data.packing import PackingCollator
from xgen_mm.data.records import Conversation, Document, Picture, PreferencePair, Text, Turn

if TYPE_CHECKING:
    from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor


def damaged() -> Document:
    """A picture whose header is whole and whose pixels are not."""
    whole = jpeg(64, 64)
    return Document((Picture(whole[: len(whole) * 9 // 10]), Text("damaged")), provenance("broken"))


def test_padded_batch_equals_the_processors_with_padding_on_the_right(tiny_processor: "XGenMMProcessor") -> None:
    records = [document("<image>one<image>two", height=20, width=60), document("three")]
    encoder = RecordEncoder(tiny_processor)
    batch = PaddingCollator(tiny_processor, pad_to_multiple_of=8)([encoder(record) for record in records])
    texts = ["<image>one<|endofchunk|><image>two<|endofchunk|><|endoftext|>", "three<|endofchunk|><|endoftext|>"]
    images = [[part.load() for part in records[0].parts if isinstance(part, Picture)], []]
    expected = tiny_processor(
        text=texts, images=images, padding=True, pad_to_multiple_of=8, padding_side="right", return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes"):
        assert torch.equal(batch[name], expected[name]), name
    learned = (batch["attention_mask"] == 1) & (batch["input_ids"] != tiny_processor.image_token_id)
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(~learned, -100))


def test_ragged_batch_has_the_loss_of_its_samples(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor"
) -> None:
    records = [
        conversation("<image><image>?", "Two.", height=20, width=60),
        conversation("None?", "None at all."),
        conversation("<image>?", "One."),
    ]
    collate = RecordCollator(RecordEncoder(tiny_processor))
    losses, counts = [], []
    with torch.no_grad():
        for record in records:
            batch = collate([record])
            losses.append(tiny_model(**batch).loss)
            counts.append(int((batch["labels"] != -100).sum()))
        together = tiny_model(**collate(records)).loss
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)


def test_text_alone_makes_a_batch_without_pictures(tiny_processor: "XGenMMProcessor") -> None:
    batch = RecordCollator(RecordEncoder(tiny_processor))([conversation("Hi", "Hello")])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("mode", ["anyres", "none"])
def test_levels_normalised_later_equal_the_processors_tiles_without_filler(
    tiny_processor: "XGenMMProcessor", mode: str
) -> None:
    tiny_processor.image_processor.image_aspect_ratio = mode
    pictures = [Picture(jpeg(20, 60)), Picture(jpeg(40, 40)), Picture(jpeg(84, 20))]
    padded = TileReader(tiny_processor)(pictures)["pixel_values"]
    levels = LevelReader(tiny_processor)(pictures)
    assert levels["pixel_values"].dtype == torch.uint8
    values = LevelNormaliser(tiny_processor)(levels)["pixel_values"]
    counts = {"anyres": (4, 5, 4), "none": (1, 1, 1)}[mode]
    rows = padded if padded.dim() == 5 else padded[:, None]
    assert torch.equal(values, torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)]))
    assert LevelNormaliser(tiny_processor)({"input_ids": values}) == {"input_ids": values}


@pytest.mark.parametrize("kind", [PaddingCollator, PackingCollator])
def test_damaged_picture_raises_or_costs_the_batch_its_sample(
    tiny_processor: "XGenMMProcessor", caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    encoder = RecordEncoder(tiny_processor)
    samples = [encoder(document("<image>whole")), encoder(damaged())]
    with pytest.raises(SampleError, match="Record `broken` of `made`"):
        kind(tiny_processor)(samples)
    with caplog.at_level(logging.WARNING):
        batch = kind(tiny_processor, on_bad_picture="skip")(samples)
    assert "Record `broken` of `made`" in caplog.text
    assert torch.equal(batch["input_ids"], kind(tiny_processor)(samples[:1])["input_ids"])
    with pytest.raises(SampleError, match="Every sample of a batch"):
        kind(tiny_processor, on_bad_picture="skip")(samples[1:])


def test_record_collator_skips_unusable_records_and_says_which(
    tiny_processor: "XGenMMProcessor", caplog: pytest.LogCaptureFixture
) -> None:
    records = [conversation("no answer", key="empty"), conversation("Hi", "Hello")]
    collate = RecordCollator(RecordEncoder(tiny_processor), on_bad_record="skip")
    with caplog.at_level(logging.WARNING):
        assert collate(records)["input_ids"].shape[0] == 1
    assert "Record `empty`" in caplog.text
    with pytest.raises(SampleError, match="None of the 1 records"):
        collate(records[:1])


def test_picture_that_changes_size_after_its_header_was_read_is_refused(tiny_processor: "XGenMMProcessor") -> None:
    sample = RecordEncoder(tiny_processor)(document("<image>x"))
    changed = Sample(
        input_ids=sample.input_ids,
        labels=sample.labels,
        pictures=(Picture(jpeg(48, 40)),),
        image_sizes=sample.image_sizes,
        provenance=sample.provenance,
    )
    with pytest.raises(ValueError, match="were decoded as"):
        PaddingCollator(tiny_processor)([changed])


def test_preference_example_is_what_trl_collates(tiny_processor: "XGenMMProcessor") -> None:
    vision = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs the `train` extra")
    turns = conversation("<image>What?", "A cat.").turns
    pair = PreferencePair(
        prompt=turns[:1], chosen=turns[1], rejected=Turn("assistant", parts("A dog.")), provenance=provenance()
    )
    example = preference_example(pair)
    assert example["prompt"] == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    collator = vision.DataCollatorForVisionPreference(processor=tiny_processor)
    batch = collator([example])
    assert batch["input_ids"].shape[0] == 2
    assert batch["pixel_values"].shape[0] == 2


def test_preference_example_picture_in_an_answer_is_refused() -> None:
    turns = conversation("Draw", "<image>").turns
    pair = PreferencePair(prompt=turns[:1], chosen=turns[1], rejected=turns[1], provenance=provenance())
    with pytest.raises(ValueError, match="picture in an answer"):
        preference_example(pair)


def test_conversation_record_keeps_its_provenance_in_the_sample(tiny_processor: "XGenMMProcessor") -> None:
    record = conversation("Hi", "Hello", key="42")
    assert isinstance(record, Conversation)
    assert RecordEncoder(tiny_processor)(record).provenance.key == "42"
