"""Conversations ask what they should, with the right answers, in the host's prompt format."""

import re

import numpy as np
import pytest

from xgen_mm.tiny.conversations import (
    Conversation,
    Node,
    Number,
    Piece,
    ask_everything,
    compare_texts,
    converse,
    largest,
    spell,
)

SETS: list[list[Number]] = [[(4, 0, 7)], [(3,), (1, 2)], [(9, 9), (1, 0, 0), (5,)], [(1,), (2,), (3,), (4,)]]
TURN = re.compile(r"<\|user\|>\n(.*?)<\|end\|>\n<\|assistant\|>\n(.*?)<\|end\|>", re.DOTALL)


def test_converse_canonical_single_is_the_template_prompt() -> None:
    paths = list(converse(np.random.default_rng(0), [(4, 0, 7)], canonical=True).paths())
    assert paths == [
        "<|user|>\n<image>\nWhat number is in the image?<|end|>\n<|assistant|>\n407<|end|>",
        "<|user|>\n<image>\nHow many digits are in the image?<|end|>\n<|assistant|>\n3<|end|>",
    ]


def test_converse_canonical_pair_introduces_images_and_asks_all() -> None:
    paths = list(converse(np.random.default_rng(0), [(3,), (1, 2)], canonical=True).paths())
    opening = "<|user|>\nImage 1: <image>\nImage 2: <image>\n"
    assert paths[0] == opening + "Which image shows the largest number?<|end|>\n<|assistant|>\nImage 2<|end|>"
    assert paths[2] == opening + "What number is in image 1?<|end|>\n<|assistant|>\n3<|end|>"
    assert paths[3] == opening + "What number is in image 2?<|end|>\n<|assistant|>\n12<|end|>"


@pytest.mark.parametrize("numbers", SETS, ids=lambda numbers: f"{len(numbers)}-images")
def test_converse_any_shape_shows_each_image_once_and_answers_rightly(numbers: list[Number]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        conversation = converse(rng, numbers)
        shown = sum(piece.text.count("<image>") for node in conversation.nodes for piece in node.pieces)
        assert shown == len(numbers)
        for path in conversation.paths():
            assert path.removeprefix("<s>").startswith("<|user|>\n")
            turns = TURN.findall(path)
            assert len(turns) == path.count("<|assistant|>")
            for question, answer in turns:
                assert answer in _right_answers(question, numbers)


def _right_answers(question: str, numbers: list[Number]) -> set[str]:
    asked = re.findall(r" image (\d)[?.]", question)
    about = [numbers[int(index) - 1] for index in asked] or numbers
    candidates = {spell(number) for number in about} | {str(len(number)) for number in about}
    seen = [f"Image {largest(numbers[:count]) + 1}" for count in range(2, len(numbers) + 1)]
    return candidates | set(seen)


def test_converse_shapes_include_chats_late_images_and_several_layouts() -> None:
    rng = np.random.default_rng(2)
    paths = [path for _ in range(300) for path in converse(rng, [(3,), (1, 2)]).paths()]
    assert any(path.count("<|user|>") > 1 and "<|user|>\nImage 2: <image>" in path for path in paths)
    assert any(len(TURN.findall(path)) == 3 for path in paths)
    canonical = np.mean(["Image 1: <image>\nImage 2: <image>\n" in path for path in paths])
    assert 0.3 < canonical < 0.6
    assert 0.03 < np.mean([path.startswith("<s>") for path in paths]) < 0.2


def test_ask_everything_of_a_set_asks_for_every_number() -> None:
    answers = [exchange.answer for exchange in ask_everything(np.random.default_rng(0), SETS[2])]
    assert answers[0] == "Image 2"
    assert answers[-3:] == ["99", "100", "5"]


def test_compare_texts_branches_hold_written_numbers_and_right_answers() -> None:
    conversation = compare_texts(np.random.default_rng(0), SETS[1:])
    for path, numbers in zip(conversation.paths(), SETS[1:], strict=True):
        assert "<image>" not in path
        assert all(spell(number) in path for number in numbers)
        assert path.endswith(f"\nImage {largest(numbers) + 1}<|end|>")


def test_paths_of_a_tree_follow_parents_only() -> None:
    tree = Conversation([Node(-1, [Piece("a")]), Node(0, [Piece("b")]), Node(0, [Piece("c")]), Node(2, [Piece("d")])])
    assert list(tree.paths()) == ["ab", "acd"]
