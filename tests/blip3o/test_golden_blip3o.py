"""Every part against values of the original code, in float32."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.blip3o.small_blip3o import (
    GOLDEN,
    diffusion_transformer,
    golden,
    golden_model,
    load_released,
    meta,
    tower_fields,
    tower_weights,
)
from xgen_mm import Blip3oForConditionalGeneration, Blip3oImageProcessor
from xgen_mm.blip3o.configuration_blip3o import Blip3oFeatureTowerConfig
from xgen_mm.blip3o.diffusion_transformer import rotary_table
from xgen_mm.blip3o.feature_tower import Blip3oFeatureTower
from xgen_mm.blip3o.flow_matching import noise_levels, whole_timestep
from xgen_mm.conversion.blip3o_rules import BLIP3O, RELEASED_TOWER

OUTPUT = 1e-5
RELATIVE_GRADIENT = 1e-5


@pytest.fixture(scope="module")
def model() -> Blip3oForConditionalGeneration:
    return golden_model()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.detach() - expected).abs().max())


def test_image_processor_gives_the_golden_pixels() -> None:
    images = [Image.open(GOLDEN / f"picture_{i}.png").convert("RGB") for i in range(2)]
    small = Blip3oImageProcessor(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    expected = golden("eva_clip")
    assert torch.equal(small(images, return_tensors="pt")["pixel_values"], expected["pixel_values"])
    large = Blip3oImageProcessor()(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(large[..., ::16, ::16], expected["pixel_values_448_every16"])
    assert distance(large.mean((2, 3)), expected["pixel_values_448_mean"]) < 1e-6
    assert distance(large.std((2, 3)), expected["pixel_values_448_std"]) < 1e-6


def test_feature_tower_gives_the_golden_features() -> None:
    tower = Blip3oFeatureTower(Blip3oFeatureTowerConfig(**tower_fields())).eval()
    load_released(tower, tower_weights(), prefix="feature_tower.")
    expected = golden("eva_clip")
    with torch.no_grad():
        assert distance(tower(expected["pixel_values"]).last_hidden_state, expected["features"]) < 2e-5
        assert distance(tower.feature_map(expected["pixel_values"]), expected["pooled"]) < 2e-5


@pytest.mark.parametrize("file_name", ["model.safetensors", "pytorch_model.bin"])
def test_feature_tower_loads_from_its_own_released_file(tmp_path: Path, file_name: str) -> None:
    released = {name.removeprefix(RELEASED_TOWER): tensor for name, tensor in tower_weights().items()}
    if file_name.endswith(".bin"):
        torch.save(released, tmp_path / file_name)
    else:
        save_file(released, tmp_path / file_name)
    config = Blip3oFeatureTowerConfig(**tower_fields())
    tower, info = Blip3oFeatureTower.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tower.save_pretrained(tmp_path / "ours")
    again = Blip3oFeatureTower.from_pretrained(tmp_path / "ours")
    expected = golden("eva_clip")
    with torch.no_grad():
        assert distance(again(expected["pixel_values"]).last_hidden_state, expected["features"]) < 2e-5


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("dit", case) for case in ("b1", "b2", "b5", "rect", "mask")),
        ("dit_gqa", "b2"),
        ("dit_patch2", "b2"),
    ],
)
def test_diffusion_transformer_gives_the_golden_velocity(name: str, case: str) -> None:
    values = golden("dit")
    at = f"{name}.{case}."
    with torch.no_grad():
        found = diffusion_transformer(name)(
            values[at + "x"], values[at + "timestep"], values[at + "z"], values.get(at + "mask")
        )
    assert distance(found, values[at + "out"]) < OUTPUT


def test_diffusion_transformer_gives_the_golden_values_inside() -> None:
    transformer, values = diffusion_transformer(), golden("dit")
    seen: dict[str, torch.Tensor] = {}
    transformer.patch_embedding.register_forward_hook(lambda *found: seen.update(patch_embed=found[-1]))
    transformer.condition_linear_2.register_forward_hook(lambda *found: seen.update(caption_projection=found[-1]))
    transformer.embedding.register_forward_hook(lambda *found: seen.update(temb=found[-1]))
    first = transformer.layers[0]
    names = {
        first.self_attn: "layer0.self_attention_before_projection",
        first.cross_attn: "layer0.cross_attention_before_gate",
    }
    for attention, name in names.items():
        attention.register_forward_hook(lambda *found, name=name: seen.update({name: found[-1].transpose(1, 2)}))
    for i, layer in enumerate(transformer.layers):
        layer.register_forward_hook(lambda *found, i=i: seen.update({f"layer{i}.out": found[-1]}))
    with torch.no_grad():
        transformer(values["dit.b1.x"], values["dit.b1.timestep"], values["dit.b1.z"])
    assert len(seen) == 8
    for name, found in seen.items():
        assert distance(found, values[f"dit.inter.{name}"]) < OUTPUT, name
    table = rotary_table(8, 8, head_dim=16, theta=10000.0, device=torch.device("cpu"))
    for name, found in (("cos", table.real), ("sin", table.imag)):
        assert distance(found, values[f"dit.inter.rotary_{name}"]) < 1e-6


def test_diffusion_transformer_gives_the_golden_gradients() -> None:
    transformer, values = diffusion_transformer(), golden("dit")
    x, z = (values[f"dit.grad.{name}"].clone().requires_grad_() for name in "xz")
    (transformer(x, values["dit.grad.timestep"], z) * values["dit.grad.weight"]).sum().backward()
    gradients = {"dit.grad.dx": x.grad, "dit.grad.dz": z.grad}
    for name, parameter in transformer.named_parameters():
        ours = "diffusion_transformer." + name
        (copy,) = BLIP3O.row_copies(ours, num_rows=len(parameter), first_added_row=0) or ()
        released = copy.released.removeprefix("model.dit.")
        gradients[f"dit.grad.param.{released}"] = parameter.grad
        gradients[f"dit.grad.norm.{released}"] = parameter.grad.norm()
    names = [name for name in values if name.startswith("dit.grad.") and name in gradients]
    assert len(names) == 2 + 96
    for name in names:
        expected, found = values[name], gradients[name]
        if name.endswith("attn2.norm_k.bias"):
            # Zero but for rounding: a constant on all keys changes no softmax.
            assert float(found.abs().max()) < 1e-4
            continue
        assert distance(found.reshape(expected.shape), expected) < RELATIVE_GRADIENT * float(expected.abs().max()), (
            name
        )


@pytest.mark.parametrize(("task", "batch"), [("t2i", 3), ("i2i", 1)])
def test_training_step_gives_the_golden_loss_and_gradients(
    model: Blip3oForConditionalGeneration, task: str, batch: int
) -> None:
    values, prefix = golden("training"), task + "."
    model.zero_grad()
    images = {}
    if task == "i2i":
        images = {"pixel_values": values["i2i.pixel_values"], "image_grid_thw": values["i2i.grid_thw"]}
    mask = values.get(prefix + "attention_mask")
    condition = model.encode_condition(values[prefix + "input_ids"], mask, **images)
    assert distance(condition, values[prefix + "condition_before_drop"]) < 1e-5
    pooled = golden("eva_clip")["pooled"]
    features = pooled[[i % 2 for i in range(batch)]] if task == "t2i" else pooled[-1:]
    output = model.flow_matching_loss(
        features,
        condition,
        noise=values[prefix + "noise"],
        timesteps=values[prefix + "timesteps"],
        dropped=values[prefix + "dropped"].bool(),
    )
    assert distance(output.loss.view(1), values[prefix + "loss"]) < 1e-6
    assert distance(output.velocity, values[prefix + "velocity"]) < OUTPUT
    output.loss.backward()
    gradients = {"latent_queries": model.latent_queries.grad}
    if task == "t2i":
        transformer = model.diffusion_transformer
        named = {
            "caption_projection.linear_1.weight": transformer.condition_linear_1.weight,
            "layers.0.feed_forward.linear_3.weight": transformer.layers[0].mlp.up_proj.weight,
            "layers.0.gate": transformer.layers[0].cross_gate,
            "layers.1.attn1.norm_q.weight": transformer.layers[1].self_attn.q_norm.weight,
            "layers.1.attn2.to_k.weight": transformer.layers[1].cross_attn.k_proj.weight,
            "norm_out.linear_2.weight": transformer.output_linear.weight,
            "patch_embedder.proj.weight": transformer.patch_embedding.weight,
            "time_caption_embed.caption_embedder.1.weight": transformer.embedding.condition_linear.weight,
        }
        gradients |= {f"dit.model.{name}": parameter.grad for name, parameter in named.items()}
    assert len(gradients) == len([name for name in values if name.startswith(prefix + "grad.")])
    for name, found in gradients.items():
        expected = values[f"{prefix}grad.{name}"]
        assert distance(found, expected) < RELATIVE_GRADIENT * float(expected.abs().max()), name


@pytest.mark.parametrize("name", ["cond0", "cond1", "cond2", "cond_i2i"])
def test_condition_at_inference_is_the_golden_one(model: Blip3oForConditionalGeneration, name: str) -> None:
    values, images = golden("sampling"), {}
    if name == "cond_i2i":
        images = {"pixel_values": values[f"{name}.pixel_values"], "image_grid_thw": values[f"{name}.grid_thw"]}
    ids = torch.cat([values[f"{name}.input_ids"], torch.full((1, 64), 151667)], dim=1)
    with torch.no_grad():
        assert distance(model.encode_condition(ids, **images), values[f"{name}.condition"]) < 1e-5


@pytest.mark.parametrize("num_steps", [5, 30])
def test_schedule_is_the_golden_one(num_steps: int) -> None:
    values, levels = golden("sampling"), noise_levels(num_steps)
    assert torch.equal(levels, values[f"s{num_steps}.sigmas"])
    assert torch.equal(levels[:-1] * 1000, values[f"s{num_steps}.scheduler_timesteps"])
    assert torch.equal(whole_timestep(levels[:-1]).long(), values[f"s{num_steps}.dit_timesteps"])


@pytest.mark.parametrize("name", ["s5", "s30", "s5_scale7", "s5_two_per_prompt"])
def test_sampler_follows_the_golden_trajectory(model: Blip3oForConditionalGeneration, name: str) -> None:
    values, settings = golden("sampling"), meta()["sampler"][name]
    condition = torch.cat([values[f"{found}.condition"] for found in settings["conditions"]])
    seen = []
    with torch.no_grad():
        final = model.sample_features(
            condition,
            values[f"{name}.initial_noise"],
            num_steps=settings["steps"],
            guidance_scale=settings["scale"],
            callback=lambda _, samples: seen.append(samples),
        )
    assert distance(final, values[f"{name}.final"]) < 1e-4
    for step, expected in zip(values[f"{name}.trajectory_steps"].tolist(), values[f"{name}.trajectory"], strict=True):
        assert distance(seen[step], expected) < 1e-4


def test_generate_draws_the_golden_features() -> None:
    values = golden("sampling")
    ids = torch.cat([values["cond0.input_ids"], torch.full((1, 64), 151667)], dim=1)
    features = golden_model("dit_1792").generate(ids, generation_mode="image", noise=values["e2e.initial_noise"])
    assert distance(features.flatten(2).transpose(1, 2), values["e2e.output"]) < 1e-4
