"""Caches of the hub laid out by hand, and what transformers makes of the CLIPs in them."""

import functools
import hashlib
import shutil

import torch
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer

from clip_guidance.clip import CLIP
from helpers.factories import TEXTS

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def lay_out(cache, repository, revisions):
    """Lays a repository out in a cache of the hub as a download does: revisions are names of folders' contents."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for revision, folder in revisions.items():
        commit = COMMITS.get(revision) or hashlib.sha1(revision.encode()).hexdigest()
        (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)
    return {"cache_dir": cache, "local_files_only": True}


def texts_of(folder):
    """The text embeddings by transformers."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        features = model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(features)


@functools.cache
def ours(folder):
    return CLIP.from_pretrained(folder)


@functools.cache
def theirs(folder):
    return CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)


def same(clip, folder):
    torch.testing.assert_close(clip.encode_text(TEXTS), texts_of(folder), rtol=0, atol=1e-6)
