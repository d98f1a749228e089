"""Moves the weights of two pretrained parts into a new model, and checks that they still do what they did."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import AutoModel

from .configuration_xgen_mm import XGenMMConfig
from .parts import describe_source, is_tied

SIGLIP_POOLING_HEAD = "head."


def assemble_model(
    model_class: Any,
    config: XGenMMConfig,
    *,
    vision_tower: PreTrainedModel,
    language_model: PreTrainedModel,
    is_vision_copied: bool = True,
    is_text_copied: bool = True,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Any:
    """Build a model around the weights of its parts.

    Args:
        model_class: `XGenMMForConditionalGeneration` or a subclass.
        config: From `build_config`.
        vision_tower: Tower; a SigLIP pooling head is left out.
        language_model: Causal language model with its output layer.
        is_vision_copied: Whether the tower's tensors are copied; otherwise the new model shares memory with it.
        is_text_copied: The same for the language model.
        dtype: Precision of the result; `None` takes the widest of the parts, so that no weight is rounded.
        seed: Seed of the resampler's weights; torch's own random state is left alone.

    Returns:
        The model in evaluation mode, on the language model's device.

    Raises:
        ValueError: If a part does not have the weights its configuration asks for.
    """
    table = language_model.get_input_embeddings().weight
    if dtype is None:
        dtype = torch.promote_types(_dtype(vision_tower), _dtype(language_model))
    with torch.device("meta"):
        model = model_class(config)

    place = _Place(dtype=dtype, device=table.device, is_copied=is_vision_copied)
    _take_over(model.model.vision_tower, vision_tower, place=place, dropped=SIGLIP_POOLING_HEAD)
    place = replace(place, is_copied=is_text_copied)
    base = language_model.base_model
    tables = _name_of(base, language_model.get_input_embeddings()) + "."
    _take_over(model.model.language_model, base, place=place, skipped=tables)
    _take_token_tables(model, language_model, place=place)
    resampler = _new_resampler(config, seed=seed)
    model.model.resampler = resampler.to(device=table.device, dtype=dtype)
    for part in (config, config.vision_config, config.resampler_config, config.text_config):
        part.dtype = dtype
    for module in model.modules():
        # A later `post_init` or `init_weights`, such as a subclass's, must not draw these weights anew.
        module._is_hf_initialized = True
    return model.eval()


@torch.no_grad()
def check_assembly(model: Any, *, language_model: PreTrainedModel) -> None:
    """Run one tile and a few words through a new model.

    Args:
        model: New model.
        language_model: The language model it was built from.

    Raises:
        ValueError: If the tower gives no feature per patch, or the logits are not the language model's.
    """
    config = model.config
    tower = model.model.vision_tower
    tile = torch.zeros(1, 3, config.tile_size, config.tile_size, dtype=model.dtype, device=model.device)
    name = f"The vision tower (`{config.vision_config.model_type}`)"
    try:
        features = tower(tile, return_dict=True).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} cannot be called with a tile of {config.tile_size} pixels alone: {error}") from error
    cells, width = config.cells_per_tile**2, config.vision_config.hidden_size
    if features.dim() != 3 or features.shape[1] < cells or features.shape[2] != width:
        raise ValueError(
            f"{name} turns a tile into features of shape {tuple(features.shape)}; expected (1, {cells} or more, "
            f"{width}): one feature per patch, behind class and register tokens if there are any."
        )

    old_rows = language_model.get_output_embeddings().weight.shape[0]
    ids = torch.arange(0, old_rows, max(1, old_rows // 16), device=model.device)[None, :16]
    training = language_model.training
    expected = language_model.eval()(input_ids=ids).logits
    language_model.train(training)
    found = model(input_ids=ids).logits[..., :old_rows]
    # Precision of the arithmetic only: the weights are the same, but the tables may have grown or been widened.
    tolerance = 1e-3 if _dtype(language_model).itemsize >= 4 and model.dtype.itemsize >= 4 else 5e-2
    error_size = (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    if not error_size <= tolerance:
        raise ValueError(
            f"The new model's logits differ from those of `{describe_source(language_model)}` by {error_size:.2g} of "
            "their size. Its head does more than xGen-MM's plain output layer; take another language model."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where the weights of a part go."""

    dtype: torch.dtype
    device: torch.device
    is_copied: bool

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device=self.device, dtype=self.dtype, copy=self.is_copied)


def _take_over(target: nn.Module, source: nn.Module, *, place: _Place, dropped: str = "-", skipped: str = "-") -> None:
    """Fill every parameter and buffer of `target` from `source`.

    Names of the source that begin with `dropped` may be left over; names that begin with `skipped` are filled
    elsewhere.
    """
    wanted = {name: tensor for name, tensor in _tensors(target).items() if not name.startswith(skipped)}
    given = {name: tensor for name, tensor in _tensors(source).items() if not name.startswith(skipped)}
    given = {name: tensor for name, tensor in given.items() if name in wanted or not name.startswith(dropped)}
    reshaped = [name for name in wanted if name in given and wanted[name].shape != given[name].shape]
    odd = sorted(wanted.keys() ^ given.keys()) + reshaped
    if odd:
        raise ValueError(
            f"`{type(source).__name__}` has {len(odd)} weights that are missing, left over or of another shape in the "
            f"model its configuration describes (first: {odd[:3]}). It was changed after loading, or keeps tables per "
            "token besides the embeddings; take another checkpoint."
        )
    persistent = target.state_dict().keys()
    moved: dict[int, torch.Tensor] = {}
    for name, tensor in given.items():
        # Tensors used twice stay one. Helper buffers (rotary frequencies) keep the precision they were made in.
        if id(tensor) not in moved:
            is_cast = name in persistent and tensor.is_floating_point()
            data = place.move(tensor) if is_cast else replace(place, dtype=tensor.dtype).move(tensor)
            moved[id(tensor)] = nn.Parameter(data) if isinstance(tensor, nn.Parameter) else data
        _put(target, name, moved[id(tensor)])


def _take_token_tables(model: Any, language_model: PreTrainedModel, *, place: _Place) -> None:
    num_rows = model.config.text_config.vocab_size
    embeddings, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    name = _name_of(language_model.base_model, embeddings)
    for leaf, tensor in _tensors(embeddings).items():
        is_table = isinstance(tensor, nn.Parameter)
        new = nn.Parameter(_grow(tensor, num_rows, place=place)) if is_table else tensor.detach().clone()
        _put(model.model.language_model, f"{name}.{leaf}", new)
    if is_tied(language_model):
        model.lm_head.weight = model.get_input_embeddings().weight
    else:
        model.lm_head.weight = nn.Parameter(_grow(head.weight, num_rows, place=place))
    if head.bias is not None:
        model.lm_head.bias = nn.Parameter(_grow(head.bias, num_rows, place=place))


def _grow(table: torch.Tensor, num_rows: int, *, place: _Place) -> torch.Tensor:
    """Append rows that are the mean of the old ones, which makes them neither likely nor unlikely."""
    num_new = num_rows - table.shape[0]
    if num_new == 0:
        return place.move(table)
    table = table.detach().to(place.device)
    mean = table.mean(dim=0, keepdim=True, dtype=torch.float32)
    return torch.cat([table.to(place.dtype), mean.expand(num_new, *table.shape[1:]).to(place.dtype)])


def _new_resampler(config: XGenMMConfig, *, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        resampler: PreTrainedModel = AutoModel.from_config(
            config.resampler_config, dtype=torch.float32, trust_remote_code=False
        )
        return resampler


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return tensors | dict(module.named_buffers(remove_duplicate=False))


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    prefix, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(prefix), leaf, tensor)


def _name_of(module: nn.Module, submodule: nn.Module) -> str:
    return next(name for name, candidate in module.named_modules() if candidate is submodule)


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """The narrowest precision that holds all weights of a part."""
    return reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})
