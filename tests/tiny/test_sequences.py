"""Trees of tokens: a branch is scored exactly as the same chat on its own would be."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from xgen_mm.tiny.conversations import Conversation, Node, Number, Piece, converse
from xgen_mm.tiny.joint_stage import XGenMMWithPatchHead
from xgen_mm.tiny.sequences import IGNORED, TokenTree, collate_trees, encode_tree

SETS: list[list[Number]] = [[(4, 0, 7)], [(3,), (1, 2)], [(9, 9), (1, 0, 0), (5,)]]


def _encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation, lengths: list[int]) -> TokenTree:
    return encode_tree(
        conversation,
        lengths,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _path(tree: TokenTree, node: int) -> np.ndarray:
    """Positions in the tree of the tokens on the path to `node`."""
    return np.flatnonzero(tree.ancestors[node][tree.nodes])


@pytest.mark.parametrize("numbers", SETS, ids=lambda numbers: f"{len(numbers)}-images")
def test_encode_tree_path_ids_equal_the_tokenised_chat(
    tokenizer: PreTrainedTokenizerFast, numbers: list[Number]
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        conversation = converse(rng, numbers)
        tree = _encode(tokenizer, conversation, [1] * len(numbers))
        parents = {node.parent for node in conversation.nodes}
        leaves = [index for index in range(len(conversation.nodes)) if index not in parents]
        for leaf, text in zip(leaves, conversation.paths(), strict=True):
            on_path = _path(tree, leaf)
            assert tree.input_ids[on_path].tolist() == tokenizer.encode(text, add_special_tokens=False)
            assert tree.positions[on_path].tolist() == list(range(len(on_path)))


def test_encode_tree_labels_cover_answers_and_end_tokens_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = _encode(tokenizer, converse(np.random.default_rng(0), [(4, 0, 7)], canonical=True), [6])
    learned = tree.labels[tree.labels != IGNORED]
    assert tokenizer.decode(learned) == "407<|end|>3<|end|>"
    places = np.flatnonzero(tree.labels != IGNORED)
    np.testing.assert_array_equal(tree.labels[places], tree.input_ids[places + 1])
    assert (tree.weights[places] > 0).all()


def test_encode_tree_image_stands_for_its_number_of_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = _encode(tokenizer, converse(np.random.default_rng(0), [(3,), (1, 2)], canonical=True), [5, 7])
    assert (tree.input_ids == tokenizer.convert_tokens_to_ids("<image>")).sum() == 12


def test_encode_tree_wrong_number_of_images_raises(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="shows 1 pictures but `image_lengths` holds 2"):
        _encode(tokenizer, Conversation([Node(-1, [Piece("<image>")])]), [5, 7])


def test_branches_with_tree_mask_score_like_separate_chats(
    model: XGenMMWithPatchHead, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = np.random.default_rng(4)
    conversations = [converse(rng, numbers) for numbers in SETS]
    trees = [
        _encode(tokenizer, conversation, [3] * len(numbers))
        for conversation, numbers in zip(conversations, SETS, strict=True)
    ]
    batch = collate_trees(trees, pad_token_id=tokenizer.pad_token_id)
    # Distinct embeddings, so that a wrongly visible token would show.
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    with torch.no_grad():
        together = model.lm_head(
            model.model(
                batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=batch["position_ids"]
            ).last_hidden_state
        )
        for row, tree in enumerate(trees):
            for node in range(len(tree.ancestors)):
                on_path = _path(tree, node)
                alone = model.lm_head(model.model(torch.from_numpy(tree.input_ids[on_path])[None]).last_hidden_state)
                torch.testing.assert_close(together[row, on_path], alone[0], atol=1e-5, rtol=1e-5)
