"""Names of the package's connectors; a new one is a file beside this one and an entry here. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Connector:
    """Names that belong to one connector.

    Attributes:
        name: Its module, and what `from_parts` and `xgen-mm init` call it.
        model_type: As in `resampler_config` of a `config.json`.
        config: Configuration class.
        model: Module class.
    """

    name: str
    model_type: str
    config: str
    model: str


CONNECTORS = (
    Connector(
        name="perceiver",
        model_type="xgenmm_resampler",
        config="XGenMMResamplerConfig",
        model="XGenMMPerceiverResampler",
    ),
    Connector(name="mlp", model_type="xgenmm_mlp", config="XGenMMMLPConfig", model="XGenMMMLPConnector"),
)
# What a `resampler_config` without a type is: files of the releases, and all that were saved before there was another.
DEFAULT_MODEL_TYPE = CONNECTORS[0].model_type


def find_connector(name: str) -> Connector:
    """Entry of a connector.

    Args:
        name: Its name.

    Raises:
        ValueError: If there is none of that name.
    """
    for connector in CONNECTORS:
        if connector.name == name:
            return connector
    names = " or ".join(repr(connector.name) for connector in CONNECTORS)
    raise ValueError(f"`connector` is {name!r}; expected {names}.")
