"""Records and processors for the tests of the data side, made here."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xgen_mm.data.encoding import Sample
from xgen_mm.data.records import Conversation, Document, Part, Picture, Provenance, Role, Text, Turn

GOLDEN = Path(__file__).parents[1] / "golden" / "sft_text" / "sft_text.json"
RELEASED_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
# In the order of their ids. All but the last three swallow white space that follows.
PHI3_MARKS = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
PHI3_OTHERS = ("<s>", "<|endoftext|>", "<pad>", "<image>", "<image placeholder>", "<|endofchunk|>")


def provenance(key: str = "1") -> Provenance:
    return Provenance(dataset="made", key=key)


def jpeg(height: int, width: int, *, seed: int = 0) -> bytes:
    """An encoded picture of coloured squares."""
    colours = np.random.default_rng(seed).integers(
        0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8
    )
    buffer = BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def parts(written: str, *, height: int = 40, width: int = 40) -> tuple[Part, ...]:
    """Text with `<image>` where a picture stands, as parts."""
    found: list[Part] = []
    for index, text in enumerate(written.split("<image>")):
        if index:
            found.append(Picture(jpeg(height, width, seed=index)))
        if text:
            found.append(Text(text))
    return tuple(found)


def document(written: str, *, key: str = "1", height: int = 40, width: int = 40) -> Document:
    return Document(parts(written, height=height, width=width), provenance(key))


def conversation(*written: str, key: str = "1", height: int = 40, width: int = 40) -> Conversation:
    """Turns of user and assistant in alternation."""
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = [Turn(roles[index % 2], parts(text, height=height, width=width)) for index, text in enumerate(written)]
    return Conversation(tuple(turns), provenance(key))


def numbered_sample(number: int, *, length: int = 4) -> Sample:
    """A sample that only shows which one it is."""
    ids = np.full(length, number, dtype=np.int64)
    return Sample(input_ids=ids, labels=ids, pictures=(), image_sizes=(), provenance=provenance(str(number)))


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def phi3_like_tokenizer() -> Any:
    """Tokenizer that cuts the recorded texts as the released one does, and any other text into bytes.

    Like that one it puts a space in front of every stretch between marks, and its marks swallow white space.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    specials = {*PHI3_MARKS, *PHI3_OTHERS}
    pieces = [piece for piece in golden()["pieces"].values() if piece not in specials]
    vocabulary = ["<unk>", *dict.fromkeys(["▁", *pieces, *(f"<0x{byte:02X}>" for byte in range(256))])]
    # All pieces cost the same, so the fewest are taken, and bytes only where there is no piece.
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False, rstrip=True) for mark in PHI3_MARKS]
        + [AddedToken(token, special=True, normalized=False) for token in PHI3_OTHERS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
