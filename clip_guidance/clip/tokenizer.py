"""Load tokenizers, learn byte-pair vocabularies (Sennrich et al. 2016, arXiv:1508.07909), and warn of truncation.

A vocabulary learnt here is a stock ``transformers.CLIPTokenizer`` in every respect but one: its padding is a token of
its own, so that the attention mask follows from the ids.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from clip_guidance.clip.hub import ModelError, Place

PROBE = "a photo of a red apple"  # plain words, in which all ways to split texts into words agree
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


def load_tokenizer(place: Place) -> PreTrainedTokenizerBase | None:
    """Load a model's tokenizer, as the class that the model's files name.

    Args:
        place: Where the model is.

    Returns:
        The tokenizer; None where there is neither a vocabulary nor ``tokenizer_config.json``.

    Raises:
        ModelError: The vocabulary is missing, or the class cannot read it.
    """
    try:
        tokenizer = _from_files(place)
        files = dict(type(tokenizer).vocab_files_names)
        whole = place.file(files.pop("tokenizer_file", "tokenizer.json"))
        # Where a file is missing, transformers makes an empty vocabulary without a word.
        if whole is None and not all(place.file(name) for name in files.values()):
            if place.file("tokenizer_config.json") is None:
                return None
            wanted = "".join(f", or {' and '.join(files.values())}" if files else "")
            raise ModelError(f"{place.name}: no vocabulary: expected tokenizer.json{wanted}")
        if whole is not None and (problem := _disagrees(tokenizer, whole)):
            raise ModelError(f"{place.name}: {problem}")
    except (ModelError, Warning):
        raise
    except Exception as error:  # of any kind, because what is read is somebody else's file
        if not any(place.file(name) for name in ("tokenizer.json", "tokenizer_config.json")):
            return None
        raise ModelError(f"{place.name}: its tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
    return tokenizer


def _from_files(place: Place) -> PreTrainedTokenizerBase:
    # Without a config transformers looks for one, which models of open_clip do not have.
    config = {} if place.file("config.json") is not None else {"config": PreTrainedConfig()}
    try:
        return AutoTokenizer.from_pretrained(place.path, trust_remote_code=False, **config, **place.options)
    except ImportError:  # SigLIP's class reads sentencepiece's file with its library; tokenizer.json says the same
        if place.file("tokenizer.json") is None:
            raise
        return PreTrainedTokenizerFast.from_pretrained(place.path, **place.options)


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a tokenizer lower texts before all else, in place, if it does not yet; return it.

    Example:
        >>> import clip_guidance as cg
        >>> from clip_guidance.clip.tokenizer import lower_cased
        >>> tokenizer = cg.CLIP.from_pretrained("emoji").tokenizer
        >>> lower_cased(tokenizer)("Cat").input_ids == tokenizer("cat").input_ids
        True
    """
    if tokenizer(PROBE.upper()).input_ids != tokenizer(PROBE).input_ids:
        backend = tokenizer.backend_tokenizer
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    return tokenizer


def _disagrees(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """Say how the class of a tokenizer reads ``tokenizer.json`` otherwise than it is written; "" where it does not.

    A class such as CLIP's takes the vocabulary from the file and splits texts in its own way, which is wrong for a
    vocabulary of another kind.
    """
    written = Tokenizer.from_file(str(path))
    written.no_padding()
    written.no_truncation()
    ids = [written.encode(PROBE, add_special_tokens=False).ids, tokenizer(PROBE, add_special_tokens=False).input_ids]
    if ids[0] == ids[1]:
        return ""
    model = type(written.model).__name__
    return (
        f"tokenizer.json holds a {model} that {type(tokenizer).__name__} reads otherwise: tokenizer_config.json has to "
        "name its tokenizer_class, such as PreTrainedTokenizerFast; or give a tokenizer"
    )


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


def warn_truncated(tokenizer: Any, texts: Sequence[str], limit: int | None = None) -> None:
    """Warn of each text that does not fit a context of ``limit`` tokens, by default the tokenizer's.

    Warns:
        PromptTruncatedWarning: Names the text and the part that is cut.
    """
    limit = limit or tokenizer.model_max_length
    for text, ids in zip(texts, one_at_a_time(tokenizer, list(texts), verbose=False).input_ids, strict=True):
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 : -1])
            dropped = f"{cut!r:.500} was dropped from {text!r:.500}"
            message = f"prompt of {len(ids)} tokens cut to the context of {limit}: {dropped}"
            warnings.warn(message, PromptTruncatedWarning, stacklevel=4)


_encoding = threading.RLock()


def one_at_a_time(encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a tokenizer, or a method of it, while no other thread does so through this function.

    transformers sets padding and truncation on a tokenizer before it encodes, so that of two threads with one tokenizer
    one may get what the other asked for: ids of another length, without an error.
    """
    with _encoding:
        return encode(*args, **kwargs)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], padding: str = "max_length") -> Tensor:
    """Turn texts into token ids, padded or cut to the tokenizer's context.

    The end token is kept where a text is cut. Texts are padded at their end, whatever the tokenizer's own side: CLIP
    counts positions from the start, and padding by the end token would be taken for the end.

    Args:
        tokenizer: The tokenizer of the CLIP.
        texts: At least one.
        padding: "max_length", or "longest" for no more columns than the longest text needs.

    Returns:
        Int64 (n, L), L ``model_max_length`` or less.

    Warns:
        PromptTruncatedWarning: A text is cut.
    """
    rows = token_rows(tokenizer, texts)
    return pad_rows(tokenizer, rows, tokenizer.model_max_length if padding == "max_length" else None)["input_ids"]


def token_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Turn texts into token ids, cut to the tokenizer's context with the end token kept, and not padded.

    Warns:
        PromptTruncatedWarning: A text is cut.
    """
    warn_truncated(tokenizer, texts)
    return one_at_a_time(tokenizer, list(texts), truncation=True).input_ids


def pad_rows(tokenizer: Any, rows: Sequence[Sequence[int]], length: int | None, side: str = "right") -> Any:
    """Pad token ids to ``length`` columns, or to the longest row.

    Returns:
        Tensors by name: "input_ids" int64 (n, L), and "attention_mask" where the tokenizer makes one.
    """
    padding = {"padding": "longest"} if length is None else {"padding": "max_length", "max_length": length}
    rows = [list(row) for row in rows]
    return tokenizer.pad({"input_ids": rows}, **padding, padding_side=side, return_tensors="pt", verbose=False)


def check_texts(texts: Sequence[str]) -> None:
    """Check that there are texts and that each has a word.

    Raises:
        ValueError: There is no text, or one is empty or not a string.
    """
    if not texts:
        raise ValueError("expected at least one text, got an empty list")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {index}: expected a prompt with at least one word, got {text!r:.60}")


def check_ids(input_ids: Tensor, tokenizer: Any, vocab_size: int | None) -> None:
    """Check that a text tower knows all tokens.

    Args:
        input_ids: Token ids, on the CPU.
        tokenizer: Where they are from.
        vocab_size: Number of tokens that the tower embeds; None where that is not known.

    Raises:
        ValueError: A token was added to the tokenizer and not to the tower.
    """
    if vocab_size is not None and (largest := int(input_ids.max())) >= vocab_size:
        raise ValueError(
            f"token {tokenizer.convert_ids_to_tokens(largest)!r:.60} has the id {largest}, and the text tower embeds "
            f"{vocab_size} tokens: text_encoder.resize_token_embeddings({len(tokenizer)}), or load the right tokenizer"
        )
