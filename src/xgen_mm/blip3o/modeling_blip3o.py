"""BLIP3-o: a language model that understands, and whose query states say what is to be drawn."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import ModelOutput

from ..errors import ConversionError, PlaceholderMismatchError
from ..modeling.pretrained_xgen_mm import XGenMMPreTrainedModel, check_directory
from .configuration_blip3o import Blip3oConfig
from .diffusion_transformer import Blip3oDiffusionTransformer
from .feature_tower import Blip3oFeatureTower
from .flow_matching import NUM_TRAIN_STEPS, draw_noise, euler_steps, guided
from .pixel_decoder import Blip3oPixelDecoder

Generators = torch.Generator | Sequence[torch.Generator] | None
# Begin of the pattern of a name that only the released layout has.
RELEASED_MARK = r"^model\.latent_queries"
# Noise of the features that a pixel decoder is steered away from. Fixed, so that an image does not depend on others.
NEGATIVE_SEED = 0


class PixelDecoder(Protocol):
    """What `generate` asks of a pixel decoder."""

    def decode(
        self,
        features: torch.Tensor,
        *,
        negative_features: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> torch.Tensor:
        """Draw pixels.

        Args:
            features: Feature maps, shape (batch, channels, height, width).
            negative_features: One feature map to be steered away from, shape (1, channels, height, width).
            guidance_scale: Weight of the features against the negative ones.
            num_inference_steps: Steps from noise to pixels; `None` takes the decoder's own.
            generator: Draws the noise; several draw that of one image each.

        Returns:
            Pixels from 0 to 1, shape (batch, 3, height, width).
        """


@dataclass
class Blip3oImageOutput(ModelOutput):
    """What `generate` draws.

    Attributes:
        features: Feature maps, shape (images, channels, height, width).
        pixel_values: Pixels from 0 to 1, shape (images, 3, height, width); `None` without a pixel decoder.
    """

    features: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None


@dataclass
class Blip3oTrainingOutput(ModelOutput):
    """One training step.

    Attributes:
        loss: Mean squared error of the velocity, float32.
        velocity: Predicted noise minus features, shape (batch, channels, height, width).
    """

    loss: torch.Tensor | None = None
    velocity: torch.Tensor | None = None


class Blip3oForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Language model, learned queries and diffusion transformer, with the feature tower and a pixel decoder if wanted.

    Text is the language model's own business: without targets, `forward` and `generate` are those of the host's class
    and take its arguments.

    Source: BLIP3-o (arXiv:2505.09568); `docs/blip3o.md` has the equations.
    """

    config: Blip3oConfig
    input_modalities = ("image", "text")
    output_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # It gives targets of training; drawing does without.
    _keys_to_ignore_on_load_unexpected = [r"^feature_tower\."]
    # The host writes a model back as it was read; ours is always written in our own layout.
    _weight_conversions: list[Any] = []
    # The loss is a mean over samples; the Trainer must not divide it again.
    accepts_loss_kwargs = False

    def __init__(self, config: Blip3oConfig) -> None:
        """Build the parts that the configuration has."""
        super().__init__(config)
        has_images = type(config.text_config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        language_model = AutoModelForImageTextToText if has_images else AutoModelForCausalLM
        self.language_model = language_model.from_config(config.text_config, trust_remote_code=False)
        self.input_modalities = self.language_model.input_modalities
        self.latent_queries = nn.Parameter(torch.empty(1, config.num_queries, config.get_text_config().hidden_size))
        self.diffusion_transformer = Blip3oDiffusionTransformer._from_config(config.diffusion_config)
        self.feature_tower = config.feature_config and Blip3oFeatureTower._from_config(config.feature_config)
        self.pixel_decoder = config.pixel_decoder_config and Blip3oPixelDecoder._from_config(
            config.pixel_decoder_config
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.latent_queries)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint in our layout, or the unmodified files of a released one; arguments are the host's.

        A model read from released files is saved in our layout.

        Raises:
            ConversionError: If released files lack weights or hold others (for a checkpoint in our layout, the host
                only warns about either); if the files of a directory are damaged, or its index points outside it.
        """
        check_directory(*args[:1], **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        with XGenMMPreTrainedModel._reading():
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        used = [pattern for conversion in model._weight_conversions or () for pattern in conversion.source_patterns]
        model._weight_conversions = []
        problems = {"lacks": info["missing_keys"], "has no place for": info["unexpected_keys"]}
        found = [f"{what} {', '.join(sorted(names))}" for what, names in problems.items() if names]
        if found and any(pattern.startswith(RELEASED_MARK) for pattern in used):
            raise ConversionError(
                f"The checkpoint is in the released layout but does not fit the model, which {'; and '.join(found)}. "
                "Download it again, or give the `config` with its sizes."
            )
        return (model, info) if wants_info else model

    def get_input_embeddings(self) -> nn.Module:
        """Token table of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace that table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Output layer of the language model."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace that layer."""
        self.language_model.set_output_embeddings(value)

    def encode_condition(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **image_inputs: Any
    ) -> torch.Tensor:
        """States of the query vectors, which say what is to be drawn.

        Args:
            input_ids: Prompts as the processor writes them for images, shape (batch, sequence): each row has
                `num_queries` placeholders of query vectors. Padding may be on either side.
            attention_mask: Shape (batch, sequence), 1 on real tokens; `None` if there is no padding.
            **image_inputs: Images in the prompts, as the language model takes them.

        Returns:
            States after the language model's last normalization, shape (batch, num_queries, hidden_size).

        Raises:
            PlaceholderMismatchError: If a row has another number of placeholders.
        """
        is_query = input_ids == self.config.query_token_id
        counts = is_query.sum(1).tolist()
        if any(count != self.config.num_queries for count in counts):
            raise PlaceholderMismatchError(
                f"`input_ids` holds {counts} query placeholders (id {self.config.query_token_id}) per row; expected "
                f'{self.config.num_queries} in each. Have the processor write them: `generation_mode="image"`.'
            )
        embeds = self.get_input_embeddings()(input_ids)
        queries = self.latent_queries.to(embeds.dtype).expand(len(embeds), -1, -1)
        embeds = embeds.masked_scatter(is_query.unsqueeze(-1), queries)
        # Tokens count 0, 1, 2, ... on every rotary axis, also where the prompt has an image: as trained.
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        outputs = self.language_model.base_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=(shown.long().cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            **image_inputs,
        )
        return outputs.last_hidden_state[is_query].unflatten(0, (len(input_ids), -1))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model, or with targets one training step of image generation.

        Args:
            input_ids: Token ids, shape (batch, sequence).
            attention_mask: Shape (batch, sequence), 1 on real tokens; `None` if there is no padding.
            target_features: Feature maps to draw, shape (batch, channels, height, width), from
                `feature_tower.feature_map`.
            target_pixel_values: Images to take them from instead, as the processor prepares them, shape
                (batch, 3, image_size, image_size).
            generator: Draws noise, times and dropped conditions, on the CPU.
            **kwargs: Further inputs of the language model. `labels` count for text only: a step of image generation
                trains nothing but the drawing.

        Returns:
            `Blip3oTrainingOutput` with targets, else the output of the language model.

        Raises:
            ValueError: If targets are given twice, as images where there is no feature tower, or not one map of the
                model's size per prompt.
        """
        if target_features is None and target_pixel_values is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs.pop("labels", None)
        features = self._targets(target_features, target_pixel_values)
        if features.shape != self._map_shape(len(input_ids)):
            raise ValueError(
                f"Targets are of shape {tuple(features.shape)}; expected one map per prompt, "
                f"{tuple(self._map_shape(len(input_ids)))}."
            )
        condition = self.encode_condition(input_ids, attention_mask, **kwargs)
        batch = len(features)
        timesteps = NUM_TRAIN_STEPS - (NUM_TRAIN_STEPS * torch.rand(batch, generator=generator)).floor()
        rate = self.config.condition_dropout if self.training else 0.0
        dropped = torch.rand(batch, generator=generator) < rate
        noise = draw_noise(features.shape, generator=generator, device=features.device, dtype=torch.float32)
        return self.flow_matching_loss(features, condition, noise=noise, timesteps=timesteps, dropped=dropped)

    def flow_matching_loss(
        self,
        features: torch.Tensor,
        condition: torch.Tensor,
        *,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        dropped: torch.Tensor,
    ) -> Blip3oTrainingOutput:
        """Mean squared error of the velocity, for given draws.

        Args:
            features: Feature maps, shape (batch, channels, height, width).
            condition: Query states, shape (batch, num_queries, hidden_size).
            noise: Shape of `features`.
            timesteps: Whole times from 1 to 1000, shape (batch,).
            dropped: Bool, shape (batch,), whether a sample's condition is replaced by zeros.
        """
        features, noise = features.float(), noise.float()
        timesteps, dropped = timesteps.to(features.device), dropped.to(features.device)
        level = (timesteps / NUM_TRAIN_STEPS).view(-1, 1, 1, 1)
        noisy = (1 - level) * features + level * noise
        dtype = self.diffusion_transformer.dtype
        # Zeros before the projection, whose biases still act on them.
        condition = condition.to(dtype).masked_fill(dropped.view(-1, 1, 1), 0)
        velocity = self.diffusion_transformer(noisy.to(dtype), timesteps, condition)
        return Blip3oTrainingOutput(loss=F.mse_loss(velocity.float(), noise - features), velocity=velocity)

    def sample_features(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        num_steps: int,
        guidance_scale: float,
        callback: Callable[[int, torch.Tensor], object] | None = None,
    ) -> torch.Tensor:
        """Draw feature maps.

        Args:
            condition: Query states, shape (prompts, num_queries, hidden_size).
            noise: Where to start, shape (images, channels, height, width): consecutive images belong to one prompt.
            num_steps: How many steps.
            guidance_scale: Weight of the condition against none; at 1 the transformer runs once per step, not twice.
            callback: As in `euler_steps`.

        Returns:
            Feature maps in the shape and type of `noise`.
        """
        transformer, num_images = self.diffusion_transformer, len(noise)
        # All that steps have in common, once for all of them.
        prepared = transformer.prepare_condition(torch.cat([torch.zeros_like(condition[:1]), condition]))
        prompts = torch.arange(1, len(condition) + 1, device=condition.device)
        prompts = prompts.repeat_interleave(num_images // len(condition))
        if guidance_scale == 1:
            rows = prepared.select_rows(prompts)
        else:
            rows = prepared.select_rows(torch.cat([torch.zeros_like(prompts), prompts]))

        def velocity(samples: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            def predict(inputs: torch.Tensor) -> torch.Tensor:
                return transformer(inputs, timestep.expand(len(inputs)), rows)

            return predict(samples) if guidance_scale == 1 else guided(predict, samples, scale=guidance_scale)

        return euler_steps(velocity, noise, num_steps=num_steps, callback=callback)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *, generation_mode: str = "text", **kwargs: Any) -> Any:
        """Generate text, or draw images.

        Args:
            inputs: Token ids, shape (batch, sequence); `input_ids` says the same.
            generation_mode: `"text"` calls the language model's `generate` with all other arguments; `"image"` draws,
                see `generate_images`.
            **kwargs: Arguments of either.

        Returns:
            What the language model's `generate` does; or pixels from 0 to 1, shape (images, 3, height, width), where
            there is a pixel decoder, else feature maps, shape (images, channels, height, width). With
            `return_dict_in_generate=True`, a `Blip3oImageOutput` with both.

        Raises:
            ValueError: If the mode is another one.
        """
        if generation_mode == "text":
            # Read from the checkpoint into this model.
            self.language_model.generation_config = self.generation_config
            return self.language_model.generate(inputs, **kwargs)
        if generation_mode != "image":
            raise ValueError(f'`generation_mode` is {generation_mode!r}; expected "text" or "image".')
        wants_dict = kwargs.pop("return_dict_in_generate", False)
        outputs = self.generate_images(kwargs.pop("input_ids", inputs), **kwargs)
        if wants_dict:
            return outputs
        return outputs.features if outputs.pixel_values is None else outputs.pixel_values

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        pixel_decoder: PixelDecoder | None = None,
        decoder_inference_steps: int | None = None,
        decoder_guidance_scale: float | None = None,
        **kwargs: Any,
    ) -> Blip3oImageOutput:
        """Draw images.

        Args:
            input_ids: Prompts, see `encode_condition`.
            attention_mask: Shape (batch, sequence), 1 on real tokens; `None` if there is no padding.
            num_inference_steps: Steps from noise to features; `None` takes the configuration's, as below.
            guidance_scale: Weight of the condition against none when features are drawn.
            num_images_per_prompt: Images of one prompt stand next to each other in the result.
            generator: Draws all noise. A sequence draws that of one image each, so that an image does not depend on
                what else is in the batch.
            noise: Where features start instead, shape (images, channels, height, width).
            pixel_decoder: Draws pixels from the features; `None` takes the model's own, if it has one.
            decoder_inference_steps: Steps from noise to pixels.
            decoder_guidance_scale: Weight of the features against those of an empty prompt when pixels are drawn.
            **kwargs: Images in the prompts, as the language model takes them. Settings of text generation, which
                pipelines pass, do not matter here.

        Raises:
            ValueError: If numbers of images, generators and noises do not belong together.
            TypeError: If an argument is none of these.
        """
        image_inputs = self._image_inputs(kwargs)
        config, dtype, device = self.config, self.diffusion_transformer.dtype, input_ids.device
        num_steps = config.num_image_steps if num_inference_steps is None else num_inference_steps
        scale = config.image_guidance_scale if guidance_scale is None else guidance_scale
        if num_images_per_prompt < 1:
            raise ValueError(f"`num_images_per_prompt` is {num_images_per_prompt}; expected at least 1.")
        shape = self._map_shape(len(input_ids) * num_images_per_prompt)
        if noise is None:
            noise = draw_noise(shape, generator=generator, device=device, dtype=dtype)
        elif noise.shape != shape:
            raise ValueError(f"`noise` has the shape {tuple(noise.shape)}; expected {tuple(shape)}.")
        condition = self.encode_condition(input_ids, attention_mask, **image_inputs).to(dtype)
        features = self.sample_features(condition, noise.to(device, dtype), num_steps=num_steps, guidance_scale=scale)
        decoder = self.pixel_decoder if pixel_decoder is None else pixel_decoder
        if decoder is None:
            return Blip3oImageOutput(features=features)
        decoder_scale = config.decoder_guidance_scale if decoder_guidance_scale is None else decoder_guidance_scale
        negative = None
        if decoder_scale != 1:
            negative = self._negative_features(num_steps=num_steps, guidance_scale=scale)
        pixels = decoder.decode(
            features,
            negative_features=negative,
            guidance_scale=decoder_scale,
            num_inference_steps=decoder_inference_steps,
            generator=generator,
        )
        return Blip3oImageOutput(features=features, pixel_values=pixels)

    def _image_inputs(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Those that the language model takes; the rest may be settings of text generation, but nothing else."""
        taken = inspect.signature(self.language_model.base_model.forward).parameters
        others = arguments.keys() - taken
        unknown = sorted(others - vars(GenerationConfig()).keys() - {"generation_config"})
        if unknown:
            raise TypeError(f"Unknown arguments to draw images: {', '.join(unknown)}; see `generate_images`.")
        return {name: value for name, value in arguments.items() if name not in others}

    def _negative_features(self, *, num_steps: int, guidance_scale: float) -> torch.Tensor:
        """Features drawn for the empty prompt, the same in every call."""
        config, transformer = self.config, self.diffusion_transformer
        ids = [*config.negative_prompt_ids, config.image_start_token_id, *[config.query_token_id] * config.num_queries]
        condition = self.encode_condition(torch.tensor([ids], device=self.latent_queries.device)).to(transformer.dtype)
        generator = torch.Generator().manual_seed(NEGATIVE_SEED)
        noise = draw_noise(self._map_shape(1), generator=generator, device=condition.device, dtype=transformer.dtype)
        return self.sample_features(condition, noise, num_steps=num_steps, guidance_scale=guidance_scale)

    def _map_shape(self, num_images: int) -> torch.Size:
        sizes = self.config.diffusion_config
        return torch.Size((num_images, sizes.num_channels, sizes.sample_size, sizes.sample_size))

    def _targets(self, features: torch.Tensor | None, pixel_values: torch.Tensor | None) -> torch.Tensor:
        if features is not None and pixel_values is not None:
            raise ValueError("`target_features` and `target_pixel_values` are both given; give one of them.")
        if pixel_values is None:
            return features
        if self.feature_tower is None:
            raise ValueError(
                "`target_pixel_values` are given, but the model has no feature tower. Set `config.feature_config`, or "
                "compute features beforehand and give `target_features`."
            )
        with torch.no_grad():
            return self.feature_tower.feature_map(pixel_values)
