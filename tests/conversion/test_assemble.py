"""New models from several towers and language models: exact weights, unchanged text, pictures that work, files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from tests.conversion.tiny_parts import PAIRS, Parts, clip, llama, mistral, phi_3, save_pair, siglip
from xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.conversion.assemble import Assembly, AssemblySettings, assemble, build_from_plan, plan_assembly

SETTINGS = AssemblySettings(num_latents=4, resampler_layers=2)
PICTURE = Image.effect_noise((60, 40), 80).convert("RGB")
CONVERSATION = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is this?"}]}
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair of parts, the bare language model, the new model, and the new model saved and loaded again."""

    parts: Parts
    bare: PreTrainedModel
    assembly: Assembly
    loaded: Any
    loaded_processor: Any


@pytest.fixture(scope="module", params=PAIRS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    parts = save_pair(request.param, directory)
    assembly = assemble(parts.vision, parts.text, settings=SETTINGS)
    assembly.save(directory / "new")
    return Case(
        parts=parts,
        bare=AutoModelForCausalLM.from_pretrained(parts.text).eval(),
        assembly=assembly,
        loaded=AutoModelForImageTextToText.from_pretrained(directory / "new").eval(),
        loaded_processor=AutoProcessor.from_pretrained(directory / "new"),
    )


@pytest.fixture(scope="module")
def siglip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


def encode(processor: Any, conversation: list[dict[str, Any]] = CONVERSATION) -> dict[str, torch.Tensor]:
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(inputs)


def some_ids(model: PreTrainedModel) -> torch.Tensor:
    return torch.arange(0, model.config.vocab_size, 7)[None]


def test_tower_weights_are_taken_over_exactly(case: Case) -> None:
    vision = AutoModel.from_pretrained(case.parts.vision)
    tower = getattr(vision, "vision_model", vision)
    taken = case.assembly.model.model.vision_tower.state_dict()
    expected = {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith("head.")}
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], expected[name]) for name in expected)


def test_language_model_weights_are_taken_over_exactly(case: Case) -> None:
    new = case.assembly.model
    taken = new.model.language_model.state_dict() | {f"lm_head.{k}": v for k, v in new.lm_head.state_dict().items()}
    expected = case.bare.base_model.state_dict()
    expected |= {f"lm_head.{k}": v for k, v in case.bare.get_output_embeddings().state_dict().items()}
    assert taken.keys() == expected.keys()
    # Old rows of the token tables; everything else has one shape.
    assert all(torch.equal(taken[name][: len(expected[name])], expected[name]) for name in expected)


def test_text_only_logits_equal_those_of_the_bare_language_model(case: Case) -> None:
    ids = some_ids(case.bare)
    with torch.no_grad():
        expected = case.bare(input_ids=ids).logits
        found = case.assembly.model(input_ids=ids).logits
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected)


def test_tables_grow_by_the_mean_of_the_old_rows(case: Case) -> None:
    old = case.bare.get_input_embeddings().weight
    new = case.assembly.model.get_input_embeddings().weight
    rows = new[len(old) :]
    assert len(new) == max(len(old), len(case.assembly.processor.tokenizer))
    torch.testing.assert_close(rows, old.mean(0).expand_as(rows))


def test_output_layer_is_tied_as_in_the_language_model(case: Case) -> None:
    new = case.assembly.model
    is_tied = new.lm_head.weight is new.get_input_embeddings().weight
    assert is_tied == case.bare.config.tie_word_embeddings == new.config.tie_word_embeddings
    assert (new.lm_head.bias is None) == (case.bare.get_output_embeddings().bias is None)


def test_image_prompt_generates(case: Case) -> None:
    inputs = encode(case.assembly.processor)
    ids = case.assembly.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    assert len(new_ids) == 3
    assert case.assembly.model.config.image_token_id not in new_ids


def test_picture_changes_the_logits(case: Case) -> None:
    inputs = encode(case.assembly.processor)
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(-1)}
    with torch.no_grad():
        assert not torch.equal(case.assembly.model(**inputs).logits, case.assembly.model(**other).logits)


def test_training_step_moves_every_weight_of_the_resampler(case: Case) -> None:
    resampler = case.loaded.model.resampler
    before = {name: parameter.detach().clone() for name, parameter in resampler.named_parameters()}
    inputs = encode(case.loaded_processor)
    case.loaded(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.SGD(resampler.parameters(), lr=1.0).step()
    case.loaded.zero_grad()
    after = dict(resampler.named_parameters())
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    resampler.load_state_dict(before)
    assert unmoved == []


def test_saved_model_loads_through_the_auto_classes_with_the_same_logits(case: Case) -> None:
    inputs = encode(case.assembly.processor)
    assert isinstance(case.loaded, XGenMMForConditionalGeneration)
    with torch.no_grad():
        torch.testing.assert_close(case.loaded(**inputs).logits, case.assembly.model(**inputs).logits)


def test_saved_processor_gives_the_same_inputs(case: Case) -> None:
    expected, found = encode(case.assembly.processor), encode(case.loaded_processor)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_picture_costs_its_tiles_times_the_latents(case: Case) -> None:
    # 40 x 60 pixels: one row of two or three tiles or two rows of two, depending on the tile size.
    inputs = encode(case.loaded_processor)
    num_tiles = case.loaded_processor.image_processor.get_number_of_image_patches(40, 60)
    assert inputs["pixel_values"].shape[1] == num_tiles
    assert (inputs["input_ids"] == case.loaded.config.image_token_id).sum() == 4 * num_tiles


def test_saved_settings_belong_to_the_parts(case: Case) -> None:
    vision_settings = json.loads((case.parts.vision / "preprocessor_config.json").read_text())
    processor, config = case.loaded_processor, case.loaded.config
    assert list(processor.image_processor.image_mean) == vision_settings["image_mean"]
    assert list(processor.image_processor.image_std) == vision_settings["image_std"]
    assert processor.image_processor.size["height"] == config.tile_size == vision_settings["size"]["height"]
    assert processor.image_processor.image_grid_pinpoints == config.image_grid_pinpoints
    assert (processor.num_latents, processor.tile_grouping) == (4, "tile") == (4, config.tile_grouping)
    assert processor.tokenizer.padding_side == "left"
    assert case.loaded.generation_config.pad_token_id == processor.tokenizer.pad_token_id is not None
    assert config.text_config.model_type == case.bare.config.model_type
    assert (
        processor.tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id < config.text_config.vocab_size
    )


def test_tokenizer_writes_old_text_as_before(case: Case) -> None:
    bare = AutoTokenizer.from_pretrained(case.parts.text)
    text = "An old text,\n  with <tags> & numbers 123."
    assert case.loaded_processor.tokenizer(text)["input_ids"] == bare(text)["input_ids"]


def test_loaded_parts_are_not_changed_and_share_no_memory(siglip_dir: Path, llama_dir: Path) -> None:
    vision, text = AutoModel.from_pretrained(siglip_dir), AutoModelForCausalLM.from_pretrained(llama_dir)
    rows = text.get_input_embeddings().weight.shape[0]
    model = XGenMMForConditionalGeneration.from_parts(vision, text, num_latents=4, resampler_layers=1)
    assert model.config.image_token_id == rows
    assert model.config.text_config.vocab_size == rows + 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert text.config.vocab_size == text.get_input_embeddings().weight.shape[0] == rows
    assert all(module.get_parameter(name).any() for module, name in (
        (vision.vision_model, "encoder.layers.0.mlp.fc1.weight"),
        (text, "model.layers.0.mlp.up_proj.weight"),
        (text, "lm_head.weight"),
        (text, "model.embed_tokens.weight"),
    ))  # fmt: skip


def test_loaded_parts_find_tokenizer_and_pixel_settings_where_they_came_from(
    siglip_dir: Path, llama_dir: Path
) -> None:
    vision, text = AutoModel.from_pretrained(siglip_dir).vision_model, AutoModelForCausalLM.from_pretrained(llama_dir)
    vision.config._name_or_path = str(siglip_dir)
    assembly = assemble(vision, text, settings=SETTINGS)
    assert encode(assembly.processor)["input_ids"].shape[0] == 1


def test_loaded_part_without_an_origin_asks_for_the_tokenizer(siglip_dir: Path, llama_dir: Path) -> None:
    text = AutoModelForCausalLM.from_pretrained(llama_dir)
    text.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"`LlamaForCausalLM`.*pass `tokenizer=` too"):
        plan_assembly(siglip_dir, text)


def test_from_parts_names_need_no_tokenizer_argument(siglip_dir: Path, llama_dir: Path) -> None:
    model = XGenMMForConditionalGeneration.from_parts(siglip_dir, llama_dir, num_latents=4, resampler_layers=1)
    plan = plan_assembly(siglip_dir, llama_dir)
    # `<image>` is the first of three tokens that follow the old ones; the processor's padding token comes after them.
    assert model.config.image_token_id == plan.config.image_token_id == 261
    assert model.config.text_config.vocab_size == 264


def test_same_seed_gives_the_same_model_and_leaves_torch_alone(siglip_dir: Path, llama_dir: Path) -> None:
    def latents(seed: int) -> torch.Tensor:
        model = XGenMMForConditionalGeneration.from_parts(
            siglip_dir, llama_dir, num_latents=4, resampler_layers=1, seed=seed
        )
        return model.model.resampler.latents.detach()

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = latents(1), latents(1), latents(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_new_resampler_has_the_towers_width_and_heads(siglip_dir: Path, llama_dir: Path) -> None:
    plan = plan_assembly(siglip_dir, llama_dir, settings=AssemblySettings(grids=((1, 1), (1, 2))))
    resampler = plan.config.resampler_config
    assert (resampler.hidden_size, resampler.num_attention_heads, resampler.head_dim) == (32, 4, 96)
    assert (resampler.num_latents, resampler.num_hidden_layers, resampler.output_size) == (128, 6, 32)
    assert plan.config.image_grid_pinpoints == [[28, 28], [28, 56]]
    assert plan.processor.image_processor.image_grid_pinpoints == [[28, 28], [28, 56]]


@pytest.mark.parametrize(
    ("text_dtype", "dtype", "expected"),
    [
        pytest.param(torch.bfloat16, "auto", torch.float32, id="auto-rounds-nothing"),
        pytest.param(torch.bfloat16, "bfloat16", torch.bfloat16, id="as-asked"),
        pytest.param(torch.float32, torch.float16, torch.float16, id="torch-name"),
    ],
)
def test_precision_of_the_result(
    siglip_dir: Path, llama_dir: Path, tmp_path: Path, text_dtype: torch.dtype, dtype: Any, expected: torch.dtype
) -> None:
    AutoModelForCausalLM.from_pretrained(llama_dir, dtype=text_dtype).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama_dir).save_pretrained(tmp_path)
    model = XGenMMForConditionalGeneration.from_parts(
        siglip_dir, tmp_path, num_latents=4, resampler_layers=1, dtype=dtype
    )
    assert {parameter.dtype for parameter in model.parameters()} == {expected} == {model.dtype}
    model.save_pretrained(tmp_path / "new")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "new").dtype == expected


def test_unknown_precision_is_refused(siglip_dir: Path, llama_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"`dtype` is 'int8'; expected `auto`"):
        plan_assembly(siglip_dir, llama_dir, dtype="int8")


def test_plan_loads_no_weights(tmp_path: Path) -> None:
    vision, text = clip(tmp_path / "vision"), phi_3(tmp_path / "text")
    (vision / "model.safetensors").unlink()
    (text / "model.safetensors").unlink()
    assert plan_assembly(vision, text).config.image_token_id == 262


def test_plan_agrees_with_the_model_that_is_built(case: Case) -> None:
    planned, built = case.assembly.plan.config.to_dict(), case.assembly.model.config.to_dict()
    assert drop_dtypes(planned) == drop_dtypes(built)


def drop_dtypes(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: drop_dtypes(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in ("dtype", "architectures")
    }


def test_missing_pixel_settings_name_the_remedy(tmp_path: Path, llama_dir: Path) -> None:
    vision = siglip(tmp_path)
    (vision / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no `preprocessor_config.json`.*`image_processor`"):
        plan_assembly(vision, llama_dir)


def test_pixel_settings_may_come_from_elsewhere(tmp_path: Path, siglip_dir: Path, llama_dir: Path) -> None:
    vision = clip(tmp_path)
    plan = plan_assembly(vision, llama_dir, image_processor=siglip_dir)
    assert list(plan.processor.image_processor.image_mean) == [0.5, 0.5, 0.5]


def test_unknown_filter_becomes_bicubic_with_a_note(tmp_path: Path, llama_dir: Path) -> None:
    vision = siglip(tmp_path)
    settings = json.loads((vision / "preprocessor_config.json").read_text()) | {"resample": 1}
    (vision / "preprocessor_config.json").write_text(json.dumps(settings))
    plan = plan_assembly(vision, llama_dir)
    assert plan.processor.image_processor.resample == 3
    assert any("LANCZOS" in note for note in plan.notes)


def test_missing_padding_token_is_added_with_a_note(siglip_dir: Path, llama_dir: Path) -> None:
    plan = plan_assembly(siglip_dir, llama_dir)
    assert plan.processor.tokenizer.pad_token == "<pad>"
    assert plan.config.text_config.vocab_size == 265
    assert any("<pad> was added" in note for note in plan.notes)


def test_padding_token_that_is_only_not_named_is_used(siglip_dir: Path, llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    tokenizer.add_tokens(["<|finetune_right_pad_id|>"], special_tokens=True)
    plan = plan_assembly(siglip_dir, llama_dir, tokenizer=tokenizer)
    assert plan.processor.tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_stop_token_of_a_borrowed_chat_format_ends_answers(siglip_dir: Path, tmp_path: Path) -> None:
    assembly = assemble(siglip_dir, mistral(tmp_path), settings=SETTINGS)
    tokenizer = assembly.processor.tokenizer
    stop_ids = [tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|endofchunk|>")]
    assert assembly.model.generation_config.eos_token_id == stop_ids


def test_contradicting_generation_settings_are_left_out(siglip_dir: Path, llama_dir: Path, tmp_path: Path) -> None:
    text = AutoModelForCausalLM.from_pretrained(llama_dir)
    text.generation_config.temperature = 0.5
    text.generation_config.do_sample = False
    assembly = assemble(siglip_dir, text, settings=SETTINGS)
    assembly.save(tmp_path / "new")
    assert assembly.model.generation_config.temperature is None
    assert assembly.model.generation_config.eos_token_id == text.generation_config.eos_token_id


def test_language_models_own_generation_settings_are_kept(siglip_dir: Path, llama_dir: Path) -> None:
    text = AutoModelForCausalLM.from_pretrained(llama_dir)
    text.generation_config.update(do_sample=True, temperature=0.6, eos_token_id=[5, 6])
    settings = assemble(siglip_dir, text, settings=SETTINGS).model.generation_config
    assert (settings.do_sample, settings.temperature, settings.eos_token_id) == (True, 0.6, [5, 6])
    assert settings.suppress_tokens == [261]


def test_output_directory_with_files_is_not_touched(siglip_dir: Path, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assembly = assemble(siglip_dir, llama_dir, settings=SETTINGS)
    with pytest.raises(FileExistsError, match="exists already and is not empty"):
        assembly.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_failed_save_leaves_nothing_behind(
    siglip_dir: Path, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly = assemble(siglip_dir, llama_dir, settings=SETTINGS)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(assembly.processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        assembly.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_empty_output_directory_is_filled(siglip_dir: Path, llama_dir: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    plan = plan_assembly(siglip_dir, llama_dir, settings=SETTINGS)
    build_from_plan(plan, progress=steps.append).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"}
    assert names >= {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert str(siglip_dir) in steps[0]
