"""Tokenizer of the small model: a byte-level BPE of a few hundred tokens with the special tokens of Phi-3."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .conversations import example_texts

VOCABULARY_SIZE = 448
MAX_LENGTH = 2048
IMAGE_TOKEN = "<image>"
END_TOKEN = "<|end|>"
PAD_TOKEN = "<pad>"
BOS_TOKEN = "<s>"
SPECIAL_TOKENS = (
    "<unk>",
    BOS_TOKEN,
    "</s>",
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    END_TOKEN,
    "<|user|>",
    PAD_TOKEN,
    IMAGE_TOKEN,
    "<image placeholder>",
    "<|endofchunk|>",
)
# Plain English, so that words around the trained questions do not fall apart into single letters.
PLAIN_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "You are a helpful assistant. Please answer the question with one word or a short sentence.",
    "Describe the image. What is in this picture? What does the text in the image say?",
    "Are there any people in the photo, and what are they doing? Yes, there are. No, there is not.",
    "How many objects can you see? Which of these is on the left, and which one is on the right?",
    "The first image shows a number on white paper; the second image shows another number.",
    "Compare the two images. Is the number in the first picture larger than the other?",
    "Hello! How are you today? Thank you very much, I am fine. What time is it now?",
    "Read the handwritten digits from left to right and write them down without spaces.",
)


@functools.cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    # Every digit is a token of its own, so a number is spelled as it is seen.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trained wordings count several times: they should become few tokens.
    tokenizer.train_from_iterator([*(example_texts() * 8), *PLAIN_TEXT], trainer)
    return tokenizer.to_str()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; the result depends on nothing but this package's own texts.

    Returns:
        A left-padding tokenizer without automatic beginning-of-text token. Any text can be encoded, digits are single
        tokens, and special tokens swallow no white space around them.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        unk_token="<unk>",
        bos_token=BOS_TOKEN,
        eos_token="<|endoftext|>",
        pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
