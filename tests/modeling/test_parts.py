"""Which parts a new model accepts, and what it says about the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    CohereConfig,
    ConvNextConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    PreTrainedModel,
    Qwen3Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    SwinModel,
    T5Config,
)

from xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.modeling.assembly import AssemblySettings
from xgen_mm.modeling.parts import load_vision_tower, read_text_config, read_vision_config

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def siglip() -> SiglipModel:
    vision = {**SMALL, "image_size": 28, "patch_size": 7}
    return SiglipModel(SiglipConfig(vision_config=vision, text_config={**SMALL, "vocab_size": 40}))


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**(SMALL | {"vocab_size": 40} | changes)))


def join(vision: PreTrainedModel, text: PreTrainedModel) -> XGenMMForConditionalGeneration:
    return XGenMMForConditionalGeneration.from_parts(vision, text, num_latents=2, resampler_layers=1)


def save_config(config: Any, directory: Path) -> Path:
    config.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(Siglip2VisionConfig(**SMALL), r"NaFlex.*Take a SigLIP 2 checkpoint with a fixed", id="naflex"),
        pytest.param(CLIPVisionConfig(**SMALL, image_size=[28, 56]), r"`image_size=\[28, 56\]`", id="not-square"),
        pytest.param(CLIPVisionConfig(**SMALL, image_size=28, patch_size=[7, 7]), r"`patch_size=\[7, 7\]`", id="list"),
        pytest.param(CLIPVisionConfig(**SMALL, image_size=8, patch_size=16), r"16 pixels on tiles of 8", id="patch"),
        pytest.param(SiglipVisionConfig(**SMALL, num_channels=1), r"`num_channels=1`.*3 channels", id="grey"),
        pytest.param(LlamaConfig(**SMALL), r"`image_size=None`", id="language-model"),
        pytest.param(ConvNextConfig(image_size=32), r"no single `hidden_size`", id="pyramid"),
    ],
)
def test_unsuitable_tower_is_refused_by_its_configuration(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_vision_config(save_config(config, tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(LlavaConfig(), r"made of several models itself", id="composite"),
        pytest.param(T5Config(), r"cannot be loaded by `AutoModelForCausalLM`", id="encoder-decoder"),
        pytest.param(SiglipVisionConfig(), r"cannot be loaded by `AutoModelForCausalLM`", id="tower"),
        pytest.param(Gemma2Config(), r"`final_logit_softcapping=30.0`", id="soft-capped"),
        pytest.param(CohereConfig(), r"`logit_scale=0.0625`", id="scaled"),
    ],
)
def test_unsuitable_language_model_is_refused_by_its_configuration(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_text_config(save_config(config, tmp_path))


def test_checkpoint_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "something_else"}')
    with pytest.raises(ValueError, match="no configuration that transformers knows by itself"):
        read_text_config(tmp_path)


def test_configuration_is_copied_without_bookkeeping(tmp_path: Path) -> None:
    config = Qwen3Config(**SMALL, architectures=["Qwen3ForCausalLM"], auto_map={"AutoConfig": "code.Config"})
    copied = read_text_config(save_config(config, tmp_path))
    assert (copied.hidden_size, copied.architectures, copied._name_or_path) == (16, None, "")
    assert "auto_map" not in copied.to_dict()


def test_pooling_head_is_left_out() -> None:
    model = join(siglip(), llama())
    assert model.config.vision_config.vision_use_head is False
    assert not any("head" in name for name, _ in model.model.vision_tower.named_parameters())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    model = siglip()
    state = {name: tensor for name, tensor in model.state_dict().items() if "post_layernorm" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 2 weights.*post_layernorm.bias"):
        load_vision_tower(tmp_path)


def test_missing_pooling_head_does_not_matter(tmp_path: Path) -> None:
    model = siglip()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".head." not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    assert load_vision_tower(tmp_path).config.hidden_size == 16


def test_part_that_is_not_in_memory_is_refused() -> None:
    with torch.device("meta"):
        text = llama()
    with pytest.raises(ValueError, match=r"not in memory"):
        join(siglip(), text)


def test_model_without_output_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`LlamaModel`; expected a model with an output layer"):
        join(siglip(), llama().model)


def test_tied_table_under_another_name_is_refused() -> None:
    text = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40))
    with pytest.raises(ValueError, match=r"under a name other than `embed_tokens`"):
        join(siglip(), text)


def test_tower_without_a_feature_per_patch_is_refused() -> None:
    tower = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    )
    with pytest.raises(ValueError, match=r"features of shape \(1, 16, 16\); expected \(1, 64 or more, 16\)"):
        join(tower, llama())


class LouderLlama(LlamaForCausalLM):
    """Doubles its logits after the output layer."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs


def test_language_model_that_changes_its_logits_is_found_out() -> None:
    text = LouderLlama(LlamaConfig(**SMALL, vocab_size=40))
    with pytest.raises(ValueError, match=r"logits differ from those of `LouderLlama`"):
        join(siglip(), text)


def test_language_model_that_was_changed_after_loading_is_refused() -> None:
    text = llama()
    text.model.layers[0].mlp.up_proj = nn.Linear(16, 25, bias=False)
    with pytest.raises(ValueError, match=r"1 weights that are missing, left over or of another shape"):
        join(siglip(), text)


def test_tower_is_found_inside_a_larger_model() -> None:
    tower = load_vision_tower(siglip())
    assert type(tower).__name__ == "SiglipVisionModel"
    clip = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=28, patch_size=14))
    assert load_vision_tower(clip) is clip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_latents": 0}, "`num_latents` is 0"),
        ({"resampler_layers": -1}, "`resampler_layers` is -1"),
        ({"grids": ()}, r"`grids` is \(\)"),
        ({"grids": ((1, 0),)}, r"`grids` is \(\(1, 0\),\)"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AssemblySettings(**changes)


def test_unknown_tile_grouping_is_refused() -> None:
    with pytest.raises(ValueError, match="tile_grouping"):
        XGenMMForConditionalGeneration.from_parts(siglip(), llama(), num_latents=2, tile_grouping="tiles")


def test_text_config_of_a_tied_model_stays_tied(tmp_path: Path) -> None:
    model = join(siglip(), llama(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).text_config.tie_word_embeddings is True
    assert AutoModelForCausalLM.from_config(model.config.text_config).config.vocab_size == 43


@pytest.mark.parametrize("tied", [False, True], ids=["own-head", "tied-head"])
def test_weights_of_the_parts_survive_another_initialisation(tied: bool) -> None:
    model = join(siglip(), llama(tie_word_embeddings=tied))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.post_init()
    model.init_weights()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
