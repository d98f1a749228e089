"""The second preference step per batch: the chosen answer against what the model answers to a noised picture.

The first version of the technical report follows POVID here: an answer that does not depend on what the picture shows
reveals what the model makes up by itself, and is one more rejected answer to the question with the clear picture. How
much noise, the weight of the step and how the answer is drawn are not published; ours are greedy answers, the linear
schedule of DDPM, and two backward passes whose gradients add up to one update.

Sources: xGen-MM technical report (arXiv:2408.08872, first version), post-training; Y. Zhou et al., *Aligning
Modalities in Vision Large Language Models via Preference Fine-tuning* (POVID, arXiv:2402.11411); J. Ho et al.,
*Denoising Diffusion Probabilistic Models* (arXiv:2006.11239), equation 4 and section 4 for the schedule.
"""

import zlib
from collections import defaultdict
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from ..recipe_sections import NoisedPictureSection

Batch: TypeAlias = dict[str, Any]

NUM_STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
# What TRL's collator makes of the texts; everything else in a batch belongs to pictures.
TEXT_KEYS = ("input_ids", "attention_mask", "completion_mask")


def signal_share(step: int) -> float:
    """Part of a picture's variance that is left after so many steps of diffusion, 1 to 0.

    Args:
        step: 0 leaves the picture as it is, 1000 is the last step.

    Returns:
        The product of `1 - beta` over the first `step` steps, with `beta` from 1e-4 to 0.02 in equal steps.

    >>> round(signal_share(500), 3)
    0.079
    """
    betas = np.linspace(FIRST_BETA, LAST_BETA, NUM_STEPS, dtype=np.float64)
    return float(np.prod(1.0 - betas[:step]))


def add_noise(pixel_values: Tensor, *, step: int, seed: int, number: int) -> Tensor:
    """Diffuse pictures: `sqrt(share) * picture + sqrt(1 - share) * noise`, `share` as in `signal_share`.

    The noise of a picture depends on its first tile, the seed and the number alone, so neither the place in a batch
    nor the number of processes changes it. The host's random numbers stay as they are.

    Args:
        pixel_values: Normalised pixels, shape (num_images, max_num_tiles, 3, H, W) or (num_images, 3, H, W).
        step: Steps of diffusion, of 1000.
        seed: Seed of the run.
        number: Number of the optimiser step, so that a picture has other noise when it comes again.

    Returns:
        A new tensor of the same shape and type. Filler tiles, which are zero, stay so.
    """
    share = signal_share(step)
    noised = pixel_values.clone()
    for picture in noised:
        tiles = picture if picture.ndim == 4 else picture[None]
        content = zlib.crc32(tiles[0].float().cpu().contiguous().numpy().tobytes())
        state = np.random.SeedSequence([seed, number, content]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        for tile in tiles:
            if tile.any():
                noise = torch.randn(tile.shape, generator=generator).to(tile)
                tile.mul_(share**0.5).add_(noise, alpha=(1.0 - share) ** 0.5)
    return noised


def prompts_of(batch: Batch, *, pad_token_id: int) -> Batch:
    """The questions of a batch of pairs, to be answered: one row per pair, padded on the left, with its pictures.

    Args:
        batch: What TRL's collator makes of `n` pairs: `n` rows with the chosen answers, `n` with the rejected ones,
            padded on the right, and the pictures of all rows in order.
        pad_token_id: Fills the rows.
    """
    is_prompt = batch["attention_mask"].bool() & ~batch["completion_mask"].bool()
    rows = [ids[mask] for ids, mask in zip(batch["input_ids"], is_prompt, strict=True)][: _num_pairs(batch)]
    prompts = {
        "input_ids": pad(rows, padding_value=pad_token_id, padding_side="left"),
        "attention_mask": pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left"),
    }
    return prompts | {name: value[: len(value) // 2] for name, value in batch.items() if name not in TEXT_KEYS}


def replace_rejected(batch: Batch, answers: Tensor, *, pad_token_id: int, end_token_ids: set[int]) -> Batch:
    """The batch with generated answers in the place of the rejected ones; pictures are those of the pairs.

    Args:
        batch: As in `prompts_of`.
        answers: Generated tokens of every pair, shape (pairs, length); anything after an end token is ignored.
        pad_token_id: Fills the rows.
        end_token_ids: Tokens that end an answer. An answer that ends is given what the chat template puts behind the
            end, as the chosen answer has it.
    """
    num_pairs = _num_pairs(batch)
    rows: list[Tensor] = []
    masks: list[Tensor] = []
    for index in range(2 * num_pairs):
        is_real, is_answer = (batch[name][index % num_pairs].bool() for name in TEXT_KEYS[1:])
        ids = batch["input_ids"][index % num_pairs]
        prompt, answer = ids[is_real & ~is_answer], ids[is_real & is_answer]
        if index >= num_pairs:
            chosen = answer.tolist()
            answer = answer.new_tensor(_finish(answers[index - num_pairs].tolist(), chosen, ends=end_token_ids))
        rows.append(torch.cat([prompt, answer]))
        masks.append(torch.cat([torch.zeros_like(prompt), torch.ones_like(answer)]))
    return batch | {
        "input_ids": pad(rows, padding_value=pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], padding_value=0),
        "completion_mask": pad(masks, padding_value=0),
    }


class NoisedPictureTrainer(DPOTrainer):  # type: ignore[misc, unused-ignore]
    """TRL's `DPOTrainer` with the second step per batch; both losses are TRL's own.

    Each batch has two backward passes, the second pair's first, and no update between them, so the memory of one step
    is enough and the update is that of the loss `pair + weight * noised pair`. Metrics of the second pair begin with
    `noised/`; `noised/same_answer` is the part of the answers that the noise did not change, of which nothing is
    learned. Evaluation is TRL's.

    Args:
        *args: As `DPOTrainer`.
        noised: Amount of noise, weight and length.
        **kwargs: As `DPOTrainer`.
    """

    def __init__(self, *args: Any, noised: NoisedPictureSection, **kwargs: Any) -> None:
        self.noised = noised
        self._is_noised_step = False
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Both backward passes of a batch.

        Returns:
            The sum of both losses, the second one weighted, as a number without gradient.
        """
        inputs = dict(self._prepare_inputs(inputs))
        pairs = self.make_noised_pairs(inputs)
        metrics = self._metrics["train"]
        same = _same_rows(pairs)
        self._metrics["train"], self._is_noised_step = defaultdict(list), True
        try:
            # The gradients of both passes are exchanged between processes with those of the last one.
            with self.accelerator.no_sync(model):
                noised_loss: Tensor = super().training_step(model, pairs, num_items_in_batch)
        finally:
            own, self._metrics["train"], self._is_noised_step = self._metrics["train"], metrics, False
        for name, values in own.items():
            if name != "num_tokens":
                metrics[f"noised/{name}"] += values
        metrics["noised/same_answer"].append(self.accelerator.gather(same).mean().item())
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss + noised_loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, weighted in the second step."""
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        return result * self.noised.weight if self._is_noised_step else result

    def make_noised_pairs(self, batch: Batch) -> Batch:
        """Chosen answers against greedy answers of the present model to the noised pictures.

        Args:
            batch: A batch of pairs on the model's device.
        """
        pad_token_id = self._tokenizer.pad_token_id
        prompts = prompts_of(batch, pad_token_id=pad_token_id)
        prompts["pixel_values"] = add_noise(
            prompts["pixel_values"],
            step=self.noised.noise_step,
            seed=self.args.seed,
            number=self.state.global_step,
        )
        with (
            torch.no_grad(),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            is_training = model.training
            model.eval()
            generated = model.generate(
                **prompts,
                max_new_tokens=self.noised.max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=pad_token_id,
                suppress_tokens=[model.config.image_token_id],
            )
            model.train(is_training)
            ends = model.generation_config.eos_token_id
        return replace_rejected(
            batch,
            generated[:, prompts["input_ids"].shape[1] :],
            pad_token_id=pad_token_id,
            end_token_ids=set(ends if isinstance(ends, list) else [ends]),
        )


def _num_pairs(batch: Batch) -> int:
    return len(batch["input_ids"]) // 2


def _finish(answer: list[int], chosen: list[int], *, ends: set[int]) -> list[int]:
    """The answer up to its end token, with what follows the end of the chosen answer."""
    for position, token in enumerate(answer):
        if token in ends:
            last = max((place for place, other in enumerate(chosen) if other in ends), default=len(chosen) - 1)
            return answer[: position + 1] + chosen[last + 1 :]
    return answer


def _same_rows(pairs: Batch) -> Tensor:
    """1.0 where both answers of a pair are the same, shape (pairs,)."""
    is_same = [
        (pairs[name][: _num_pairs(pairs)] == pairs[name][_num_pairs(pairs) :]).all(dim=1)
        for name in ("input_ids", "completion_mask")
    ]
    return torch.stack(is_same).all(dim=0).float()
