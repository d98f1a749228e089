import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from xgen_mm.conversion.convert_checkpoint import ConversionOptions, convert_checkpoint
from xgen_mm.conversion.restore_checkpoint import restore_checkpoint
from xgen_mm.errors import ConversionError

from .released_files import CHECKPOINT, REMOTE_MODULES


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


def bare_weights() -> dict[str, torch.Tensor]:
    tensors = load_file(CHECKPOINT / "model.safetensors")
    return {name.removeprefix("vlm."): tensor for name, tensor in tensors.items()}


def test_restored_files_are_the_released_ones_byte_for_byte(
    instruct_files: Path, converted_files: Path, tmp_path: Path
) -> None:
    restore_checkpoint(converted_files, tmp_path / "back")
    released = digests(instruct_files)
    # Code is not kept.
    assert digests(tmp_path / "back") == {name: released[name] for name in released if name not in REMOTE_MODULES}


def test_restored_files_of_a_single_file_checkpoint_are_the_same(tmp_path: Path) -> None:
    convert_checkpoint(CHECKPOINT, tmp_path / "out", options=ConversionOptions(max_shard_bytes=100_000))
    restore_checkpoint(tmp_path / "out", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(CHECKPOINT)


def test_restored_checkpoint_of_another_type_keeps_names_and_shapes(instruct_files: Path, tmp_path: Path) -> None:
    convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(dtype="BF16"))
    report = restore_checkpoint(tmp_path / "out", tmp_path / "back")
    assert set(report.dtypes) == {"BF16"}
    for path in instruct_files.glob("*.safetensors"):
        expected = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        found = load_file(tmp_path / "back" / path.name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["bare", "training-checkpoint"])
def test_restored_training_file_holds_the_same_tensors(tmp_path: Path, is_wrapped: bool) -> None:
    weights = bare_weights()
    torch.save({"model_state_dict": weights, "epoch": 2} if is_wrapped else weights, tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=ConversionOptions(config=CHECKPOINT))
    restore_checkpoint(tmp_path / "out", tmp_path / "back.pt")
    found = torch.load(tmp_path / "back.pt", weights_only=True)
    found = found["model_state_dict"] if is_wrapped else found
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_restored_training_file_holds_no_tower_that_came_from_elsewhere(instruct_files: Path, tmp_path: Path) -> None:
    trained = {name: tensor for name, tensor in bare_weights().items() if "vision_encoder" not in name}
    torch.save(trained, tmp_path / "x.pt")
    options = ConversionOptions(config=CHECKPOINT, vision_tower=instruct_files)
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=options)
    restore_checkpoint(tmp_path / "out", tmp_path / "back.pt")
    assert set(torch.load(tmp_path / "back.pt", weights_only=True)) == set(trained)


def test_flipped_bit_is_found_and_the_file_named(converted_files: Path, tmp_path: Path) -> None:
    shutil.copytree(converted_files, tmp_path / "out")
    shard = min((tmp_path / "out").glob("model-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ConversionError, match=shard.name):
        restore_checkpoint(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_fine_tuned_model_goes_back_with_the_record_of_its_start(converted_files: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(converted_files)
    with torch.no_grad():
        model.model.resampler.latents.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    restore_checkpoint(tmp_path / "tuned", tmp_path / "back", original=converted_files)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_checkpoint_without_record_says_what_to_do(converted_files: Path, tmp_path: Path) -> None:
    AutoModelForImageTextToText.from_pretrained(converted_files).save_pretrained(tmp_path / "tuned")
    with pytest.raises(ConversionError, match="keeps no record of its original"):
        restore_checkpoint(tmp_path / "tuned", tmp_path / "back")


def test_checkpoint_with_missing_and_unknown_weights_is_refused_and_they_are_named(
    converted_files: Path, tmp_path: Path
) -> None:
    AutoModelForImageTextToText.from_pretrained(converted_files).save_pretrained(tmp_path / "tuned")
    path = tmp_path / "tuned" / "model.safetensors"
    weights = load_file(path)
    weights["adapter.weight"] = weights.pop("lm_head.bias")
    save_file(weights, path)
    with pytest.raises(ConversionError, match=r"1 missing: lm_head\.bias; 1 unknown: adapter\.weight"):
        restore_checkpoint(tmp_path / "tuned", tmp_path / "back", original=converted_files)


def test_dry_run_of_the_way_back_writes_nothing(converted_files: Path, tmp_path: Path) -> None:
    report = restore_checkpoint(converted_files, tmp_path / "back", dry_run=True)
    assert len(report.files) == 3
    assert list(tmp_path.iterdir()) == []


def test_damaged_record_is_refused(converted_files: Path, tmp_path: Path) -> None:
    shutil.copytree(converted_files, tmp_path / "out")
    (tmp_path / "out" / "original" / "layout.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"layout\.json is damaged"):
        restore_checkpoint(tmp_path / "out", tmp_path / "back")


def test_record_that_names_files_elsewhere_is_refused(converted_files: Path, tmp_path: Path) -> None:
    shutil.copytree(converted_files, tmp_path / "out")
    record = tmp_path / "out" / "original" / "layout.json"
    record.write_text(record.read_text().replace("model-00001-of-00003", "../../elsewhere"))
    with pytest.raises(ConversionError, match="names files outside its directory"):
        restore_checkpoint(tmp_path / "out", tmp_path / "back")
