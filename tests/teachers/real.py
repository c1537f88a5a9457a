"""What servers that really run are asked, and what is compared with the same weights here."""

from __future__ import annotations

import json
import urllib.request

import pytest
import yaml

from kd_lightning import elicitation
from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.models.loading import resolve
from kd_lightning.teachers import ServerTeacher
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.types import Prompt, Sampling
from tests.conftest import ROOT
from tests.teachers.hostile import Seen

CLOSE = 5e-5
"""float32 of two implementations, in nats a token."""
HOW = Sampling(40)
CHATS = [Prompt.user(item.prompt) for f in FAMILIES for item in draw(f, "test", 2, 0)]
TEXTS = [Prompt.text(words) for words in ("Sort these letters: d a", "The numbers are 3, ", "ab")]
SEEN = Seen("/completions", {}, {"prompt": "ab"})


def settings(kind, url, folder):
    """configs/teacher/server_KIND.yaml with the address and the model put in."""
    told = yaml.safe_load((ROOT / f"configs/teacher/server_{kind}.yaml").read_text())
    told["init_args"] |= {"url": url, "model": folder, "tokenizer_path": folder}
    return told


def shipped(kind, url, folder, **more):
    """The teacher that a user of the shipped file gets."""
    return ServerTeacher(**{**settings(kind, url, folder)["init_args"], **more})


def drawn(teacher, prompts=None, how=HOW, n=1):
    asked = [Request(Kind.GENERATE, p, how, n, logprobs=True) for p in prompts or [*CHATS, *TEXTS]]
    return [reply.completions for reply in teacher.ask(asked)]


def same(found, expected):
    assert (found.text, found.tokens, found.finished) == (
        expected.text, expected.tokens, expected.finished
    )  # fmt: skip
    assert found.logprobs == pytest.approx(expected.logprobs, abs=CLOSE)


# ---- the wire ---------------------------------------------------------------------------------


def fixtures_hold(url, stated_chat, stated_echo):
    """Every field that the fixtures state is sent, of the same kind, and no other; the echo."""

    def post(path, **body):
        data = json.dumps({"model": resolve("demo"), "max_tokens": 2, **body}).encode()
        asked = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    chat = post("/chat/completions", messages=[{"role": "user", "content": "ab"}], logprobs=True,
                top_logprobs=2, temperature=0, return_token_ids=True)  # fmt: skip
    echo = post("/completions", prompt="ab", logprobs=1, echo=True, return_token_ids=True)
    assert shape(stated_chat, chat) == [] and shape(stated_echo, echo) == []
    (choice,) = echo["choices"]
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is None and told["tokens"][:2] == ["a", "b"]
    assert len(told["tokens"]) == 2 + len(choice["token_ids"])
    return choice


def shape(stated, real, where=""):
    """Fields that one of them has alone, or that are of two kinds; keys that are ids are values."""
    if isinstance(stated, dict) and isinstance(real, dict):
        if where.endswith("logprobs[]") and "decoded_token" not in stated and "token" not in stated:
            return [] if stated.keys() and real.keys() else [where]  # tokens or ids to numbers
        return [
            told
            for key in sorted({*stated, *real})
            for told in (
                shape(stated[key], real[key], f"{where}.{key}")
                if key in stated and key in real
                else [f"{where}.{key}"]
            )
        ]
    if isinstance(stated, list) and isinstance(real, list):
        return shape(stated[-1], real[-1], f"{where}[]") if stated and real else []
    if stated is None or real is None or isinstance(stated, type(real)):
        return []
    return [f"{where}: {type(stated).__name__} and not {type(real).__name__}"]


# ---- an elicitation ---------------------------------------------------------------------------


def elicits_the_same(kind, url, folder, each):
    """SeqKD's set over it is the local teacher's; `each`: questions of each kind of the demo's."""
    rows = [{"prompt": item.prompt} for f in FAMILIES for item in draw(f, "train", each, 0)]
    seeds = folder / "rows.jsonl"
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = ROOT / "configs/elicit/seqkd.yaml"

    def made(name, teacher):
        told = folder / f"{name}.yaml"
        told.write_text(yaml.safe_dump({"generators": {"teacher": teacher}}))
        return elicitation.elicit(
            ["-c", str(file), "-c", str(told), f"--seeds.path={seeds}",
             f"--output={folder / name}", "--steps.init_args.sampling.max_new_tokens=40"]
        )  # fmt: skip

    here = {"class_path": "LocalTeacher",
            "init_args": {"path": "demo", "dtype": "float32", "licence": "apache-2.0"}}  # fmt: skip
    found = made(kind, settings(kind, url, resolve("demo")))
    expected = made("local", here)
    assert answers(found) == answers(expected) and len(answers(found)) == len(rows)
    assert "Apache-2.0" in (found / "README.md").read_text(), "the card does not tell the terms"


def answers(folder):
    return [
        (row["prompt"], row["answer"])
        for file in sorted((folder / "shards").glob("*.jsonl"))
        for row in map(json.loads, file.read_text().splitlines())
    ]
