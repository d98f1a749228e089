"""Quick figures during training: are the answers' tokens all right when the model is told the tokens before them?"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .digits import random_distinct_numbers, random_number
from .joint_stage import QuestionMaker, XGenMMWithPatchHead
from .sequences import IGNORED
from .training import AverageWeights, RecordCurve

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 16


@dataclass(frozen=True, slots=True)
class DevelopmentSet:
    """One line of figures: how many pictures per question, digits per number (0 for mixed), rows."""

    num_images: int
    num_digits: int
    rows: int


DEVELOPMENT_SETS = {
    "1_digit": DevelopmentSet(1, 1, 120),
    "3_digits": DevelopmentSet(1, 3, 160),
    "5_digits": DevelopmentSet(1, 5, 80),
    "of_2": DevelopmentSet(2, 0, 160),
    "of_4": DevelopmentSet(4, 0, 96),
}


class MeasureDevelopment(TrainerCallback):
    """Scores the weight average on held-out training digits every few hundred steps; the processes share the work."""

    def __init__(
        self,
        model: XGenMMWithPatchHead,
        maker: QuestionMaker,
        average: AverageWeights,
        record: RecordCurve,
        *,
        every: int,
        seed: int,
    ) -> None:
        """Keep what is needed.

        Args:
            model: The model in training.
            maker: Writes with held-out digits.
            average: Its weights are scored.
            record: Receives the scores.
            every: Steps between two scores.
            seed: The questions are the same every time.
        """
        self._model, self._maker, self._average = model, maker, average
        self._record, self._every, self._seed = record, every, seed

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Score now if it is time."""
        if state.global_step % self._every and state.global_step != state.max_steps:
            return
        self._average.swap()
        self._model.eval()
        try:
            scores = self.score()
        finally:
            self._model.train()
            self._average.swap()
        logger.info("step %d, development digits: %s", state.global_step, scores)
        self._record.on_log(
            args,
            state,
            control,
            logs={f"dev/{name}": value for name, value in scores.items()},
        )

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Share of right answers per set and kind of question."""
        rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        totals: dict[str, torch.Tensor] = {}
        for index, (name, plan) in enumerate(DEVELOPMENT_SETS.items()):
            rng = np.random.default_rng([self._seed, 4, index, rank])
            for _ in range(max(1, plan.rows // (ROWS_PER_BATCH * num_processes))):
                for kind, hits in self._score_batch(rng, plan).items():
                    key = f"{kind}_{name}"
                    totals[key] = totals.get(key, torch.zeros(2)) + torch.tensor([float(sum(hits)), float(len(hits))])
        if num_processes > 1:
            for key in sorted(totals):
                dist.all_reduce(totals[key])
        return {key: round(float(total[0] / total[1]), 4) for key, total in totals.items()}

    def _score_batch(self, rng: np.random.Generator, plan: DevelopmentSet) -> dict[str, list[bool]]:
        if plan.num_images == 1:
            sets = [[random_number(rng, plan.num_digits)] for _ in range(ROWS_PER_BATCH)]
        else:
            weights = [1 / 3, 1 / 3, 1 / 3]
            sets = [
                random_distinct_numbers(rng, plan.num_images, length_weights=weights) for _ in range(ROWS_PER_BATCH)
            ]
        batch = self._maker.batch(rng, sets, canonical=True)
        logits, _ = self._model.answer_logits(
            batch["tiles"],
            batch["image_sizes"],
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            labels=batch["labels"],
        )
        chosen = batch["labels"] != IGNORED
        right = logits.argmax(-1) == batch["labels"][chosen]
        rows, nodes = chosen.nonzero()[:, 0], batch["nodes"][chosen]
        # In the canonical form node 1 asks for number or largest, node 2 for the count; then the numbers in order.
        kinds = ["number", "count"] if plan.num_images == 1 else ["largest", "count", *["number"] * plan.num_images]
        hits: dict[str, list[bool]] = {}
        for row in range(len(sets)):
            for node, kind in enumerate(kinds, start=1):
                hits.setdefault(kind, []).append(bool(right[(rows == row) & (nodes == node)].all()))
        return hits
