"""Learn byte-pair vocabularies (Sennrich et al. 2016, arXiv:1508.07909) in CLIP's format, and warn of truncation.

A vocabulary learnt here is a stock ``transformers.CLIPTokenizer`` in every respect but one: its padding is a token of
its own, so that the attention mask follows from the ids.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


class PromptTruncatedWarning(UserWarning):
    """A prompt is longer than the context; the message says what was cut.

    Example:
        >>> import warnings
        >>> import clip_guidance as cg
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = clip.encode_text("a red apple " * 50)
        >>> caught[0].category.__name__
        'PromptTruncatedWarning'
    """


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary, the same for equal texts in any order and on any number of threads.

    Args:
        texts: What to learn from; lower-cased, as in CLIP.
        vocab_size: Number of tokens, the 512 bytes (inside a word and at its end) and 3 special tokens included; fewer
            where the texts hold no further pair.
        context_length: Number of tokens that a text is cut or padded to, start and end included.

    Raises:
        ValueError: ``vocab_size`` leaves no room beside bytes and special tokens.

    Example:
        >>> from clip_guidance.clip.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red apple", "a green apple"] * 4, vocab_size=515, context_length=16)
        >>> len(tokenizer), tokenizer.model_max_length
        (515, 16)
    """
    alphabet = sorted(ByteLevel.alphabet())
    word_ends = [symbol + "</w>" for symbol in alphabet]
    bytes_ = [*alphabet, *word_ends]
    least = len(bytes_) + 3
    if vocab_size < least:
        raise ValueError(f"expected a vocab_size of at least {least} (bytes, special tokens), got {vocab_size}")
    learner = CLIPTokenizer().backend_tokenizer  # for CLIP's own normalisation and splitting
    # Of pairs that are equally frequent the one with the lower ids is merged. The trainer would number the bytes at the
    # end of words as it meets them in a hash map, in another order each time; special tokens are numbered as listed.
    trainer = BpeTrainer(
        vocab_size=vocab_size - 3,
        special_tokens=word_ends,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # With every byte, inside a word and at its end, no text is out of vocabulary.
    tokens = dict.fromkeys([*bytes_, *("".join(pair) for pair in merges)])
    vocab = {token: index for index, token in enumerate([*tokens, BOS, EOS, PAD])}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=context_length
    )


def warn_truncated(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Warn of each text that does not fit the tokenizer's context.

    Warns:
        PromptTruncatedWarning: Names the text and the part that is cut.
    """
    limit = tokenizer.model_max_length
    for text, ids in zip(texts, tokenizer(list(texts), verbose=False).input_ids, strict=True):
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 : -1])
            dropped = f"{cut!r:.500} was dropped from {text!r:.500}"
            message = f"prompt of {len(ids)} tokens cut to the context of {limit}: {dropped}"
            warnings.warn(message, PromptTruncatedWarning, stacklevel=4)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], padding: str = "max_length") -> Tensor:
    """Turn texts into token ids, padded or cut to the tokenizer's context.

    The end token is kept where a text is cut.

    Args:
        tokenizer: The tokenizer of the CLIP.
        texts: At least one.
        padding: "max_length", or "longest" for no more columns than the longest text needs.

    Returns:
        Int64 (n, L), L ``model_max_length`` or less.

    Warns:
        PromptTruncatedWarning: A text is cut.
    """
    warn_truncated(tokenizer, texts)
    return tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt").input_ids
