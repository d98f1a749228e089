"""What every connector's configuration answers, and how connectors become known to the Auto classes."""

from functools import wraps
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING, AutoConfig, AutoModel

from .connector_table import CONNECTORS

ConfigClass = TypeVar("ConfigClass", bound=type)


def plain_errors(config_class: ConfigClass) -> ConfigClass:
    """Class decorator: a value of the wrong type is a `ValueError` of one line that names the field."""
    build = config_class.__init__

    @wraps(build)
    def build_or_explain(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            build(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"`{config_class.__name__}` cannot be built: {one_line(error)}") from error

    config_class.__init__ = build_or_explain
    return config_class


def one_line(error: Exception) -> str:
    """Text of an error in one line; the host lists what each permitted type had against the value."""
    text = " ".join(str(error).split())
    return text.partition(". Errors: ")[0].removeprefix("Validation error for ")


@plain_errors
@strict
class XGenMMConnectorConfig(PreTrainedConfig):
    """Base of the connectors' configurations.

    A connector is a `PreTrainedModel` whose `forward(features, patch_attention_mask=None, **kwargs)` takes tower
    features of shape (groups, patches, hidden_size) with a mask of shape (groups, patches), `False` on padding, and
    returns an output whose `last_hidden_state` has shape (groups, tokens, output_size). A group is a tile, or with
    `tile_grouping="image"` a whole image. `register_connector` makes one known.

    Attributes:
        needs_square_grid: Whether patches must be one tile's, row by row, so that they form a square.
        reads_prompt: Whether the module reads the prompt beside the features; `XGenMMModel` hands it none.
        hidden_size: Width of the features; `None` until the model's configuration fills it in.
        output_size: Width of the image tokens; `None` until the model's configuration fills it in.
    """

    base_config_key = "resampler_config"
    needs_square_grid = False
    reads_prompt = False

    hidden_size: int | None = None
    output_size: int | None = None

    def num_tokens(self, num_patches: int) -> int:
        """Image tokens that the connector makes of one group.

        Args:
            num_patches: Patches of the group, those of padding included.
        """
        raise NotImplementedError(f"`{type(self).__name__}` does not say how many tokens it makes.")

    def fill_sizes(self, *, hidden_size: int, output_size: int) -> None:
        """Fill in sizes that are left open.

        Args:
            hidden_size: Width of the vision tower.
            output_size: Width of the language model.
        """
        if self.hidden_size is None:
            self.hidden_size = hidden_size
        if self.output_size is None:
            self.output_size = output_size


def register_connector(config_class: type[PreTrainedConfig], model_class: type) -> None:
    """Make the Auto classes know a connector, unless they know one of its type already.

    Args:
        config_class: Its configuration class.
        model_class: Its module class.
    """
    if config_class.model_type not in CONFIG_MAPPING:
        AutoConfig.register(config_class.model_type, config_class)
        AutoModel.register(config_class, model_class)


def is_connector_type(model_type: Any) -> bool:
    """Whether a `model_type` is that of a registered connector."""
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return False
    return is_connector(CONFIG_MAPPING[model_type])


def is_connector(config: Any) -> bool:
    """Whether a configuration, or a class of them, answers what a connector's does.

    Code that was saved beside a checkpoint has a base class of its own, so the answers count and not the class.
    """
    return all(hasattr(config, name) for name in ("num_tokens", "fill_sizes", "needs_square_grid", "reads_prompt"))


def known_connector_types() -> list[str]:
    """Types of the registered connectors, the package's own first."""
    own = [connector.model_type for connector in CONNECTORS]
    others = [config_class.model_type for config_class in _subclasses(XGenMMConnectorConfig)]
    return [model_type for model_type in dict.fromkeys([*own, *others]) if model_type in CONFIG_MAPPING]


def _subclasses(parent: type) -> list[Any]:
    return [found for child in parent.__subclasses__() for found in (child, *_subclasses(child))]
