"""Byte-pair vocabularies (Sennrich et al. 2016, arXiv:1508.07909) in the format of CLIP's, and what truncation cut.

A vocabulary learnt here is a stock ``transformers.CLIPTokenizer`` in every respect but one: it pads with a token of its
own, so that a mask can be read off the ids.
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
    """A prompt is longer than the context; the message says what was cut."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> CLIPTokenizer:
    """Learns a byte-pair vocabulary; ties are broken differently from run to run, so save what comes out.

    Args:
        texts: what to learn it from; lower-cased, as CLIP does.
        vocab_size: tokens in all, the 512 bytes (inside a word and at its end) and 3 special tokens included.
        context_length: tokens a text is cut or padded to, start and end included.

    Raises:
        ValueError: ``vocab_size`` leaves no room beside bytes and special tokens.
    """
    alphabet = sorted(ByteLevel.alphabet())
    bytes_ = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    least = len(bytes_) + 3
    if vocab_size < least:
        raise ValueError(f"expected a vocab_size of at least {least} (bytes, special tokens), got {vocab_size}")
    learner = CLIPTokenizer().backend_tokenizer  # for CLIP's own normalisation and splitting
    trainer = BpeTrainer(
        vocab_size=vocab_size - 3 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # every byte, also at the end of a word: no text is out of vocabulary
    tokens = dict.fromkeys([*bytes_, *("".join(pair) for pair in merges)])
    vocab = {token: index for index, token in enumerate([*tokens, BOS, EOS, PAD])}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=context_length
    )


def warn_truncated(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Says of each text that does not fit the tokenizer's context what will be cut.

    Warns:
        PromptTruncatedWarning: names the text and the part that is dropped.
    """
    limit = tokenizer.model_max_length
    for text, ids in zip(texts, tokenizer(list(texts), verbose=False).input_ids, strict=True):
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 : -1])
            told = f"{cut!r:.500} was dropped from {text!r:.500}"
            message = f"prompt of {len(ids)} tokens cut to the context of {limit}: {told}"
            warnings.warn(message, PromptTruncatedWarning, stacklevel=4)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], padding: str = "max_length") -> Tensor:
    """Ids of the texts, padded or cut to the tokenizer's context, the end token kept; warns of what it cuts.

    Args:
        tokenizer: of the CLIP.
        texts: not empty.
        padding: "max_length", or "longest" for no more columns than the longest text needs.

    Returns:
        int64 (n, L), L ``model_max_length`` or less.
    """
    warn_truncated(tokenizer, texts)
    return tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt").input_ids
