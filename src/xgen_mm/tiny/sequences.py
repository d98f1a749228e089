"""Trees of text to padded arrays: token ids, tree positions, next-token labels and who sees whom."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..data.labels import IGNORED
from .conversations import ROOT, Conversation
from .training import Batch

PADDING_NODE = -1
HIDDEN = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One conversation as tokens.

    Attributes:
        input_ids: Ids in node order, shape (tokens,).
        positions: Distance from the start along the own path, shape (tokens,).
        nodes: Node of each token, shape (tokens,).
        labels: Id of the following token where it is learned, else -100, shape (tokens,).
        weights: Loss weight of each label, shape (tokens,).
        ancestors: `True` at [i, j] if node j is node i or before it on its path, shape (nodes, nodes).
    """

    input_ids: np.ndarray
    positions: np.ndarray
    nodes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    ancestors: np.ndarray


def encode_tree(
    conversation: Conversation,
    image_lengths: list[int],
    *,
    encode: Callable[[str], list[int]],
    image_token_id: int,
) -> TokenTree:
    """Tokenise a conversation.

    Pieces are encoded one by one; they meet where the tokenizer cuts anyway (at special tokens and newlines), so the
    ids equal those of the whole text.

    Args:
        conversation: The tree; its i-th `<image>` stands for picture i.
        image_lengths: Image tokens per picture.
        encode: Text to ids, without added special tokens.
        image_token_id: Id that `encode` gives to `<image>`.

    Raises:
        ValueError: If the conversation shows another number of pictures than `image_lengths` holds.
    """
    remaining = iter(image_lengths)
    ids, positions, nodes, labels, weights = [], [], [], [], []
    ends: list[int] = []
    num_nodes = len(conversation.nodes)
    ancestors = np.eye(num_nodes, dtype=bool)
    shown = 0
    for index, node in enumerate(conversation.nodes):
        start = ends[node.parent] if node.parent != ROOT else 0
        if node.parent != ROOT:
            ancestors[index] |= ancestors[node.parent]
        node_ids: list[int] = []
        node_weights: list[float] = []
        for piece in node.pieces:
            for token in encode(piece.text):
                copies = 1
                if token == image_token_id:
                    copies = next(remaining, 0)
                    shown += 1
                node_ids += [token] * copies
                node_weights += [piece.weight] * copies
        ids += node_ids
        positions += range(start, start + len(node_ids))
        nodes += [index] * len(node_ids)
        # A position is labelled with what follows it in its node; the last token of a node has several followers.
        labels += [
            token if weight > 0 else IGNORED for token, weight in zip(node_ids[1:], node_weights[1:], strict=True)
        ] + [IGNORED]
        weights += [*node_weights[1:], 0.0]
        ends.append(start + len(node_ids))
    if shown != len(image_lengths):
        raise ValueError(f"The conversation shows {shown} pictures but `image_lengths` holds {len(image_lengths)}.")
    return TokenTree(
        np.asarray(ids),
        np.asarray(positions),
        np.asarray(nodes),
        np.asarray(labels),
        np.asarray(weights),
        ancestors,
    )


def collate_trees(trees: list[TokenTree], *, pad_token_id: int) -> Batch:
    """Pad trees on the right and draw the mask.

    Returns:
        `input_ids`, `position_ids`, `labels`, `label_weights`, `nodes` of shape (trees, tokens) and an additive
        `attention_mask` of shape (trees, 1, tokens, tokens). Padding sees itself only.
    """
    length = max(len(tree.input_ids) for tree in trees)
    fields = {
        "input_ids": pad_token_id,
        "positions": 0,
        "labels": IGNORED,
        "weights": 0.0,
        "nodes": PADDING_NODE,
    }
    padded = {
        name: np.stack([_pad(getattr(tree, name), length, filler) for tree in trees])
        for name, filler in fields.items()
    }
    visible = np.zeros((len(trees), length, length), dtype=bool)
    for row, tree in enumerate(trees):
        size = len(tree.nodes)
        visible[row, :size, :size] = tree.ancestors[tree.nodes[:, None], tree.nodes[None, :]]
    visible &= np.tri(length, dtype=bool)
    visible |= np.eye(length, dtype=bool)
    mask = torch.zeros(visible.shape).masked_fill_(torch.from_numpy(~visible), HIDDEN)
    return {
        "input_ids": torch.from_numpy(padded["input_ids"]),
        "position_ids": torch.from_numpy(padded["positions"]),
        "labels": torch.from_numpy(padded["labels"]),
        "label_weights": torch.from_numpy(padded["weights"]).float(),
        "nodes": torch.from_numpy(padded["nodes"]),
        "attention_mask": mask.unsqueeze(1),
    }


def _pad(values: np.ndarray, length: int, filler: float) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=filler)
