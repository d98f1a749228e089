"""Stage two: tower, resampler and language model learn together to answer questions."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..modeling.configuration_xgen_mm import XGenMMConfig
from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from .conversations import Conversation, Number, compare_texts, converse
from .digits import GlyphBank, draw_picture, random_distinct_numbers, random_number
from .patch_labels import NUM_CLASSES, score_patches, to_pixel_values
from .recipe import JointPhase, TinyRecipe
from .sequences import IGNORED, TokenTree, collate_trees, encode_tree
from .tiles import TiledPicture, cut_tiles
from .training import Batch, find_phase

TEXT_ROW_TOKENS = 120
SHORTEST_COMPARISON = 28
SHARED_LEAD_SHARE = 0.3


class XGenMMWithPatchHead(XGenMMForConditionalGeneration):
    """The model plus a linear layer that names the digit under every patch; the layer is used in training alone."""

    def __init__(self, config: XGenMMConfig, patch_loss_weight: tuple[float, float] = (0.4, 0.1)) -> None:
        """Build the model.

        Args:
            config: Configuration of the model.
            patch_loss_weight: Weight of the patch loss at the start and the end of training, linear in between.
        """
        super().__init__(config)
        self.patch_head = nn.Linear(config.vision_config.hidden_size, NUM_CLASSES)
        self.patch_loss_weight = patch_loss_weight

    def forward(
        self,
        tiles: torch.Tensor,
        image_sizes: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        label_weights: torch.Tensor,
        patch_labels: torch.Tensor,
        progress: float,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Loss of one batch and its parts.

        Args:
            tiles: Grey tiles of all pictures, uint8 of shape (tiles, S, S).
            image_sizes: Original (height, width) of each picture, shape (num_images, 2).
            input_ids: Shape (rows, tokens).
            attention_mask: Additive, shape (rows, 1, tokens, tokens).
            position_ids: Shape (rows, tokens).
            labels: Id of the following token or -100, shape (rows, tokens).
            label_weights: Shape (rows, tokens).
            patch_labels: Digit class or 10, shape (tiles, patches).
            progress: Share of the run that is done.
            **kwargs: Ignored.
        """
        logits, features = self.answer_logits(
            tiles,
            image_sizes,
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
        )
        chosen = labels != IGNORED
        targets, weights = labels[chosen], label_weights[chosen]
        answer_loss = (nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
        patches = score_patches(self.patch_head(features), patch_labels)
        first, last = self.patch_loss_weight
        return {
            "loss": answer_loss + (first + (last - first) * progress) * patches.loss,
            "answer_loss": answer_loss,
            "token_accuracy": (logits.detach().argmax(-1) == targets).float().mean(),
            "patch_accuracy": patches.accuracy,
        }

    def answer_logits(
        self,
        tiles: torch.Tensor,
        image_sizes: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores at the labelled positions only, shape (labels, vocabulary), and the tower's features."""
        images = self.model.get_image_features(to_pixel_values(tiles), image_sizes, return_dict=True)
        hidden = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            mm_encoder_outputs={"image": images},
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        return self.lm_head(hidden[labels != IGNORED]), images.last_hidden_state


class QuestionMaker:
    """Draws pictures and conversations and turns them into batches."""

    def __init__(self, bank: GlyphBank, tokenizer: PreTrainedTokenizerBase, config: XGenMMConfig) -> None:
        """Keep what every batch needs.

        Args:
            bank: Digits to write with.
            tokenizer: The model's tokenizer.
            config: Names tile, patch and latent counts.
        """
        self._bank = bank
        self._config = config
        self._pad_token_id = int(tokenizer.pad_token_id)
        # Few distinct texts occur; encoding each once makes the tokenizer's cost vanish.
        self._encode: Callable[[str], list[int]] = functools.lru_cache(maxsize=200_000)(
            lambda text: tokenizer.encode(text, add_special_tokens=False)
        )

    def batch(
        self,
        rng: np.random.Generator,
        sets: list[list[Number]],
        *,
        canonical: bool = False,
        text_rows: int = 0,
    ) -> Batch:
        """Pictures and questions for given numbers.

        Args:
            rng: Source of randomness.
            sets: The numbers of each row's pictures.
            canonical: Use the plain form of every conversation.
            text_rows: Further rows of text-only comparisons.
        """
        pictures, trees = [], []
        for numbers in sets:
            drawn = [self._draw(rng, number) for number in numbers]
            pictures += drawn
            lengths = [len(picture.tiles) * self._config.tokens_per_group for picture in drawn]
            trees.append(self._encode_tree(converse(rng, numbers, canonical=canonical), lengths))
        longest = max(TEXT_ROW_TOKENS, *(len(tree.input_ids) for tree in trees))
        trees += [self._text_row(rng, longest) for _ in range(text_rows)]
        return {
            "tiles": torch.from_numpy(np.concatenate([picture.tiles for picture in pictures])),
            "image_sizes": torch.tensor([picture.image_size for picture in pictures]),
            "patch_labels": torch.from_numpy(np.concatenate([picture.patch_labels for picture in pictures])),
            **collate_trees(trees, pad_token_id=self._pad_token_id),
        }

    def _draw(self, rng: np.random.Generator, number: Number) -> TiledPicture:
        vision = self._config.vision_config
        return cut_tiles(
            draw_picture(rng, self._bank, number),
            pinpoints=self._config.image_grid_pinpoints,
            tile_size=vision.image_size,
            patch_size=vision.patch_size,
        )

    def _text_row(self, rng: np.random.Generator, longest: int) -> TokenTree:
        """As many comparisons as fit into the length that the rows with pictures have anyway."""
        sets = [_text_set(rng) for _ in range(longest // SHORTEST_COMPARISON)]
        conversation = compare_texts(rng, sets)
        ends = np.bincount(self._encode_tree(conversation, []).nodes).cumsum()
        fitting = max(2, int((ends <= longest).sum()))
        return self._encode_tree(Conversation(conversation.nodes[:fitting]), [])

    def _encode_tree(self, conversation: Conversation, image_lengths: list[int]) -> TokenTree:
        return encode_tree(
            conversation,
            image_lengths,
            encode=self._encode,
            image_token_id=self._config.image_token_id,
        )


class QuestionBatches(Dataset):
    """Item i is the i-th batch of questions, made from (seed, i); all processes of a step get the same kind."""

    def __init__(self, maker: QuestionMaker, recipe: TinyRecipe) -> None:
        """Keep the maker; nothing is drawn yet."""
        self._maker = maker
        self._recipe = recipe

    def __len__(self) -> int:
        """Batches of all processes over the whole stage."""
        return sum(phase.steps for phase in self._recipe.joint.phases) * self._recipe.num_processes

    def __getitem__(self, index: int) -> Batch:
        """Draw batch `index`."""
        recipe = self._recipe
        step = index // recipe.num_processes
        phase = recipe.joint.phases[find_phase(step, [phase.steps for phase in recipe.joint.phases])]
        # Equal work for all processes of a step, so that none waits for another.
        shared = np.random.default_rng([recipe.seed, 2, step])
        num_images = 1 + int(shared.choice(len(phase.image_weights), p=phase.image_weights))
        rng = np.random.default_rng([recipe.seed, 3, index])
        # A picture of these sizes costs 4.66 tiles on average.
        rows = max(1, round(recipe.joint.tiles_per_process / (4.66 * num_images)))
        sets = [draw_numbers(rng, num_images, phase) for _ in range(rows)]
        return self._maker.batch(rng, sets, text_rows=phase.text_rows)


def draw_numbers(rng: np.random.Generator, num_images: int, phase: JointPhase) -> list[Number]:
    """The numbers of one row: any digits for a single picture, all different for a set."""
    if num_images == 1:
        lengths = np.arange(1, len(phase.single_lengths) + 1)
        return [random_number(rng, int(rng.choice(lengths, p=phase.single_lengths)))]
    return random_distinct_numbers(rng, num_images, length_weights=list(phase.set_lengths))


def _text_set(rng: np.random.Generator) -> list[Number]:
    """Two to four different numbers; some share their first digit, so that later digits decide."""
    count = int(rng.integers(2, 5))
    numbers = random_distinct_numbers(rng, count, length_weights=[0.2, 0.2, 0.3, 0.15, 0.15])
    if rng.random() < SHARED_LEAD_SHARE:
        led = [(numbers[0][0], *number[1:]) for number in numbers]
        if len(set(led)) == count and all(number[0] or len(number) == 1 for number in led):
            return led
    return numbers
