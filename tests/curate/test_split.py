"""No root in two parts; mixtures in their proportions."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from kd_lightning.curate.descent import families, root
from kd_lightning.curate.mix import Mix
from kd_lightning.curate.split import Split
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record, born, origin
from tests.curate.kit import ids, ran, records, work


def seed(id):
    return Record(id, {"prompt": id}, (origin("seeds", [f"/data/{id}"]),))


def test_no_root_is_in_two_parts():
    seeds = [seed(f"HumanEval/{i}") for i in range(60)]
    evolved = [s.child("evolve", str(i), prompt="x") for s in seeds for i in range(3)]
    again = [e.child("evolve2", "z", prompt="y") for e in evolved[::2]]
    fused = [born(f"f{i}", {}, "fuse", [seeds[2 * i], seeds[2 * i + 1]]) for i in range(10)]
    made = Split(0.3, 0.2).run([*again, *fused, *evolved, *seeds], work())
    parts = defaultdict(set)
    for record in made:
        for name in [root(record)] if not record.id.startswith("f") else record.lineage[0]["from"]:
            parts[name].add(record["split"])
    assert len(parts) == 60 and all(len(p) == 1 for p in parts.values())
    assert set().union(*parts.values()) == {"train", "validation", "test"}


def test_the_control_leaks():
    seeds = [seed(str(i)) for i in range(60)]
    children = [s.child("evolve", str(i), prompt="x") for s in seeds for i in range(3)]
    made = Split(0.3, 0.2, by="id").run(children, work())
    parts = defaultdict(set)
    for record in made:
        parts[root(record)].add(record["split"])
    assert any(len(p) > 1 for p in parts.values())


def test_parents_that_are_not_here_relate_their_children():
    absent = seed("s")
    one, two = (absent.child("evolve", str(i)) for i in range(2))
    a, b = born("a", {}, "fuse", [one, seed("t")]), born("b", {}, "fuse", [two, seed("u")])
    alone = born("c", {}, "fuse", [seed("v"), seed("w")])
    found = families([a, b, alone])
    assert found[0] == found[1] != found[2]


def test_roots():
    first = seed("s")
    assert root(first) == "s"
    assert root(first.child("a", "1").changed("b", x=1).child("c", "2")) == "s"
    made = born("m", {}, "pool", [first, seed("t")])
    assert root(made) == "m" and root(made.child("a", "1")) == "m"
    assert root(Record("x/y", {})) == "x/y"


def test_shares_and_stability():
    rows = [seed(f"s{i}") for i in range(2000)]
    made = Split(0.2, 0.1).run(rows, work())
    counts = Counter(r["split"] for r in made)
    assert abs(counts["validation"] - 400) < 80 and abs(counts["test"] - 200) < 60
    before = {r.id: r["split"] for r in made}
    fewer = {r.id: r["split"] for r in Split(0.2, 0.1).run(rows[::-3], work())}
    assert all(before[name] == part for name, part in fewer.items())
    other = {r.id: r["split"] for r in Split(0.2, 0.1).run(rows, work(1))}
    assert other != before


def test_one_part_alone_and_a_field():
    rows = records(*({"topic": "ab"[i % 2]} for i in range(20)))
    made = Split(0.5, by="topic").run(rows, work())
    assert len({(r["topic"], r["split"]) for r in made}) == 2
    rows = [seed(f"s{i}") for i in range(50)]
    parts = [ran(Split(0.3, 0.3, only=p), rows)[0] for p in ("train", "validation", "test")]
    assert sorted(name for part in parts for name in part) == sorted(ids(rows))
    with pytest.raises(KDError, match="only must be"):
        Split(only="dev")
    with pytest.raises(KDError, match="at most 1"):
        Split(0.6, 0.6)


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"o{i}", "prompt": str(i)}) + "\n" for i in range(30))
    )
    return str(path)


def test_shares_of_a_mixture(other):
    rows = [seed(f"s{i}") for i in range(40)]
    step = Mix({"other": other}, {"here": 3, "other": 1})
    at = work()
    made = step.run(rows, at)
    # 40 records at 3/4 allow 53; 30 at 1/4 allow 120
    assert Counter(r["mixture"] for r in made) == {"here": 40, "other": 13}
    assert at.tally.notes == {"from here": 40, "from other": 13}
    assert {r.id for r in made if r["mixture"] == "other"} <= {f"other:o{i}" for i in range(30)}
    assert ids(made) == ids(step.run(rows, work())) != ids(step.run(rows, work(1)))


def test_a_mixture_of_a_total(other):
    rows = [seed(f"s{i}") for i in range(40)]
    at = work()
    made = Mix({"other": other}, {"here": 1, "other": 2}, total=10, into=None).run(rows, at)
    assert len(made) == 10 and at.tally.dropped == {"not drawn": 37}
    with pytest.raises(KDError, match="needs 60 records of 'other', which has 30"):
        Mix({"other": other}, {"here": 1, "other": 2}, total=90).run(rows, work())
    with pytest.raises(KDError, match="needs a file and a share"):
        Mix({"other": other}, {"here": 1})


def test_a_mixture_knows_its_files_content(other):
    before = Mix({"other": other}, {"here": 1, "other": 1}).digest()
    with Path(other).open("a") as file:
        file.write('{"id": "new", "prompt": "x"}\n')
    assert Mix({"other": other}, {"here": 1, "other": 1}).digest() != before
