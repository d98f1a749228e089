"""How much of a forward pass is kept for the backward pass.

Found by running one and two layers of a part on tensors without memory and noting what autograd saves; all further
layers are like the second. So the figure follows the installed libraries, the attention kernel, frozen weights,
adapters and mixed precision, whatever the architecture.
"""

import copy
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel
from transformers.initialization import no_init_weights

from ...connectors.perceiver import XGenMMResamplerConfig

Forward: TypeAlias = Callable[[], Any]
Build: TypeAlias = Callable[[int], tuple[nn.Module, Forward]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Bytes that a part keeps for the backward pass.

    Attributes:
        whole: All layers.
        layer: One layer.
        layer_input: What one layer is given, all that gradient checkpointing keeps of it.
        num_layers: Layers.
    """

    whole: float
    layer: float
    layer_input: float
    num_layers: int

    def peak(self, *, checkpointing: bool) -> float:
        """Most that exists at a time: with checkpointing, the inputs of all layers and what one of them keeps."""
        if not checkpointing:
            return self.whole
        around = self.whole - self.num_layers * self.layer
        return around + self.num_layers * self.layer_input + self.layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """Low-rank adapters.

    Attributes:
        pattern: Regular expression of the full names of the layers that have one.
        rank: Rank of the update.
        dropout: Dropout before the adapter.
    """

    pattern: str
    rank: int
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How numbers are held and computed.

    Attributes:
        dtype: Precision of weights.
        autocast: Precision of matrix products under mixed precision; `None` without.
        attention: Attention implementation.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    attention: str = "sdpa"

    @property
    def width(self) -> int:
        """Bytes of a hidden state's number."""
        return (self.autocast or self.dtype).itemsize


def kept_by_language_model(
    config: Any,
    *,
    rows: int,
    length: int,
    arithmetic: Arithmetic,
    is_trained: bool,
    has_mask: bool,
    adapters: Adapters | None = None,
) -> Kept:
    """What the language model keeps, its norm included and its embedding and output layer not.

    Args:
        config: Its configuration.
        rows: Sequences at once.
        length: Tokens of each, padding included.
        arithmetic: How it computes.
        is_trained: Whether its own weights change.
        has_mask: Whether there is padding, or samples are packed, so that attention takes a mask.
        adapters: Its adapters, if it has some.
    """
    mask_shape = (rows, 1, length, length)

    def build(num_layers: int) -> tuple[nn.Module, Forward]:
        model = AutoModel.from_config(
            _with_layers(config, num_layers),
            dtype=arithmetic.dtype,
            attn_implementation=_attention(arithmetic),
            trust_remote_code=False,
        )
        model.requires_grad_(is_trained)
        if adapters is not None:
            _add_adapters(model, adapters)
        shape = (rows, length, config.hidden_size)
        inputs = torch.empty(shape, dtype=arithmetic.autocast or arithmetic.dtype, requires_grad=True)
        # Without values the host cannot see that no mask is needed, so there always is one; see below.
        mask = torch.empty(mask_shape, dtype=torch.bool)
        return model.train(), lambda: model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)

    layer_input = rows * length * config.hidden_size * arithmetic.width
    # Fused kernels keep a copy of the mask for each layer, where there is one.
    keeps_mask = has_mask and not arithmetic.attention.startswith("flash")
    return _measure(
        build,
        config.num_hidden_layers,
        layer_input=layer_input,
        arithmetic=arithmetic,
        ignored=None if keeps_mask else mask_shape,
    )


def _kept_by_perceiver(config: Any, *, groups: int, cells: int, arithmetic: Arithmetic, has_mask: bool) -> Kept:
    """What a trained perceiver keeps; the tower's features, which all its layers read, are among it.

    Args:
        config: Its configuration.
        groups: Groups of cells at once.
        cells: Cells of each.
        arithmetic: How it computes.
        has_mask: Whether some cells are padding.
    """

    def build(num_layers: int) -> tuple[nn.Module, Forward]:
        model = AutoModel.from_config(
            _with_layers(config, num_layers),
            dtype=arithmetic.dtype,
            attn_implementation=_attention(arithmetic),
            trust_remote_code=False,
        )
        features = torch.empty((groups, cells, config.hidden_size), dtype=arithmetic.dtype)
        mask = torch.empty((groups, 1, config.num_latents, cells + config.num_latents), dtype=torch.bool)

        def forward() -> Any:
            latents = model.latents.to(features.dtype).unsqueeze(0).expand(groups, -1, -1)
            for layer in model.layers:
                latents = layer(latents, features, mask if has_mask else None)
            return model.projection(model.norm(latents))

        return model.train(), forward

    layer_input = groups * config.num_latents * config.hidden_size * arithmetic.width
    return _measure(build, config.num_hidden_layers, layer_input=layer_input, arithmetic=arithmetic)


def kept_by_connector(config: Any, *, groups: int, cells: int, arithmetic: Arithmetic, has_mask: bool = True) -> Kept:
    """What a trained connector keeps; the tower's features are among it.

    Args:
        config: Its configuration.
        groups: Groups of cells at once.
        cells: Cells of each.
        arithmetic: How it computes.
        has_mask: Whether some cells are padding.
    """
    if isinstance(config, XGenMMResamplerConfig):
        return _kept_by_perceiver(config, groups=groups, cells=cells, arithmetic=arithmetic, has_mask=has_mask)

    def build(_: int) -> tuple[nn.Module, Forward]:
        model = AutoModel.from_config(config, dtype=arithmetic.dtype, trust_remote_code=False)
        features = torch.empty((groups, cells, config.hidden_size), dtype=arithmetic.dtype)
        return model.train(), lambda: model(features, None, return_dict=True)

    # Nobody says which of its layers are alike, so all of it counts, with gradient checkpointing too.
    whole = _saved_bytes(build, 1, arithmetic=arithmetic, ignored=None)
    return Kept(whole=whole, layer=0, layer_input=0, num_layers=0)


def kept_by_tower(config: Any, *, tiles: int, arithmetic: Arithmetic) -> Kept:
    """What a trained vision tower keeps; a frozen one keeps nothing.

    Args:
        config: Its configuration.
        tiles: Tiles at once.
        arithmetic: How it computes.
    """

    def build(num_layers: int) -> tuple[nn.Module, Forward]:
        model = AutoModel.from_config(
            _with_layers(config, num_layers),
            dtype=arithmetic.dtype,
            attn_implementation=_attention(arithmetic),
            trust_remote_code=False,
        )
        pixels = torch.empty((tiles, 3, config.image_size, config.image_size), dtype=arithmetic.dtype)
        return model.train(), lambda: model(pixels)

    positions = (config.image_size // config.patch_size) ** 2
    layer_input = tiles * positions * config.hidden_size * arithmetic.width
    return _measure(build, config.num_hidden_layers, layer_input=layer_input, arithmetic=arithmetic)


class _Adapted(nn.Module):
    """A frozen linear layer with a low-rank update beside it, as PEFT computes it."""

    def __init__(self, base: nn.Module, adapters: Adapters) -> None:
        super().__init__()
        inputs, outputs = int(getattr(base, "in_features", 0)), int(getattr(base, "out_features", 0))
        self.base = base
        # PEFT keeps adapters in single precision beside half-precision weights.
        self.lora_a = nn.Linear(inputs, adapters.rank, bias=False, dtype=torch.float32)
        self.lora_b = nn.Linear(adapters.rank, outputs, bias=False, dtype=torch.float32)
        self.dropout = nn.Dropout(adapters.dropout) if adapters.dropout else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(hidden_states)
        update = self.lora_b(self.lora_a(self.dropout(hidden_states.to(self.lora_a.weight.dtype)))) * 2.0
        adapted: torch.Tensor = (result + update).to(result.dtype)
        return adapted


def _add_adapters(model: nn.Module, adapters: Adapters) -> None:
    for name, module in list(model.named_modules()):
        if re.fullmatch(adapters.pattern, f"language_model.{name}"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _Adapted(module, adapters))


def _measure(
    build: Build,
    num_layers: int,
    *,
    layer_input: float,
    arithmetic: Arithmetic,
    ignored: tuple[int, ...] | None = None,
) -> Kept:
    one, two = (_saved_bytes(build, count, arithmetic=arithmetic, ignored=ignored) for count in (1, 2))
    return Kept(
        whole=one + (num_layers - 1) * (two - one), layer=two - one, layer_input=layer_input, num_layers=num_layers
    )


def _saved_bytes(build: Build, num_layers: int, *, arithmetic: Arithmetic, ignored: tuple[int, ...] | None) -> float:
    """Bytes of all tensors that autograd saves, weights and tensors of one shape excepted, each storage once."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():
            model, forward = build(num_layers)
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        # The tensors are held so that no address is used twice.
        saved: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            key = tensor.untyped_storage()._cdata
            if key not in weights and tuple(tensor.shape) != ignored:
                saved[key] = tensor
            return tensor

        with _autocast(arithmetic), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = forward()
        del result
        return float(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))


def _autocast(arithmetic: Arithmetic) -> AbstractContextManager[None]:
    if arithmetic.autocast is None:
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast("cpu", dtype=arithmetic.autocast)
    return context


def _with_layers(config: Any, num_layers: int) -> Any:
    short = copy.deepcopy(config)
    short.num_hidden_layers = num_layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:num_layers]
    rope = getattr(short, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        # Some kinds look at the positions' values, which these tensors do not have; what is kept is the same.
        short.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]} | {
            name: rope[name] for name in ("partial_rotary_factor",) if name in rope
        }
    return short


def _attention(arithmetic: Arithmetic) -> str:
    """Flash attention keeps what SDPA's own fused kernels keep, and cannot run without an accelerator."""
    return "eager" if arithmetic.attention == "eager" else "sdpa"
