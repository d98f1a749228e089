import errno
import json
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from xgen_mm.conversion import staging, streaming
from xgen_mm.conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, parse_dtype
from xgen_mm.errors import ConversionError
from xgen_mm.output_directory import DirectoryInUseError, DirectoryLock, DiskFullError

from .released_files import CHECKPOINT, IMAGE_ID, weight_names

SHARD_BYTES = 200_000
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def direct(instruct_files: Path) -> State:
    """Weights as `from_pretrained` reads them from the released files."""
    return AutoModelForImageTextToText.from_pretrained(instruct_files).state_dict()


@pytest.fixture(scope="module")
def bare_weights() -> State:
    """Released weights under the names of the training code."""
    tensors = load_file(CHECKPOINT / "model.safetensors")
    return {name.removeprefix("vlm."): tensor for name, tensor in tensors.items()}


def load_weights(directory: Path) -> State:
    state: State = {}
    for path in directory.glob("*.safetensors"):
        state |= load_file(path)
    return state


def assert_same_weights(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def changed_copy(directory: Path, change: Callable[[State], None]) -> Path:
    """The recorded checkpoint in one file, with changed weights."""
    directory.mkdir()
    tensors = load_file(CHECKPOINT / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(CHECKPOINT / "config.json", directory)
    return directory


@pytest.mark.parametrize("max_bytes", [10**9, SHARD_BYTES, 1], ids=["one-file", "shards", "one-tensor-per-file"])
def test_converted_checkpoint_equals_what_direct_loading_reads(
    instruct_files: Path, tmp_path: Path, direct: State, max_bytes: int
) -> None:
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(max_shard_bytes=max_bytes))
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert_same_weights(model.state_dict(), direct)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert report.num_tensors == len(direct)
    assert report.num_parameters == sum(tensor.numel() for tensor in direct.values())
    assert sorted(report.files) == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))


def test_converted_directory_is_complete(converted_files: Path) -> None:
    config = AutoConfig.from_pretrained(converted_files)
    assert config.architectures == ["XGenMMForConditionalGeneration"]
    assert config.dtype == torch.float32
    generation = GenerationConfig.from_pretrained(converted_files)
    assert (generation.eos_token_id, generation.pad_token_id, generation.do_sample) == ([188, 195], 188, False)
    processor = AutoProcessor.from_pretrained(converted_files)
    assert processor.image_token_id == IMAGE_ID
    assert processor.num_latents == config.resampler_config.num_latents
    assert (converted_files / "chat_template.jinja").read_text() == processor.chat_template
    assert "auto_map" not in (converted_files / "config.json").read_text()
    assert not list(converted_files.rglob("*.py"))


def test_report_names_everything_that_is_left_out_with_its_reason(instruct_files: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(dry_run=True))
    heads = {name for name, reason in report.left_over.items() if "pooling head" in reason}
    assert heads == {name for name in report.left_over if name.startswith("vision_encoder.head.")}
    assert set(report.left_over) - heads == {
        "lang_model.model.embed_tokens.weight[200:]",
        "lang_model.lm_head.weight[200:]",
        "lang_model.lm_head.bias[200:]",
    }


def test_dry_run_writes_nothing(instruct_files: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(dry_run=True))
    assert report.num_tensors > 0
    assert list(tmp_path.iterdir()) == []


def test_conversion_to_another_type_casts_every_weight(instruct_files: Path, tmp_path: Path, direct: State) -> None:
    convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(dtype=parse_dtype("bfloat16")))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert_same_weights(model.state_dict(), {name: tensor.bfloat16() for name, tensor in direct.items()})


def test_type_that_is_not_floating_point_is_refused() -> None:
    with pytest.raises(ValueError, match="'int8'; expected one of"):
        parse_dtype("int8")


def test_checksums_fit_all_files(converted_files: Path) -> None:
    content = json.loads((converted_files / "checksums.json").read_text())
    files = {path.relative_to(converted_files).as_posix() for path in converted_files.rglob("*") if path.is_file()}
    assert content["algorithm"] == "crc32"
    assert set(content["files"]) == files - {"checksums.json"}
    for name, digest in content["files"].items():
        assert f"{zlib.crc32((converted_files / name).read_bytes()):08x}" == digest, name


@pytest.mark.parametrize(
    "key",
    [
        "vlm.vision_encoder.post_layernorm.bias",
        "vlm.vision_encoder.head.probe",
        "vlm.vision_tokenizer.layers.1.0.to_kv.weight",
        "vlm.lang_model.lm_head.bias",
        "vlm.lang_model.model.embed_tokens.additional_embedding.weight",
    ],
)
def test_checkpoint_without_one_key_is_refused_and_the_key_named(tmp_path: Path, key: str) -> None:
    source = changed_copy(tmp_path / "in", lambda tensors: tensors.__delitem__(key))
    with pytest.raises(ConversionError, match=f"1 missing: {key}\\."):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoint_with_added_keys_is_refused_and_all_are_named(tmp_path: Path) -> None:
    extra = {"vlm.vision_tokenizer.frame_embs": torch.ones(2), "vlm.other": torch.ones(1)}
    source = changed_copy(tmp_path / "in", lambda tensors: tensors.update(extra))
    with pytest.raises(ConversionError, match="2 unknown") as caught:
        convert_checkpoint(source, tmp_path / "out")
    assert all(name in str(caught.value) for name in extra)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        pytest.param("vlm.vision_tokenizer.latents", (9, 32), id="more-latents"),
        pytest.param("vlm.vision_tokenizer.layers.0.0.to_kv.weight", (95, 32), id="odd-halves"),
        pytest.param("vlm.lang_model.lm_head.weight", (199, 64), id="table-too-short"),
        pytest.param("vlm.lang_model.lm_head.additional_fc.bias", (4,), id="added-row-too-many"),
        pytest.param("vlm.vision_encoder.head.probe", (1, 1, 31), id="dropped-weight"),
    ],
)
def test_checkpoint_with_a_wrong_shape_is_refused_and_the_key_named(
    tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    source = changed_copy(tmp_path / "in", lambda tensors: tensors.update({key: torch.zeros(shape)}))
    with pytest.raises(ConversionError, match="1 of the wrong shape") as caught:
        convert_checkpoint(source, tmp_path / "out")
    assert f"{key} {list(shape)} instead of" in str(caught.value)


def test_checkpoint_with_mixed_prefixes_is_refused(tmp_path: Path) -> None:
    source = changed_copy(tmp_path / "in", lambda tensors: tensors.update({"stray": torch.ones(1)}))
    with pytest.raises(ConversionError, match=r"mixes names with and without `vlm\.`; without: stray"):
        convert_checkpoint(source, tmp_path / "out")


def test_destination_with_content_is_never_overwritten(instruct_files: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exists and is not empty"):
        convert_checkpoint(instruct_files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_empty_destination_is_filled(instruct_files: Path, tmp_path: Path) -> None:
    convert_checkpoint(instruct_files, tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_checkpoint_in_our_layout_is_refused(converted_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="in our layout already; `--reverse`"):
        convert_checkpoint(converted_files, tmp_path / "out")


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="no xGen-MM checkpoint"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def test_truncated_shard_is_named(instruct_files: Path, tmp_path: Path) -> None:
    shutil.copytree(instruct_files, tmp_path / "in")
    shard = tmp_path / "in" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors is truncated"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")


class Interruption(Exception):
    """Stands for whatever ends a process half-way through."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, num_files: int) -> None:
    """Let a conversion write so many weight files, one at a time, and then end it."""
    from xgen_mm.conversion import convert_checkpoint as module

    finished: list[str] = []

    def write(output: streaming.OutputFile, directory: Path, *, report: streaming.Report) -> str:
        digest = streaming.write_safetensors(output, directory, report=report)
        if len(finished) == num_files:
            raise Interruption
        finished.append(output.name)
        return digest

    monkeypatch.setattr(staging, "NUM_WORKERS", 1)
    monkeypatch.setattr(module, "write_safetensors", write)


def test_interrupted_conversion_leaves_nothing_that_loads(
    instruct_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Interruption):
        convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(max_shard_bytes=SHARD_BYTES))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with pytest.raises((OSError, ValueError), match="config"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "out.partial")


def test_destination_that_another_conversion_writes_is_left_alone(instruct_files: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model-00001-of-00002.safetensors").write_text("half of a shard")
    with DirectoryLock(tmp_path / "out"), pytest.raises(DirectoryInUseError, match="written by another run: process"):
        convert_checkpoint(instruct_files, tmp_path / "out")
    assert (tmp_path / "out.partial" / "model-00001-of-00002.safetensors").read_text() == "half of a shard"


def test_full_disk_names_the_destination_and_the_remedy(
    instruct_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xgen_mm.conversion.convert_checkpoint.write_safetensors", fill_disk)
    with pytest.raises(DiskFullError, match=r"out` cannot be written: .*free some space.*same command again"):
        convert_checkpoint(instruct_files, tmp_path / "out")
    monkeypatch.undo()
    convert_checkpoint(instruct_files, tmp_path / "out")


def test_interrupted_conversion_continues_where_it_was(
    instruct_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: State
) -> None:
    options = ConversionOptions(max_shard_bytes=SHARD_BYTES)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interruption):
            convert_checkpoint(instruct_files, tmp_path / "out", options=options)
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=options)
    assert report.kept == report.files[:2]
    assert_same_weights(load_weights(tmp_path / "out"), direct)
    assert not (tmp_path / "out.partial").exists()
    assert staging.damaged_files(tmp_path / "out") == []


def test_damaged_file_of_an_interrupted_conversion_is_written_again(
    instruct_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: State
) -> None:
    options = ConversionOptions(max_shard_bytes=SHARD_BYTES)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interruption):
            convert_checkpoint(instruct_files, tmp_path / "out", options=options)
    first = min((tmp_path / "out.partial").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"\x00")
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=options)
    assert report.kept == report.files[1:2]
    assert_same_weights(load_weights(tmp_path / "out"), direct)


def test_interrupted_conversion_with_other_options_starts_again(
    instruct_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interruption):
            convert_checkpoint(
                instruct_files, tmp_path / "out", options=ConversionOptions(max_shard_bytes=SHARD_BYTES)
            )
    report = convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(dtype="BF16"))
    assert report.kept == []
    assert staging.damaged_files(tmp_path / "out") == []


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["bare", "training-checkpoint"])
def test_training_file_with_tower_equals_the_released_files(
    tmp_path: Path, bare_weights: State, direct: State, is_wrapped: bool
) -> None:
    torch.save({"model_state_dict": bare_weights, "epoch": 1} if is_wrapped else bare_weights, tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=ConversionOptions(config=CHECKPOINT))
    assert_same_weights(load_weights(tmp_path / "out"), direct)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("state_dict", "module."),
        ("model", "_orig_mod."),
        ("module", "_fsdp_wrapped_module."),
        (None, "module._orig_mod."),
        ("model_state_dict", "_orig_mod.module."),
    ],
)
def test_training_file_of_wrapped_modules_equals_the_released_files(
    tmp_path: Path, bare_weights: State, direct: State, key: str | None, prefix: str
) -> None:
    inner = {name.replace("lang_model.", "lang_model._fsdp_wrapped_module."): t for name, t in bare_weights.items()}
    wrapped = {prefix + name: tensor for name, tensor in inner.items()}
    torch.save({key: wrapped, "step": 3} if key else wrapped, tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=ConversionOptions(config=CHECKPOINT))
    assert_same_weights(load_weights(tmp_path / "out"), direct)


@pytest.mark.parametrize("layout", ["released", "ours", "transformers-model", "transformers-tower"])
def test_training_file_takes_the_frozen_tower_from_elsewhere(
    tmp_path: Path, instruct_files: Path, converted_files: Path, bare_weights: State, direct: State, layout: str
) -> None:
    tower = {name.removeprefix("vision_encoder."): t for name, t in bare_weights.items() if "vision_encoder" in name}
    places = {"released": instruct_files, "ours": converted_files}
    prefix = {"transformers-model": "vision_model."}.get(layout, "")
    saved = {prefix + name: tensor for name, tensor in tower.items()}
    other = {"text_model.final_layer_norm.weight": torch.ones(2)} if prefix else {}
    (tmp_path / "tower").mkdir()
    save_file(saved | other, tmp_path / "tower" / "model.safetensors")
    trained = {name: tensor for name, tensor in bare_weights.items() if "vision_encoder" not in name}
    torch.save({"model_state_dict": trained}, tmp_path / "x.pt")

    options = ConversionOptions(config=CHECKPOINT, vision_tower=places.get(layout, tmp_path / "tower"))
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=options)
    assert_same_weights(load_weights(tmp_path / "out"), direct)


def test_training_file_without_tower_asks_for_one(tmp_path: Path, bare_weights: State) -> None:
    trained = {name: tensor for name, tensor in bare_weights.items() if "vision_encoder" not in name}
    torch.save(trained, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"training left the frozen tower out.*`--vision-tower`"):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=ConversionOptions(config=CHECKPOINT))


def test_second_tower_is_refused(instruct_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="has its own vision tower"):
        convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(vision_tower=instruct_files))


def test_tower_directory_without_tower_is_refused(tmp_path: Path, bare_weights: State) -> None:
    trained = {name: tensor for name, tensor in bare_weights.items() if "vision_encoder" not in name}
    torch.save(trained, tmp_path / "x.pt")
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="holds no vision tower"):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=ConversionOptions(vision_tower=tmp_path))


def test_training_file_of_other_sizes_than_released_points_to_the_option(tmp_path: Path, bare_weights: State) -> None:
    torch.save(bare_weights, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="pass `--config`"):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "out")


def test_training_file_gets_its_processor_from_a_tokenizer_directory(
    tmp_path: Path, instruct_files: Path, bare_weights: State
) -> None:
    torch.save(bare_weights, tmp_path / "x.pt")
    options = ConversionOptions(config=CHECKPOINT, tokenizer=instruct_files)
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", options=options)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_token_id == IMAGE_ID
    assert processor.image_processor.image_aspect_ratio == "anyres"
    assert processor.image_processor.size == {"height": 58, "width": 58}


def test_checkpoint_without_tokenizer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert_checkpoint(CHECKPOINT, tmp_path / "out")
    assert "Pass `--tokenizer DIR`" in caplog.text
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_tokenizer_of_another_size_is_refused(tmp_path: Path, instruct_files: Path) -> None:
    shutil.copytree(instruct_files, tmp_path / "tokenizer")
    tokenizer = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": IMAGE_ID, "content": "<extra>"})
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ConversionOptions(tokenizer=tmp_path / "tokenizer")
    with pytest.raises(ConversionError, match="not the tokenizer this checkpoint was made with"):
        convert_checkpoint(CHECKPOINT, tmp_path / "out", options=options)


def test_conversion_can_discard_what_only_the_way_back_needs(instruct_files: Path, tmp_path: Path) -> None:
    convert_checkpoint(instruct_files, tmp_path / "out", options=ConversionOptions(keep_original=False))
    assert not (tmp_path / "out" / "original").exists()


def test_kept_rows_do_not_lie_beside_the_weights(converted_files: Path) -> None:
    # Serving engines read every weight file that lies next to the configuration.
    assert all(name.startswith("model.") or name.startswith("lm_head.") for name in weight_names(converted_files))
    assert (converted_files / "original" / "left_over.safetensors").is_file()


def test_remote_code_beside_the_weights_is_neither_run_nor_copied(instruct_files: Path, converted_files: Path) -> None:
    assert not (instruct_files / "RAN").exists()
    assert not list(converted_files.rglob("*.py"))
