"""Labels as people type them: what is between commas, in quotes where a label holds one."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_guidance.zero_shot.labels import parse_labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat, dog,apple", ["cat", "dog", "apple"]),
        ('cat,"guinea pig, long-haired" , dog', ["cat", "guinea pig, long-haired", "dog"]),
        ('"say ""hi"", twice",x', ['say "hi", twice', "x"]),
        ('12" pipe,5" nail', ['12" pipe', '5" nail']),
        ("a\r\nb\n\n,c,", ["a", "b", "c"]),
        (" , \n", []),
        ('""', []),
    ],
)
def test_labels(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ['"cat', 'dog,"cat" or so,x', '"', ' "a', '"""'])
def test_a_quote_that_goes_wrong_is_told(text):
    with pytest.raises(ValueError, match="labels: expected a comma after a closing quote, at '"):
        parse_labels(text)


@given(st.lists(st.text(st.sampled_from('ab ,"\n')).map(str.strip).filter(bool), max_size=5))
def test_what_the_csv_module_writes_is_read(labels):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(labels)
    assert parse_labels(file.getvalue()) == labels


@given(st.text() | st.text(st.sampled_from('a ,"\n\r\t')))
def test_any_text_is_labels_or_told(text):
    try:
        found = parse_labels(text)
    except ValueError as error:
        assert '"' in text and len(str(error)) <= 300
    else:
        assert all(label == label.strip() != "" for label in found)
        if '"' not in text:
            lines = text.replace("\r", "\n").split("\n")
            assert found == [part.strip() for line in lines for part in line.split(",") if part.strip()]
