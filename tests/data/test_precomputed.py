import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.data.made_records import conversation, document, jpeg
from xgen_mm.data import precomputed
from xgen_mm.data.collators import PaddingCollator
from xgen_mm.data.encoding import RecordEncoder, Sample
from xgen_mm.data.packing import PackingCollator
from xgen_mm.data.precomputed import FeatureReader, FeatureStoreError, FeatureWriter
from xgen_mm.data.records import Picture, Record, pictures_of
from xgen_mm.output_directory import DirectoryInUseError

if TYPE_CHECKING:
    from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor

# On canvases of 1 x 3, 2 x 2 and 3 x 1 tiles, and with text alone.
RECORDS: list[Record] = [
    conversation("<image>What number is it?", "Seven.", height=20, width=60),
    conversation("Hi", "Hello"),
    document("<image>one<image>two", height=40, width=40),
    document("<image>three", height=84, width=20),
]


@pytest.fixture
def samples(tiny_processor: "XGenMMProcessor") -> list[Sample]:
    encoder = RecordEncoder(tiny_processor)
    return [encoder(record) for record in RECORDS]


def write(directory: Path, model: "XGenMMForConditionalGeneration", processor: "XGenMMProcessor") -> FeatureWriter:
    writer = FeatureWriter(directory, model=model, processor=processor, pictures_per_shard=2)
    writer.add(picture for record in RECORDS for picture in pictures_of(record))
    writer.flush()
    return writer


@pytest.mark.parametrize("grouping", ["raster_chunks", "tile", "image"])
@pytest.mark.parametrize("kind", [PaddingCollator, PackingCollator])
def test_stored_features_give_the_loss_and_gradients_of_the_pictures(
    tiny_model: "XGenMMForConditionalGeneration",
    tiny_processor: "XGenMMProcessor",
    tmp_path: Path,
    kind: type,
    grouping: str,
) -> None:
    tiny_model.config.tile_grouping = tiny_processor.tile_grouping = grouping
    tiny_model.model.vision_tower.requires_grad_(False)
    encoder = RecordEncoder(tiny_processor)
    samples = [encoder(record) for record in RECORDS]
    write(tmp_path, tiny_model, tiny_processor)
    reader = FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    results = []
    for collator in (kind(tiny_processor), kind(tiny_processor, pictures=reader)):
        batch = collator(samples)
        tiny_model.zero_grad()
        loss = tiny_model(**batch).loss
        loss.backward()
        gradients = {
            name: weight.grad.clone() for name, weight in tiny_model.named_parameters() if weight.requires_grad
        }
        results.append((loss.detach(), gradients))
    assert "pixel_values" not in batch
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)
    assert any("resampler" in name for name in results[0][1])


def test_writer_goes_on_where_it_was_and_computes_nothing_twice(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    write(tmp_path, tiny_model, tiny_processor)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["features-00000.safetensors", "features-00001.safetensors", "fingerprint.json"]
    again = FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    assert again.add([picture for record in RECORDS for picture in pictures_of(record)]) == 0
    assert again.add([Picture(jpeg(30, 30, seed=9))]) == 1
    again.flush()
    assert (tmp_path / "features-00002.safetensors").is_file()


def test_second_writer_is_refused_while_the_first_one_is_there(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    writer = write(tmp_path, tiny_model, tiny_processor)
    with pytest.raises(DirectoryInUseError, match="is being written by another run: process"):
        FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    del writer
    FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)


def test_picture_without_features_is_named(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    write(tmp_path, tiny_model, tiny_processor)
    reader = FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    with pytest.raises(FeatureStoreError, match="lacks the features of 1 of 1 pictures"):
        reader([Picture(jpeg(30, 30, seed=9))])


def test_features_of_another_tower_or_of_other_tiles_are_refused(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    write(tmp_path, tiny_model, tiny_processor)
    tiny_processor.image_processor.image_mean = [0.4, 0.4, 0.4]
    with pytest.raises(FeatureStoreError, match="another image_processor"):
        FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    tiny_processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    with torch.no_grad():
        next(tiny_model.model.vision_tower.parameters()).mul_(1.01)
    with pytest.raises(FeatureStoreError, match="another tower"):
        FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    with pytest.raises(FeatureStoreError, match="another tower"):
        FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)


def test_reader_without_features_says_what_is_missing(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"fingerprint\.json"):
        FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)


def test_reader_works_in_another_process(
    tiny_model: "XGenMMForConditionalGeneration",
    tiny_processor: "XGenMMProcessor",
    samples: list[Sample],
    tmp_path: Path,
) -> None:
    write(tmp_path, tiny_model, tiny_processor)
    reader = FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    first = reader(samples[0].pictures)
    copy = pickle.loads(pickle.dumps(reader))
    second = copy(samples[0].pictures)
    features = [batch["mm_encoder_outputs"]["image"].last_hidden_state for batch in (first, second)]
    assert torch.equal(*features)
    assert json.loads((tmp_path / "fingerprint.json").read_text(encoding="utf-8"))["has_sizes"] is True


def test_model_features_that_do_not_fit_the_sizes_are_refused(tiny_model: "XGenMMForConditionalGeneration") -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    outputs = {"image": BaseModelOutputWithPooling(last_hidden_state=torch.zeros(2, 16, 32))}
    ids = torch.full((1, 8), tiny_model.config.image_token_id)
    with pytest.raises(ValueError, match="holds 2 tiles but `image_sizes` asks for 4"):
        tiny_model(input_ids=ids, mm_encoder_outputs=outputs, image_sizes=torch.tensor([[20, 60]]))


def test_writer_has_its_directory_alone_and_numbers_around_what_lies_there(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", tmp_path: Path
) -> None:
    pictures = [Picture(jpeg(30, 30, seed=number)) for number in range(4)]
    writer = FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    with pytest.raises(DirectoryInUseError, match="is being written by another run"):
        FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    # A number that a writer had taken and not finished when it was killed, and a gap that a deleted file left.
    (tmp_path / "features-00001.unfinished").touch()
    for picture in pictures:
        writer.add([picture])
        writer.flush()
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"features-0000{number}.safetensors" for number in (0, 2, 3, 4)]
    (tmp_path / names[0]).unlink()
    writer.add([Picture(jpeg(30, 30, seed=9))])
    writer.flush()
    reader = FeatureReader(tmp_path, model=tiny_model, processor=tiny_processor)
    assert len(reader([*pictures[1:], Picture(jpeg(30, 30, seed=9))])["image_sizes"]) == 4


def test_shards_written_at_the_same_time_have_names_of_their_own(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from xgen_mm.data.precomputed import _reserve_shard

    def write_shard(number: int) -> Path:
        path, unfinished = _reserve_shard(tmp_path)
        unfinished.rename(path)
        return path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(write_shard, range(64)))
    assert len(set(paths)) == 64


def test_fingerprint_of_another_writer_is_compared_and_never_replaced(
    tiny_model: "XGenMMForConditionalGeneration",
    tiny_processor: "XGenMMProcessor",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = json.dumps({"tower": "another", "image_processor": {}, "has_sizes": True})
    link = precomputed.os.link

    def link_later(source: Path, target: Path) -> None:
        target.write_text(other, encoding="utf-8")
        link(source, target)

    monkeypatch.setattr(precomputed.os, "link", link_later)
    with pytest.raises(FeatureStoreError, match="another tower"):
        FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprint.json"]
    assert (tmp_path / "fingerprint.json").read_text(encoding="utf-8") == other


@pytest.mark.parametrize("name", ["features-00000.safetensors", "fingerprint.json"])
@pytest.mark.parametrize("kind", [FeatureReader, FeatureWriter])
def test_cut_file_of_features_is_named_with_the_remedy(
    tiny_model: "XGenMMForConditionalGeneration",
    tiny_processor: "XGenMMProcessor",
    tmp_path: Path,
    kind: type,
    name: str,
) -> None:
    write(tmp_path, tiny_model, tiny_processor)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(FeatureStoreError, match=rf"{name}` is .*(anew|again)"):
        kind(tmp_path, model=tiny_model, processor=tiny_processor)


def test_features_that_cannot_be_written_are_kept_for_another_try(
    tiny_model: "XGenMMForConditionalGeneration",
    tiny_processor: "XGenMMProcessor",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = FeatureWriter(tmp_path, model=tiny_model, processor=tiny_processor)
    writer.add([Picture(jpeg(30, 30, seed=1))])

    def fail(tensors: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(precomputed, "save_file", fail)
        with pytest.raises(FeatureStoreError, match=r"features-00000\.safetensors` cannot be written .*Make room"):
            writer.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprint.json"]
    writer.flush()
    assert (tmp_path / "features-00000.safetensors").is_file()
