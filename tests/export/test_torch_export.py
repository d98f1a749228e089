"""`torch.export` of what runs on pictures, and of the language model with a static cache."""

import torch
from torch.export import Dim, export
from transformers import StaticCache

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration
from xgen_mm.modeling.host import CACHE_NAME
from xgen_mm.modeling.tile_layout import anyres_layout


class PictureEncoder(torch.nn.Module):
    """Tiles to image tokens; the regrouping of cells is an input, because it depends on the sizes of the pictures."""

    def __init__(self, model: XGenMMForConditionalGeneration) -> None:
        super().__init__()
        self.vision_tower, self.resampler = model.model.vision_tower, model.model.resampler

    def forward(self, tiles: torch.Tensor, cell_order: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cells = self.vision_tower(tiles).last_hidden_state.flatten(0, 1)
        groups = cells.index_select(0, cell_order.flatten()).unflatten(0, cell_order.shape)
        tokens: torch.Tensor = self.resampler(groups, mask).last_hidden_state
        return tokens


def encoder_inputs(
    sizes: list[tuple[int, int]], config: XGenMMConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layout = anyres_layout(sizes, config)
    num_tiles, num_cells = sum(layout.num_tiles), config.cells_per_tile**2
    tiles = torch.randn(num_tiles, 3, config.tile_size, config.tile_size, generator=torch.Generator().manual_seed(0))
    order, mask = layout.cell_order, layout.patch_attention_mask
    order = torch.arange(num_tiles * num_cells).view(num_tiles, num_cells) if order is None else order
    mask = torch.ones(num_tiles, num_cells, dtype=torch.bool) if mask is None else mask
    return tiles, order, mask


def test_exported_picture_encoder_takes_any_number_of_tiles(tiny_model: XGenMMForConditionalGeneration) -> None:
    config = tiny_model.config
    tiles = Dim("tiles", min=2, max=512)
    program = export(
        PictureEncoder(tiny_model),
        encoder_inputs([(20, 60), (40, 40)], config),
        dynamic_shapes=({0: tiles}, {0: tiles}, {0: tiles}),
    )
    for sizes in ([(20, 60), (40, 40)], [(84, 20)], [(30, 50)] * 3):
        inputs = encoder_inputs(sizes, config)
        with torch.no_grad():
            expected = torch.cat(tiny_model.get_image_features(inputs[0], torch.tensor(sizes)).pooler_output)
            found = program.module()(*inputs).flatten(0, 1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class Decoder(torch.nn.Module):
    """The language model with a static cache inside."""

    def __init__(self, model: XGenMMForConditionalGeneration, *, max_length: int) -> None:
        super().__init__()
        self.model = model
        text = model.config.text_config
        self.cache = StaticCache(config=text, max_cache_len=max_length)
        head_dim = text.hidden_size // text.num_attention_heads
        self.cache.early_initialization(1, text.num_key_value_heads, head_dim, torch.float32, "cpu")
        for number, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys_{number}", layer.keys, persistent=False)
            self.register_buffer(f"values_{number}", layer.values, persistent=False)
            self.register_buffer(f"length_{number}", layer.cumulative_length, persistent=False)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        outputs = self.model(
            inputs_embeds=inputs_embeds, position_ids=position_ids, **{CACHE_NAME: self.cache}, use_cache=True
        )
        logits: torch.Tensor = outputs.logits
        return logits


def test_exported_language_model_goes_on_from_its_static_cache_by_any_number_of_tokens(
    tiny_model: XGenMMForConditionalGeneration,
) -> None:
    length = Dim("length", min=1, max=60)
    embed = tiny_model.get_input_embeddings()
    example = (embed(torch.arange(10, 17)[None]).detach(), torch.arange(7)[None])
    shapes = ({1: length}, {1: length})
    program = export(Decoder(tiny_model, max_length=64), example, dynamic_shapes=shapes, strict=False)
    decoder = program.module()
    ids = torch.randint(10, 100, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tiny_model(input_ids=ids).logits
        # A prompt, single steps, and a longer continuation.
        for start, stop in ((0, 23), (23, 24), (24, 25), (25, 40)):
            found = decoder(embed(ids[:, start:stop]), torch.arange(start, stop)[None])
            torch.testing.assert_close(found, expected[:, start:stop], atol=1e-5, rtol=0)
