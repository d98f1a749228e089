"""The faults: one line each, with the tests that have to fail on it.

The old text stands exactly once in its file; where a line of the source changes, the edit here changes with it.
"""

from typing import NamedTuple


class Edit(NamedTuple):
    """One fault.

    Attributes:
        file: Path below `src/xgen_mm`.
        old: Text that is replaced, within one line.
        new: What stands there instead.
        tests: Test files that should notice it, below `tests`, separated by blanks.
    """

    file: str
    old: str
    new: str
    tests: str

    @property
    def title(self) -> str:
        """File and old text, shortened, for the table."""
        return f"{self.file}: {self.old if len(self.old) <= 70 else self.old[:67] + '...'}"


ANYRES = [
    Edit("anyres.py", "return kept, kept - canvas_height * canvas_width", "return kept, 0", "test_anyres.py"),
    Edit("anyres.py", "scale = min(canvas_width", "scale = max(canvas_width", "test_anyres.py"),
    Edit(
        "anyres.py",
        "kept = min(int(width * scale) * int(height * scale), width * height)",
        "kept = int(width * scale) * int(height * scale)",
        "test_anyres.py",
    ),
    Edit("anyres.py", "return -int(-value // 1)", "return int(value)", "test_anyres.py"),
    Edit("anyres.py", "return rows * cols + 1", "return rows * cols", "test_anyres.py"),
    Edit("anyres.py", "if width / height > map_width", "if width / height < map_width", "test_anyres.py"),
    Edit(
        "anyres.py",
        "padding = (map_height - int(height * (map_width / width))) // 2",
        "padding = (map_height - int(height * (map_width / width)) + 1) // 2",
        "test_anyres.py",
    ),
    Edit("anyres.py", "if height < 1 or", "if height < 0 or", "test_anyres.py"),
]

PROCESSING = [
    Edit(
        "processing/image_tiling.py",
        "(canvas[0] - resized[0]) // 2,",
        "(canvas[0] - resized[0] + 1) // 2,",
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_tiling.py",
        "return [int(mean * 255) for",
        "return [round(mean * 255) for",
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_tiling.py",
        "pinpoints), tile_size=tile_size) <= max_tiles:",
        "pinpoints), tile_size=tile_size) < max_tiles:",
        "processing/test_tile_budget.py",
    ),
    Edit(
        "processing/image_tiling.py",
        "if max_tiles is not None and max_tiles < fewest:",
        "if max_tiles is not None and max_tiles <= fewest:",
        "processing/test_tile_budget.py",
    ),
    Edit(
        "processing/image_tiling.py",
        'return mode == "anyres" and bool(do_resize)',
        'return mode == "anyres"',
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_processing_xgen_mm.py",
        "values[count:] = 0",
        "values[count + 1 :] = 0",
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_processing_xgen_mm.py",
        "pixels = pixels.round().clamp(0, 255)",
        "pixels = pixels.clamp(0, 255)",
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_processing_xgen_mm.py",
        "rows_removed > max(0, 2 * cols_removed)",
        "rows_removed > max(0, cols_removed)",
        "processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_loading.py",
        "if is_16_bit or highest > 255:",
        "if is_16_bit or highest > 256:",
        "processing/test_image_loading.py",
    ),
    Edit(
        "processing/image_loading.py",
        "is_unit = highest <= 1",
        "is_unit = highest < 1",
        "processing/test_image_loading.py processing/test_image_processing_xgen_mm.py",
    ),
    Edit(
        "processing/image_loading.py",
        "if not (lowest >= 0 and highest <= 255):",
        "if not (highest <= 255):",
        "processing/test_image_loading.py",
    ),
    Edit(
        "processing/image_loading.py",
        "return _composite_on_white(image) if has_transparency else",
        "return",
        "processing/test_image_loading.py",
    ),
    Edit(
        "images/opening.py",
        "return orientation if orientation in _TURNS else 1",
        "return 1",
        "processing/test_image_loading.py",
    ),
    Edit(
        "processing/placeholder_ids.py",
        "(np.cumsum(gained) - gained) * is_text)",
        "(np.cumsum(gained) - gained))",
        "processing/test_placeholder_ids.py",
    ),
    Edit(
        "processing/placeholder_ids.py",
        "is_last = copy == np.repeat(repeats, repeats) - 1",
        "is_last = copy == 0",
        "processing/test_placeholder_ids.py",
    ),
    Edit(
        "processing/placeholder_ids.py",
        "-(-width // self.multiple_of) * self.multiple_of",
        "width // self.multiple_of * self.multiple_of",
        "processing/test_placeholder_ids.py",
    ),
    Edit(
        "processing/placeholder_ids.py",
        "return rows if start == len(counts) else None",
        "return rows",
        "processing/test_processing_xgen_mm.py processing/test_placeholder_ids.py",
    ),
    Edit(
        "processing/placeholder_ids.py",
        '"special_tokens_mask": 1,',
        '"special_tokens_mask": 0,',
        "processing/test_placeholder_ids.py",
    ),
    Edit(
        "processing/processing_xgen_mm.py",
        'kwargs["max_tiles"] = min(',
        'kwargs["max_tiles"] = max(',
        "processing/test_tile_budget.py",
    ),
    Edit(
        "processing/processing_xgen_mm.py",
        "if max_image_tokens < self.num_latents:",
        "if max_image_tokens <= self.num_latents:",
        "processing/test_tile_budget.py",
    ),
]

LABELS = [
    Edit(
        "data/labels.py",
        'np.searchsorted(bounds[:, 0], starts, side="right") - 1',
        'np.searchsorted(bounds[:, 0], starts, side="left") - 1',
        "data/test_labels.py",
    ),
    Edit(
        "data/labels.py",
        "(starts < bounds[np.maximum(span, 0), 1])",
        "(starts <= bounds[np.maximum(span, 0), 1])",
        "data/test_labels.py",
    ),
    Edit(
        "data/labels.py",
        'limits.max_tokens, side="right")',
        'limits.max_tokens, side="left")',
        "data/test_labels.py",
    ),
    Edit("data/labels.py", "is_cut=kept < len(ids),", "is_cut=kept <= len(ids),", "data/test_labels.py"),
    Edit("data/labels.py", "unlearned = [processor.image_token_id]", "unlearned = []", "data/test_labels.py"),
    Edit(
        "data/text_forms.py",
        "if has_picture and has_text_since:",
        "if has_picture:",
        "data/test_text_forms.py",
    ),
    Edit(
        "data/text_forms.py",
        "learned.append((len(before), len(until.rstrip())))",
        "learned.append((len(before), len(until)))",
        "data/test_text_forms.py",
    ),
    Edit(
        "data/text_forms.py",
        "return is_picture[:1] == [True] and sum(is_picture) == 1",
        "return is_picture[:1] == [True]",
        "data/test_text_forms.py data/test_labels.py",
    ),
    Edit(
        "data/packing.py",
        "labels[row, start + 1 : end] = torch.from_numpy(sample.labels[1:])",
        "labels[row, start:end] = torch.from_numpy(sample.labels)",
        "data/test_packing.py",
    ),
    Edit(
        "data/packing.py",
        "position_ids[row, start:end] = torch.arange(len(sample))",
        "position_ids[row, start:end] = torch.arange(start, end)",
        "data/test_packing.py",
    ),
    Edit(
        "data/packing.py",
        "place = bisect_left(free, (lengths[index], -1))",
        "place = bisect_left(free, (lengths[index] + 1, -1))",
        "data/test_packing.py",
    ),
    Edit(
        "data/collators.py",
        "attention_mask[row, : len(sample)] = 1",
        "attention_mask[row, :] = 1",
        "data/test_collators.py",
    ),
    Edit(
        "data/collators.py",
        "-(-length // multiple) * multiple",
        "(length // multiple + 1) * multiple",
        "data/test_collators.py data/test_packing.py",
    ),
]

LOSSES = [
    Edit(
        "modeling/next_token_loss.py",
        "F.pad(labels, (0, 1), value=ignore_index)[..., 1:]",
        "labels",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/next_token_loss.py",
        "return total / num_labelled",
        "return total / labels.numel()",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/output_layer.py",
        "scores -= scores.amax(1, keepdim=True)",
        "scores -= scores.mean(1, keepdim=True)",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/output_layer.py",
        "scores.masked_fill_(~is_scored.unsqueeze(1), 0)",
        "pass",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/output_layer.py",
        "return losses.masked_fill(~is_scored, 0).sum(),",
        "return losses.sum(),",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/output_layer.py",
        "saved * scale.to(saved.dtype)",
        "saved",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "modeling/output_layer.py",
        "bias_gradient += gradient.sum(0)",
        "bias_gradient = gradient.sum(0)",
        "modeling/test_next_token_loss.py",
    ),
    Edit(
        "connectors/perceiver.py",
        "visible = patch_attention_mask.new_ones(",
        "visible = patch_attention_mask.new_zeros(",
        "connectors/test_perceiver.py",
    ),
    Edit(
        "connectors/perceiver.py",
        "self.scaling = config.head_dim**-0.5",
        "self.scaling = config.hidden_size**-0.5",
        "connectors/test_perceiver.py",
    ),
    Edit("modeling/tile_layout.py", "mask[0] = True", "mask[0] = False", "modeling/test_tile_layout.py"),
    Edit(
        "modeling/tile_layout.py",
        "sum(num_tiles[:image])",
        "sum(num_tiles[: image + 1])",
        "modeling/test_tile_layout.py modeling/test_modeling_xgen_mm.py",
    ),
    Edit(
        "modeling/tile_encoding.py",
        "return parts[0].untyped_storage().data_ptr() == parts[-1].untyped_storage().data_ptr()",
        "return True",
        "modeling/test_tile_encoding.py",
    ),
    Edit(
        "training/run.py",
        'entry["loss"] * (entry["step"] - last)',
        'entry["loss"]',
        "training/test_run.py",
    ),
    Edit(
        "training/arguments.py",
        "math.ceil(optim.warmup_ratio * max_steps)",
        "math.floor(optim.warmup_ratio * max_steps)",
        "training/test_arguments.py",
    ),
    Edit(
        "training/stages/rewards.py",
        "scale = max(abs(found), abs(expected))",
        "scale = abs(expected)",
        "training/test_rewards.py",
    ),
    Edit(
        "training/batches.py",
        "if any(sample.pictures for group in groups for sample in group):",
        "if True:",
        "training/test_batches.py",
    ),
    Edit(
        "training/batches.py",
        "if room >= len(self.blank):",
        "if room > len(self.blank):",
        "training/test_batches.py",
    ),
]

SAMPLING = [
    Edit(
        "data/samplers.py",
        "len(samples[group[0]]) * (len(group) + 1) > self.max_tokens",
        "len(samples[group[0]]) * len(group) > self.max_tokens",
        "data/test_samplers.py",
    ),
    Edit(
        "data/samplers.py",
        "is_full = len(group) == self.max_samples",
        "is_full = False",
        "data/test_samplers.py",
    ),
    Edit(
        "data/samplers.py",
        'ordered = stretch[np.argsort(-self.lengths[stretch], kind="stable")]',
        "ordered = stretch",
        "data/test_samplers.py",
    ),
    Edit(
        "data/samplers.py",
        "rng = np.random.default_rng([self.seed, self.epoch])",
        "rng = np.random.default_rng([self.seed])",
        "data/test_samplers.py",
    ),
    Edit(
        "data/mixture.py",
        "amount / self._mixture.shares[self._mixture.entries[turn].name]",
        "amount",
        "data/test_mixture.py",
    ),
    Edit(
        "data/mixture.py",
        'amount = len(sample) if self._mixture.unit == "tokens" else 1',
        "amount = 1",
        "data/test_mixture.py",
    ),
    Edit(
        "data/cursors.py",
        "return self.rank * self.num_workers + self.worker",
        "return self.rank * self.world_size + self.worker",
        "data/test_mixture.py data/test_sources.py data/test_mixture_resumption.py",
    ),
    Edit(
        "data/streams.py",
        "part = (number + self.first_part) % count",
        "part = number",
        "data/test_mixture_resumption.py",
    ),
    Edit(
        "data/mixture_sources.py",
        "if self._end is not None and position >= self._end:",
        "if self._end is not None and position > self._end:",
        "data/test_mixture.py data/test_mixture_resumption.py",
    ),
]

CONVERSION = [
    Edit(
        "conversion/key_rules.py",
        '"model.resampler.layers.{i}.attention.norm_media."',
        '"model.resampler.layers.{i}.attention.norm_latents."',
        "conversion/test_key_rules.py conversion/test_convert_checkpoint.py",
    ),
    Edit(
        "conversion/key_rules.py",
        "RowCopy(released, part * num_rows, ours, 0, num_rows)",
        "RowCopy(released, (len(rule.into) - 1 - part) * num_rows, ours, 0, num_rows)",
        "conversion/test_key_rules.py conversion/test_convert_checkpoint.py",
    ),
    Edit(
        "conversion/key_rules.py",
        "RowCopy(rule.added, 0, ours, first_added_row,",
        "RowCopy(rule.added, 1, ours, first_added_row,",
        "conversion/test_key_rules.py conversion/test_convert_checkpoint.py",
    ),
    Edit(
        "conversion/key_rules.py",
        "if copies and all(self._first_fit(copy.released) is rule for copy in copies):",
        "if copies:",
        "conversion/test_key_rules.py conversion/test_convert_checkpoint.py",
    ),
    Edit(
        "conversion/v1_rules.py",
        'Rename(_BLOCK + "ln_1.", _LAYER + "layer_norm1.")',
        'Rename(_BLOCK + "ln_1.", _LAYER + "layer_norm2.")',
        "v1/test_released_v1.py",
    ),
    Edit(
        "conversion/v1_rules.py",
        'tuple(f"{_LAYER}self_attn.{part}_proj.weight" for part in ("q", "k", "v"))',
        'tuple(f"{_LAYER}self_attn.{part}_proj.weight" for part in ("q", "v", "k"))',
        "v1/test_released_v1.py",
    ),
    Edit(
        "conversion/inventory.py",
        "return bool(shape) and shape[0] >= expected[0]",
        "return bool(shape)",
        "conversion/test_convert_checkpoint.py",
    ),
    Edit(
        "conversion/inventory.py",
        "if used < tensor.num_rows:",
        "if used == 0:",
        "conversion/test_convert_checkpoint.py conversion/test_restore_checkpoint.py",
    ),
]

GROUPS = {
    "anyres": ANYRES,
    "processing": PROCESSING,
    "labels": LABELS,
    "losses": LOSSES,
    "sampling": SAMPLING,
    "conversion": CONVERSION,
}
