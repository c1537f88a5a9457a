"""Reading: every format, and every broken file named with its line."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from kd_lightning.data.files import read_file
from kd_lightning.errors import KDError

ROWS = [{"prompt": "a", "answer": "b"}, {"prompt": "c\nd", "answer": "ü"}]


def values(path):
    return [row for row, _ in read_file(path)]


def test_jsonl_with_empty_lines_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(r).encode() for r in ROWS))
    assert [(row["prompt"], line) for row, line in read_file(file)] == [("a", 1), ("c\nd", 3)]


def test_json_list(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    assert values(file) == ROWS


@pytest.mark.parametrize(("ending", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_tables(tmp_path, ending, mark):
    file = tmp_path / f"a{ending}"
    file.write_text(f'prompt{mark}answer\na{mark}b\n"c\nd"{mark}ü\n', encoding="utf-8")
    assert values(file) == ROWS


def test_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    assert values(file) == ROWS


def test_text_by_blank_lines_or_marks(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\nmore\n\n\ntwo\n", encoding="utf-8")
    assert list(read_file(file)) == [({"text": "one\nmore"}, 1), ({"text": "two"}, 5)]
    file.write_text("one\n\nmore\n<|endoftext|>\ntwo\n<|endoftext|>\n", encoding="utf-8")
    assert values(file) == [{"text": "one\n\nmore"}, {"text": "two"}]


GOOD = b'{"a": 1}\n'
BROKEN = {
    "cut line": ("a.jsonl", GOOD + b'{"a": ', r"a\.jsonl:2: broken JSON"),
    "garbage line": ("a.jsonl", GOOD + b"hello\n" + GOOD, r"a\.jsonl:2: broken JSON"),
    "not utf-8": ("a.jsonl", GOOD + b'{"a": "\xff"}\n', r"a\.jsonl:2: byte 8 .*not UTF-8"),
    "no object": ("a.jsonl", GOOD + b"[1]\n", r"a\.jsonl:2: a row must be an object.*list"),
    "deep": ("a.jsonl", b"[" * 100000 + b"\n", r"a\.jsonl:1: .*(nested|broken)"),
    "empty": ("a.jsonl", b"", r"a\.jsonl is empty"),
    "only blank": ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
    "cut json": ("a.json", b'[\n{"a": 1},\n{"a"', r"a\.json:3: broken JSON"),
    "json object": ("a.json", b'{"a": 1}', r"a\.json: write a list"),
    "short table row": ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3: .*2 columns"),
    "cut parquet": ("a.parquet", b"PAR1 nothing", r"a\.parquet: broken parquet"),
    "unknown ending": ("a.pickle", b"x", r"no reader for '\.pickle'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path, case):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KDError, match=message):
        values(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(KDError, match=re.escape(str(tmp_path / "no.jsonl")) + " does not exist"):
        values(tmp_path / "no.jsonl")
