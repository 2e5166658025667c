"""The captions of a training run before it begins: whether they differ, and the vocabulary that is learnt from them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPTokenizer

from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.tokenizer import train_tokenizer
from clip_guidance.data import SourceError

TOKENIZER = "tokenizer.json"  # the file that is looked for, and the last one to be written


def check_captions(texts: Iterable[str], source: str) -> None:
    """Refuse captions that are all the same, with which a contrastive loss is 0 whatever the model says.

    Reads no further than to the second caption that differs.

    Args:
        texts: Captions of the data.
        source: What the data is called in a message.

    Raises:
        SourceError: All captions are the same.
    """
    texts = iter(texts)
    first = next(texts, None)
    if first is not None and all(text == first for text in texts):
        raise SourceError(
            f"{source:.100}: all captions are {first!r:.60}: there is nothing to learn; `clip-guidance data check` "
            "says how the data is read"
        )


def find_tokenizer(folder: str | Path, texts: Iterable[str], vocab_size: int, context_length: int) -> CLIPTokenizer:
    """Return the vocabulary, which the first launch learns and saves, and later ones read.

    Args:
        folder: Output folder of the run.
        texts: What to learn from, read where there is no vocabulary yet.
        vocab_size: See :func:`~clip_guidance.clip.tokenizer.train_tokenizer`.
        context_length: See there.

    Raises:
        ModelError: The saved vocabulary is damaged.
    """
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        tokenizer = train_tokenizer(texts, vocab_size, context_length)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:  # a kill leaves no half of it
            tokenizer.save_pretrained(partial)
            for name in sorted(os.listdir(partial), key=lambda name: name == TOKENIZER):
                os.replace(Path(partial, name), Path(folder, name))
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the parsers of both libraries raise anything
        reason = f"{path}: is damaged ({error!s:.80}); delete it, and the same vocabulary is learnt again"
        raise ModelError(reason) from None
