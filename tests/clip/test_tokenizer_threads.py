"""One tokenizer in several threads."""

from concurrent.futures import ThreadPoolExecutor

from helpers.factories import make_tokenizer

from clip_guidance.clip.tokenizer import tokenize


def lengths(pad, runs=200):
    """Set of the lengths that four threads get, of which two pad to the context and two do not."""
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda i: (i % 2, *{pad(i % 2) for _ in range(runs)}), range(4)))


def test_each_thread_gets_the_padding_that_it_asked_for(eager_threads):
    tokenizer, kinds = make_tokenizer(), ("longest", "max_length")
    least = tokenize(tokenizer, ["a red apple"], "longest").shape[1]
    assert least < tokenizer.model_max_length
    found = lengths(lambda kind: tokenize(tokenizer, ["a red apple"], kinds[kind]).shape[1])
    assert found == {(0, least), (1, tokenizer.model_max_length)}
