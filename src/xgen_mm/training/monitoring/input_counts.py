"""Counts what goes through a model, whichever trainer calls it and however it is wrapped."""

from typing import Any

import torch
from torch import nn

from ...data.labels import IGNORED
from ..planning.flops import BatchCounts, Inputs, count_pictures, find_model

# Sums that stay on the device until they are asked for, so that counting never waits for it.
_TEXT_COUNTS = ("tokens", "pairs", "labelled")


class InputCounter:
    """Watches the forward passes of a model.

    It looks at the arguments of the innermost model, which is the same under DDP, FSDP, PEFT and TRL's trainers (those
    that bypass the output layer's own forward included).

    Args:
        model: A model of this package, or a wrapper around one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_counting = False
        self._inner = find_model(model)
        self._config = self._inner.config
        self._window = getattr(self._config.text_config, "sliding_window", None)
        # With gradients, and without: training, and what a trainer computes besides.
        self._counts = {True: BatchCounts(), False: BatchCounts()}
        self._sums: dict[bool, torch.Tensor | None] = {True: None, False: None}
        self._has_labels = False
        self._handles = [self._inner.register_forward_pre_hook(self._see_inputs, with_kwargs=True)]
        # Labels stop at the output layer, and wrappers may call that one's `forward` past its hooks: the outermost
        # module that is called counts.
        outer = [module for module in model.modules() if module is not self._inner and self._inner in module.modules()]
        self._handles += [module.register_forward_pre_hook(self._see_labels, with_kwargs=True) for module in outer]

    def take(self) -> tuple[BatchCounts, BatchCounts]:
        """What was counted since the last call: in passes with gradients, and in those without."""
        taken = []
        for has_gradients in (True, False):
            sums, counts = self._sums[has_gradients], self._counts[has_gradients]
            if sums is not None:
                counts = counts + BatchCounts(**dict(zip(_TEXT_COUNTS, sums.tolist(), strict=True)))
            taken.append(counts)
            self._sums[has_gradients], self._counts[has_gradients] = None, BatchCounts()
        return taken[0], taken[1]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
        self._has_labels = False
        if not self.is_counting:
            return
        inputs = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        ids = inputs.get("input_ids")
        embeds = inputs.get("inputs_embeds")
        text = ids if ids is not None else embeds
        if text is None:
            return
        has_gradients = torch.is_grad_enabled()
        pictures = count_pictures(inputs, self._config)
        self._counts[has_gradients] += pictures + BatchCounts(sequences=text.shape[0])
        self._add(has_gradients, *self._text_counts(text, inputs))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _see_labels(self, module: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
        labels = kwargs.get("shift_labels") if kwargs.get("shift_labels") is not None else kwargs.get("labels")
        if not self.is_counting or labels is None or self._has_labels:
            return
        self._has_labels = True
        # The first token is never predicted.
        shifted = labels if kwargs.get("shift_labels") is not None else labels[:, 1:]
        zero = torch.zeros((), dtype=torch.long, device=labels.device)
        self._add(torch.is_grad_enabled(), zero, zero, (shifted != IGNORED).sum())

    def _text_counts(self, text: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, pairs and (none) labelled ones, on the device."""
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        rows, length = text.shape[:2]
        cached = inputs.get("cache") if inputs.get("cache") is not None else inputs.get("past_key_values")
        past = int(cached.get_seq_length()) if cached is not None else 0
        zero = torch.zeros((), dtype=torch.long, device=text.device)
        if past:
            tokens = zero + rows * length
            return tokens, tokens * self._clamped(zero + past + 1), zero
        if mask is not None and mask.dim() == 2:
            lengths = mask.long().sum(-1)
            ranks = mask.long().cumsum(-1) * mask.long()
            return lengths.sum(), self._clamped(ranks).sum(), zero
        if mask is None and positions is not None and positions.dim() == 2:
            # Packed rows: a token attends to its sample, whose positions count from 0. The filler behind the last
            # sample looks like one more and counts too.
            return zero + rows * length, self._clamped(positions.long() + 1).sum(), zero
        ranks = torch.arange(1, length + 1, device=text.device)
        return zero + rows * length, rows * self._clamped(ranks).sum(), zero

    def _clamped(self, ranks: torch.Tensor) -> torch.Tensor:
        """How many tokens are attended to, of so many that could be."""
        return ranks if self._window is None else ranks.clamp(max=self._window)

    def _add(self, has_gradients: bool, *values: torch.Tensor) -> None:
        added = torch.stack([value.long() for value in values])
        held = self._sums[has_gradients]
        self._sums[has_gradients] = added if held is None else held + added.to(held.device)
