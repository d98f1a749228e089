"""Any registered connector: what a model asks of it, and what is refused."""

from typing import Any

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

import xgen_mm
from xgen_mm import XGenMMConfig, XGenMMModel, XGenMMV1Config
from xgen_mm.connectors.connector_config import XGenMMConnectorConfig, register_connector
from xgen_mm.connectors.connector_table import CONNECTORS


@strict
class PoolConfig(XGenMMConnectorConfig):
    model_type = "test_pool"
    needs_square_grid = True

    side: int = 2

    def num_tokens(self, num_patches: int) -> int:
        return self.side**2


class PoolConnector(PreTrainedModel):
    """Pools a square of patches to a smaller one."""

    config: PoolConfig

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.output_size)
        self.post_init()

    def forward(self, features: torch.Tensor, patch_attention_mask: Any = None, **_: Any) -> BaseModelOutput:
        edge = round(features.shape[1] ** 0.5)
        grid = features.transpose(1, 2).unflatten(2, (edge, edge))
        pooled = nn.functional.adaptive_avg_pool2d(grid, self.config.side)
        return BaseModelOutput(last_hidden_state=self.projection(pooled.flatten(2).transpose(1, 2)))


@strict
class PromptConfig(XGenMMConnectorConfig):
    model_type = "test_prompt"
    reads_prompt = True

    def num_tokens(self, num_patches: int) -> int:
        return 1


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register_connector(PoolConfig, PoolConnector)
    AutoConfig.register("test_prompt", PromptConfig, exist_ok=True)


def with_connector(config: XGenMMConfig, connector: Any, **changes: Any) -> XGenMMConfig:
    return XGenMMConfig(**(config.to_dict() | {"resampler_config": connector, **changes}))


@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda connector: connector.name)
def test_auto_classes_know_every_connector_of_the_table(connector: Any) -> None:
    config = AutoConfig.for_model(connector.model_type, hidden_size=8, output_size=4)
    config.fill_sizes(hidden_size=8, output_size=4)
    module = AutoModel.from_config(config)
    assert type(config) is getattr(xgen_mm, connector.config)
    assert type(module) is getattr(xgen_mm, connector.model)
    tokens = module(torch.zeros(2, 9, 8), torch.ones(2, 9, dtype=torch.bool)).last_hidden_state
    assert tokens.shape == (2, config.num_tokens(9), 4)


def test_dict_without_type_is_the_released_resampler(tiny_config: XGenMMConfig) -> None:
    fields = tiny_config.to_dict()
    fields["resampler_config"].pop("model_type")
    assert XGenMMConfig(**fields).to_dict() == tiny_config.to_dict()


def test_connector_registered_by_somebody_else_is_built_and_asked(tiny_config: XGenMMConfig) -> None:
    config = with_connector(tiny_config, {"model_type": "test_pool", "side": 3}, tile_grouping="tile")
    model = XGenMMModel(config)
    assert type(model.resampler) is PoolConnector
    assert config.tokens_per_group == 9
    pixels = torch.zeros(1, 3, 3, config.tile_size, config.tile_size)
    sizes = torch.tensor([[2 * config.tile_size, config.tile_size]])
    (tokens,) = model.get_image_features(pixels, sizes).pooler_output
    assert tokens.shape == (3 * 9, config.text_config.hidden_size)


@pytest.mark.parametrize("grouping", ["raster_chunks", "image"])
def test_groups_that_are_no_square_are_refused(tiny_config: XGenMMConfig, grouping: str) -> None:
    with pytest.raises(ValueError, match=f"`tile_grouping` is '{grouping}', but a connector of type 'test_pool'"):
        with_connector(tiny_config, {"model_type": "test_pool"}, tile_grouping=grouping)


def test_connector_that_reads_the_prompt_is_refused(tiny_config: XGenMMConfig) -> None:
    with pytest.raises(ValueError, match="'test_prompt', a connector that reads the prompt"):
        with_connector(tiny_config, {"model_type": "test_prompt"})


@pytest.mark.parametrize("model_type", ["xgenmm_nonsense", "phi3", 7])
def test_unknown_types_are_refused_with_the_known_ones(tiny_config: XGenMMConfig, model_type: Any) -> None:
    known = "knows 'xgenmm_resampler', 'xgenmm_mlp', 'test_pool', 'test_prompt'"
    with pytest.raises(ValueError, match=known):
        with_connector(tiny_config, {"model_type": model_type})


def test_first_release_takes_its_own_resampler_alone() -> None:
    with pytest.raises(ValueError, match="is 'xgenmm_mlp'; the v1 architecture knows 'xgenmm_resampler' alone"):
        XGenMMV1Config(resampler_config={"model_type": "xgenmm_mlp"})
