import json
import math
from pathlib import Path

import pytest
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from xgen_mm.conversion.inventory import Inventory, build_inventory
from xgen_mm.conversion.key_rules import V1_5, KeyRules, Rename, RowCopy
from xgen_mm.conversion.presets import RELEASED_4B, preset_config
from xgen_mm.conversion.released_loading import host_mapping

KEY_LIST = Path(__file__).parents[1] / "golden" / "state_dict_v1_5.tsv"
PREFIX = "vlm."


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Every weight of the released 4B checkpoints with its shape."""
    lines = (line.split("\t") for line in KEY_LIST.read_text().splitlines())
    return {name: tuple(json.loads(shape)) for name, shape, _ in lines}


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return build_inventory(preset_config(RELEASED_4B), V1_5)


def test_inventory_of_released_model_names_every_released_key_once(inventory: Inventory) -> None:
    names = [PREFIX + name for name in (*inventory.released, *inventory.dropped)]
    assert len(names) == len(set(names))
    assert set(names) == set(released_shapes())


def test_inventory_of_released_model_has_the_released_shapes(inventory: Inventory) -> None:
    expected = inventory.released | inventory.dropped
    different = {
        name: (shape, expected[name.removeprefix(PREFIX)])
        for name, shape in released_shapes().items()
        if shape != expected[name.removeprefix(PREFIX)]
    }
    # The big tables end in 52 rows that no token uses.
    assert different == {
        "vlm.lang_model.model.embed_tokens.weight": ((32064, 3072), (32012, 3072)),
        "vlm.lang_model.lm_head.weight": ((32064, 3072), (32012, 3072)),
        "vlm.lang_model.lm_head.bias": ((32064,), (32012,)),
    }


def test_row_copies_of_every_released_tensor_cover_its_used_rows_without_overlap(inventory: Inventory) -> None:
    for name, shape in inventory.released.items():
        position = 0
        for row_copy in inventory.copies_by_released[name]:
            assert row_copy.released_start == position, name
            position += row_copy.num_rows
        assert position == shape[0], name


def test_row_copies_fill_every_one_of_our_tensors_exactly(inventory: Inventory) -> None:
    for name, shape in inventory.ours.items():
        position = 0
        for row_copy in inventory.copies[name]:
            assert row_copy.ours_start == position, name
            position += row_copy.num_rows
            assert inventory.released[row_copy.released][1:] == shape[1:], name
        assert position == shape[0], name


def test_rows_of_both_layouts_differ_by_dropped_and_unused_ones_only(inventory: Inventory) -> None:
    released = sum(math.prod(shape) for shape in released_shapes().values())
    ours = sum(math.prod(shape) for shape in inventory.ours.values())
    dropped = sum(math.prod(inventory.dropped[name] or ()) for name in inventory.dropped)
    assert released - ours - dropped == 52 * 3072 + 52 * 3072 + 52


def test_drop_rules_state_their_reason() -> None:
    rule = V1_5.drop_rule("vision_encoder.head.probe")
    assert rule is not None
    assert "never called" in rule.reason
    assert V1_5.drop_rule("vision_encoder.post_layernorm.weight") is None


@pytest.mark.parametrize("base_model", [False, True], ids=["with-head", "without-head"])
def test_host_mapping_renames_every_released_key_as_the_rules_do(inventory: Inventory, base_model: bool) -> None:
    mapping = host_mapping(V1_5, base_model=base_model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    stem = "model." if base_model else ""
    for name, copies in inventory.copies_by_released.items():
        targets = [copies[0].ours.removeprefix(stem)]
        # The model without head has no place for the head's weights, so they keep their names.
        expected = [PREFIX + name] if base_model and targets[0].startswith("lm_head") else targets
        assert [rename_source_key(PREFIX + name, renamings, converters)[0]] == expected


def test_host_mapping_leaves_names_of_our_layout_alone(inventory: Inventory) -> None:
    mapping = host_mapping(V1_5, base_model=False)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for name in inventory.ours:
        assert rename_source_key(name, renamings, converters) == (name, None)


def test_general_rule_claims_no_name_of_a_more_specific_one() -> None:
    rules = KeyRules((Rename("tower.head.", "model.head."), Rename("tower.", "model.tower.")), prefix="")
    shape = {"num_rows": 2, "first_added_row": 0}
    assert rules.row_copies("model.head.w", **shape) == (RowCopy("tower.head.w", 0, "model.head.w", 0, 2),)
    assert rules.row_copies("model.tower.w", **shape) == (RowCopy("tower.w", 0, "model.tower.w", 0, 2),)
    # `tower.head.w` would be read as `model.head.w`.
    assert rules.row_copies("model.tower.head.w", **shape) is None
