"""Configuration of xGen-MM (BLIP-3) models."""

import copy
import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING, AutoConfig

from ..connectors.connector_config import (
    is_connector,
    is_connector_type,
    known_connector_types,
    one_line,
    plain_errors,
)
from ..connectors.connector_table import DEFAULT_MODEL_TYPE
from .released_config import RELEASED_KEYS, SIGLIP_SO400M, translate_released_config

# Canvases of the released checkpoints in tiles, (rows, cols); the order breaks ties. There is no 1 x 1.
RELEASED_GRIDS = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
# Vision towers with a pooling head on top. Our models never call it, so `vision_use_head = False` leaves it unbuilt.
# (Old versions of transformers read that setting but do not declare it.)
TOWERS_WITH_POOLING_HEAD = ("siglip_vision_model", "siglip2_vision_model")

# Vision towers whose embeddings are one row per patch, so that the others can be taken out behind them.
TOWERS_THAT_DROP_PATCHES = ("siglip_vision_model",)

# Sizes that a part cannot do without, where its configuration has them as one number.
POSITIVE_FIELDS = (
    "hidden_size",
    "output_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_latents",
    "vocab_size",
    "image_size",
    "patch_size",
)

# What models call the name of their activation function, and names that every version of transformers knows.
ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function")
USUAL_ACTIVATIONS = frozenset(("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"))


@plain_errors
@strict
class XGenMMConfig(PreTrainedConfig):
    """Configuration of `XGenMMModel` and `XGenMMForConditionalGeneration`.

    The defaults describe the released v1.5 4B models. The released `config.json` is read as it is (see
    `released_config.py`); what is written back is always the layout of this class.

    Args:
        vision_config: Any vision tower transformers knows, as a config or a dict with `model_type`.
        resampler_config: Any registered connector, as a config or a dict; without `model_type`, the released
            perceiver resampler.
        text_config: Any causal language model transformers knows, as a config or a dict with `model_type`.
        image_token_id: Id of the `<image>` placeholder; one per image token in `input_ids`.
        image_grid_pinpoints: Permitted canvases as `[height, width]` in pixels; `None` takes the released five shapes
            at the tower's image size.
        tile_grouping: What the resampler reads at once. `"raster_chunks"` cuts the feature map of the canvas into
            consecutive raster chunks, as every released checkpoint expects; `"tile"` keeps each tile's features
            together, the better choice for newly trained models; `"image"` joins all features of a picture, so that it
            costs as many tokens as one tile whatever its size.
        lm_head_bias: Whether the output layer has a bias; the released checkpoints have one.
        max_tiles_per_call: Most tiles that go through tower and resampler in one call, which bounds memory; `None`
            decides by device (small calls are faster on a CPU, one large call on an accelerator).
        drop_padded_patches: Whether patches of the canvas's padding are left out of the vision tower, which saves a
            third of its work on a 3:2 photo. Features of the content are then those of a tower that masks padding,
            not those of the released models, whose tower sees it: for models trained this way, with
            `tile_grouping="tile"` and a SigLIP tower only.
        tie_word_embeddings: Whether the output layer shares the embedding table (never in released checkpoints).
        use_cache: Whether keys and values of earlier positions are kept where a call leaves it open; `None` takes the
            language model's own setting. `generate` asks the generation configuration, which starts out the same.

    Source: xGen-MM technical report (arXiv:2408.08872) and the released v1.5 configuration.
    """

    model_type = "xgenmm"
    # What a class derived from this one, with a model type of its own, still is.
    architecture = "xgenmm"
    sub_configs = {
        "vision_config": AutoConfig,
        "resampler_config": AutoConfig,
        "text_config": AutoConfig,
    }
    # Evaluation by the host's Trainer keeps scores alone: no caches (by both of their names), no image tokens.
    keys_to_ignore_at_inference = ["past_key_values", "cache", "image_hidden_states"]
    # Other models of the host call it so.
    attribute_map = {"image_token_index": "image_token_id"}
    # Tower and resampler are gathered as wholes too: `generate` calls them outside the model's own forward pass.
    base_model_fsdp_plan = {
        "vision_tower": "free_full_weight",
        "vision_tower.encoder.layers.*": "free_full_weight",
        "resampler": "free_full_weight",
    }

    vision_config: dict | PreTrainedConfig | None = None
    resampler_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32012
    image_grid_pinpoints: list | None = None
    tile_grouping: Literal["raster_chunks", "tile", "image"] = "raster_chunks"
    lm_head_bias: bool = True
    max_tiles_per_call: int | None = None
    drop_padded_patches: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build sub-configurations from dicts and fill the widths that follow from one another."""
        released = {key: kwargs.pop(key) for key in RELEASED_KEYS if key in kwargs}
        if released:
            # The released remote code is never used, so a saved pointer to it would only mislead.
            kwargs.pop("auto_map", None)
            for name, value in translate_released_config(released, text_config=self.text_config).items():
                setattr(self, name, value)
        self.vision_config = build_sub_config(self.vision_config, SIGLIP_SO400M, name="vision_config")
        self.text_config = build_sub_config(
            self.text_config, {"model_type": "phi3", "vocab_size": 32015}, name="text_config"
        )
        self.resampler_config = self._build_resampler_config()
        for name, needed in (("vision_config", ("image_size", "patch_size")), ("text_config", ("vocab_size",))):
            check_sizes(getattr(self, name), name=name, needed=("hidden_size", *needed))
        self.resampler_config.fill_sizes(
            hidden_size=self.vision_config.hidden_size, output_size=self.text_config.hidden_size
        )
        if self.image_grid_pinpoints is None:
            self.image_grid_pinpoints = [
                [rows * self.tile_size, cols * self.tile_size] for rows, cols in RELEASED_GRIDS
            ]
        self._check_values()
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read a configuration; arguments and result as in the host's method, which calls `from_dict`."""
        is_named = "name_or_path" in kwargs
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        result = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if not is_named:
            # The name was for `from_dict` alone: a loaded configuration equals the one that was saved.
            (result[0] if isinstance(result, tuple) else result).name_or_path = ""
        return result

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the configuration; arguments and result as in the host's method.

        Releases of other architectures carry the same model type: their files give the subclass that reads them.
        """
        if cls is XGenMMConfig:
            source = kwargs.get("name_or_path") or None
            for architecture in cls.__subclasses__():
                if architecture.reads_released(config_dict, source=source):
                    return architecture.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def reads_released(cls, config_dict: dict[str, Any], *, source: str | None) -> bool:
        """Whether a released `config.json` is one for this class rather than for `XGenMMConfig`.

        Args:
            config_dict: Content of the file.
            source: Directory or repository that it came from, if known.
        """
        return False

    @property
    def tile_size(self) -> int:
        """Edge of a square tile in pixels: the vision tower's image size."""
        return self.vision_config.image_size

    @property
    def cells_per_tile(self) -> int:
        """Feature cells along one edge of a tile (27 for 384 pixels and patches of 14)."""
        return self.tile_size // self.vision_config.patch_size

    @property
    def tokens_per_group(self) -> int:
        """Image tokens of one tile; of one image with `tile_grouping="image"`."""
        return int(self.resampler_config.num_tokens(self.cells_per_tile**2))

    def _build_resampler_config(self) -> PreTrainedConfig:
        given = self.resampler_config
        if is_connector(given):
            return given
        fields = dict(given.to_dict() if isinstance(given, PreTrainedConfig) else given or {})
        model_type = fields.pop("model_type", DEFAULT_MODEL_TYPE)
        if not is_connector_type(model_type):
            known = ", ".join(repr(name) for name in known_connector_types())
            raise ValueError(
                f"`resampler_config.model_type` is {model_type!r}; `{type(self).__name__}` knows {known}. Leave it "
                f"out for {DEFAULT_MODEL_TYPE!r}; import the module that registers another one first."
            )
        return CONFIG_MAPPING[model_type](**fields)

    def _check_grouping(self) -> None:
        """Refuse groups of patches that the connector cannot read."""
        connector, grouping = self.resampler_config, self.tile_grouping
        name = f"a connector of type {connector.model_type!r}"
        if connector.needs_square_grid and grouping != "tile":
            raise ValueError(
                f"`tile_grouping` is {grouping!r}, but {name} reads patches as a square grid, which only those of one "
                "tile are. Use 'tile'."
            )
        num_patches = self.cells_per_tile**2
        # Images differ in patches; the shorter ones of a batch are filled up, and filler must not become tokens.
        if grouping == "image" and connector.num_tokens(2 * num_patches) != connector.num_tokens(num_patches):
            raise ValueError(
                f"`tile_grouping` is 'image', but {name} makes more tokens of more patches, so images of different "
                "sizes cannot be joined into one group each. Use 'tile'."
            )

    def _check_values(self) -> None:
        resampler = self.resampler_config
        check_sizes(resampler, name="resampler_config", needed=("hidden_size", "output_size"))
        for name in type(self).sub_configs:
            check_activation(getattr(self, name), name=name)
        if resampler.reads_prompt:
            raise ValueError(
                f"`resampler_config.model_type` is {resampler.model_type!r}, a connector that reads the prompt, which "
                f"`{type(self).__name__}` gives to none. Use one that reads images alone."
            )
        self._check_grouping()
        if self.image_token_id < 0:
            raise ValueError(f"`image_token_id` is {self.image_token_id}; expected the id of `<image>`, at least 0.")
        for name, ours, other in (
            ("hidden_size", resampler.hidden_size, self.vision_config.hidden_size),
            ("output_size", resampler.output_size, self.text_config.hidden_size),
        ):
            if ours != other:
                raise ValueError(
                    f"`resampler_config.{name}` is {ours} but the neighbouring module is {other} wide; "
                    "leave it `None` to have it filled in."
                )
        if not self.image_grid_pinpoints:
            raise ValueError("`image_grid_pinpoints` is empty; list at least one [height, width], or leave it `None`.")
        for canvas in self.image_grid_pinpoints:
            is_pair = isinstance(canvas, (list, tuple)) and len(canvas) == 2
            if not is_pair or any(not _is_count(side) or side % self.tile_size for side in canvas):
                raise ValueError(
                    f"`image_grid_pinpoints` holds {canvas}; each entry must be [height, width] in multiples of the "
                    f"tile size {self.tile_size}."
                )
        if self.max_tiles_per_call is not None and self.max_tiles_per_call < 1:
            raise ValueError(f"`max_tiles_per_call` is {self.max_tiles_per_call}; give at least 1, or `None`.")
        tower = self.vision_config.model_type
        if self.drop_padded_patches and (self.tile_grouping != "tile" or tower not in TOWERS_THAT_DROP_PATCHES):
            raise ValueError(
                f"`drop_padded_patches` is on with `tile_grouping` {self.tile_grouping!r} and a tower of type "
                f"{tower!r}; it needs 'tile' and one of {', '.join(TOWERS_THAT_DROP_PATCHES)}. Leave it off."
            )


def build_sub_config(
    config: dict | PreTrainedConfig | None, defaults: dict[str, Any], *, name: str
) -> PreTrainedConfig:
    """Configuration of one part.

    Args:
        config: A configuration, its fields, or `None`.
        defaults: Its fields (`model_type` among them) if none are given.
        name: What to call it in messages.

    Raises:
        ValueError: If transformers knows no such model type, or a field has a value of another type.
    """
    if isinstance(config, PreTrainedConfig):
        if config.model_type in TOWERS_WITH_POOLING_HEAD and getattr(config, "vision_use_head", True):
            # The caller's object stays as it is.
            config = copy.deepcopy(config)
            config.vision_use_head = False
        return config
    # Defaults describe one architecture; a dict that names another one starts from that one's own defaults.
    fields = dict(config or defaults)
    model_type = fields.setdefault("model_type", defaults["model_type"])
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`{name}.model_type` is {model_type!r}, which the installed transformers does not know; expected "
            f"{defaults['model_type']!r} or another type of it."
        )
    if model_type in TOWERS_WITH_POOLING_HEAD:
        fields.setdefault("vision_use_head", False)
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except StrictDataclassError as error:
        raise ValueError(f"`{name}` cannot be used: {one_line(error)}") from error
    except ZeroDivisionError as error:
        raise ValueError(f"`{name}` cannot be used: a number of heads in it is 0; give at least 1.") from error


def check_sizes(config: PreTrainedConfig, *, name: str, needed: tuple[str, ...]) -> None:
    """Refuse a part whose sizes are no whole numbers of at least 1.

    Args:
        config: Configuration of the part.
        name: What to call it in messages.
        needed: Fields that must be there.

    Raises:
        ValueError: If a size is missing or none.
    """
    for field in dict.fromkeys((*needed, *POSITIVE_FIELDS)):
        value = getattr(config, field, None)
        if (field in needed or isinstance(value, (int, float, str))) and not _is_count(value):
            raise ValueError(
                f"`{name}.{field}` is {value!r} (`{config.model_type}`); expected a whole number of at least 1."
            )
    num_layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(num_layers, int) and num_layers < 0:
        raise ValueError(f"`{name}.num_hidden_layers` is {num_layers}; expected at least 0.")


def check_activation(config: PreTrainedConfig, *, name: str) -> None:
    """Refuse a part whose activation function transformers does not know.

    Args:
        config: Configuration of the part.
        name: What to call it in messages.

    Raises:
        ValueError: If it names another one.
    """
    for field in ACTIVATION_FIELDS:
        value = getattr(config, field, None)
        if not isinstance(value, str) or value in USUAL_ACTIVATIONS:
            continue
        # Needs torch, which a configuration does without otherwise.
        from transformers.activations import ACT2FN

        if value not in ACT2FN:
            raise ValueError(
                f"`{name}.{field}` is {value!r}, which the installed transformers does not know; expected one of "
                f"{', '.join(sorted(ACT2FN))}."
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
