"""R5: files that are cut, empty, not UTF-8, of changing type or missing keys: file and line."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from kd_lightning.errors import KDError
from tests.data import kit

GOOD = [{"prompt": f"row {i}", "answer": str(i)} for i in range(300)]


def lines(rows) -> list[bytes]:
    return [json.dumps(row).encode() + b"\n" for row in rows]


def with_bad(bad: bytes, at: int = 150) -> bytes:
    made = lines(GOOD)
    made[at] = bad
    return b"".join(made)


BAD = {
    "cut line": (b'{"prompt": "a", "ans\n', "broken JSON"),
    "garbage": (b"hello\n", "broken JSON"),
    "not utf-8": (b'{"prompt": "\xff", "answer": "x"}\n', "not UTF-8"),
    "no object": (b"[1, 2]\n", "must be an object"),
    "missing key": (b'{"answer": "x"}\n', "no 'prompt'"),
    "null": (b'{"prompt": null, "answer": "x"}\n', "no 'prompt'"),
    "number for text": (b'{"prompt": "a", "answer": 3}\n', "holds a number and held a text"),
    "list for text": (b'{"prompt": ["a"], "answer": "x"}\n', "holds a list where text"),
    "object for text": (b'{"prompt": {"a": 1}, "answer": "x"}\n', "holds a dict where text"),
    "empty text": (b"{}\n", "no 'prompt'"),
}


def data(path, held, **more):
    made = kit.Echo(str(path), validation=str(held), **more)
    made.tokenizer = kit.byte_tokenizer()
    return made


@pytest.fixture
def held(tmp_path):
    return kit.numbers(tmp_path / "held.jsonl", 3)


@pytest.mark.parametrize("name", BAD)
def test_r5_fail_names_file_and_line(tmp_path, held, name):
    content, why = BAD[name]
    (tmp_path / "a.jsonl").write_bytes(with_bad(content))
    with pytest.raises(KDError, match=rf"a\.jsonl:151: .*{why}"):
        data(tmp_path / "a.jsonl", held).encoded("train")


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
@pytest.mark.parametrize("name", BAD)
def test_r5_left_out_within_the_budget(tmp_path, held, monkeypatch, caplog, name, policy):
    monkeypatch.chdir(tmp_path)
    content, why = BAD[name]
    (tmp_path / "a.jsonl").write_bytes(with_bad(content))
    made = data(tmp_path / "a.jsonl", held, bad_rows=policy)
    assert len(made.encoded("train")) == 299
    assert any("1 bad rows of train left out" in str(w) for w in made.bad.notes)
    kept = tmp_path / "quarantine/train.jsonl"
    assert kept.is_file() == (policy == "quarantine")
    if policy == "quarantine":
        (told,) = [json.loads(line) for line in kept.read_text().splitlines()]
        assert "a.jsonl:151" in told["error"] and why in told["error"]


def test_r5_beyond_the_budget(tmp_path, held):
    rows = lines(GOOD)
    for i in (5, 50, 100, 150, 200, 250):
        rows[i] = b"garbage\n"
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows))
    with pytest.raises(KDError, match=r"rows of train are bad, more than .*a\.jsonl:6: broken"):
        data(tmp_path / "a.jsonl", held, bad_rows="skip").encoded("train")
    assert len(data(tmp_path / "a.jsonl", held, bad_rows="skip", bad_share=0.03).encoded("train"))


def test_r5_the_share_is_that_of_the_file_where_rows_are_held_back(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(with_bad(b"garbage\n"))
    made = kit.Echo(str(tmp_path / "a.jsonl"), validation_share=0.02, bad_rows="skip")
    made.tokenizer = kit.byte_tokenizer()
    assert len(made.encoded("validation")) == 6 and len(made.encoded("train")) == 293


def test_r5_files_broken_as_a_whole_are_an_error_under_every_policy(tmp_path, held):
    table = pyarrow.Table.from_pylist(GOOD)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cut.json").write_text(json.dumps(GOOD)[:-10])
    for name, why in (("a.parquet", "broken parquet"), ("empty.jsonl", "is empty"),
                      ("cut.json", "broken JSON")):  # fmt: skip
        for policy in ("fail", "skip", "quarantine"):
            with pytest.raises(KDError, match=why):
                data(tmp_path / name, held, bad_rows=policy).encoded("train")


def test_numbers_throughout_are_texts(tmp_path, held):
    kit.write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": i} for i in range(5)])
    held = kit.write(tmp_path / "h.jsonl", [{"prompt": "a", "answer": "text"}])
    made = data(tmp_path / "a.jsonl", held)
    assert [e.answer for e in made.examples("train")] == ["0", "1", "2", "3", "4"]
    assert made.examples("validation")[0].answer == "text"  # another file
