"""The atom: retries, what is kept, groups, draws, demonstrations."""

import json
from dataclasses import replace

import pytest

from kd_lightning.elicit import Ask
from kd_lightning.elicit.shots import Shots
from kd_lightning.errors import KDError
from kd_lightning.types import Sampling
from tests.elicit.kit import Rule, file, last, records, run, whole

NUMBERED = "---\nparser: {Number: {low: 0, high: 9, marker: ''}}\n---\nRate {{ prompt }}"
WARM = Sampling(max_new_tokens=8, temperature=1.0)
COLD = Sampling(max_new_tokens=8)


def test_a_malformed_answer_is_asked_again_warmer_then_dropped(tmp_path):
    def rule(request):
        retries.setdefault(last(request), []).append(request.sampling)
        if last(request) == "Rate b":
            return "3" if len(retries["Rate b"]) == 2 else "three"
        return "4" if last(request) == "Rate a" else "none"

    retries = {}
    step = Ask(file(tmp_path, NUMBERED), sampling=COLD)
    made, work = run(step, records("a", "b", "c"), tmp_path, teacher=Rule(rule))
    assert [(r.id, r["score"]) for r in made] == [("r0", 4), ("r1", 3)]
    assert [(r.id, why) for r, why in work.fallen] == [("r2", "malformed: no number")]
    assert work.tally.dropped == {"malformed: no number": 1}
    assert work.tally.notes["malformed answers"] == 1 + 3
    assert [s.temperature for s in retries["Rate c"]] == [0.0, 0.5, 0.5]
    assert len({s.seed for s in retries["Rate c"]}) == 3
    assert len(retries["Rate a"]) == 1


def test_a_warm_question_stays_as_warm(tmp_path):
    generator = Rule(lambda request: "none")
    run(Ask(file(tmp_path, NUMBERED), sampling=WARM), records("a"), tmp_path, teacher=generator)
    assert [r.sampling.temperature for r in generator.asked] == [1.0] * 3


def test_a_failure_of_the_generator_is_not_asked_again(tmp_path):
    generator = Rule(lambda r: None if last(r).endswith("b") else "4")
    step = Ask(file(tmp_path, NUMBERED))
    made, work = run(step, records("a", "b"), tmp_path, teacher=generator)
    assert [r.id for r in made] == ["r0"] and work.tally.dropped == {"refused by the rule": 1}
    assert len(generator.asked) == 2


@pytest.mark.parametrize("allow", [False, True])
def test_a_cut_answer_counts_only_where_allowed(tmp_path, allow):
    made, work = run(
        Ask("answer", allow_cut=allow), records("a"), tmp_path, teacher=Rule(lambda r: "half a se…")
    )
    assert bool(made) is allow
    assert work.tally.dropped == ({} if allow else {"malformed: cut at the length limit": 1})


def numbered(request):
    """n different answers; every third is empty."""
    return [f"{request.sampling.seed % 1000}-{i}" if i % 3 else "" for i in range(request.n)]


def test_only_what_is_missing_is_asked_again(tmp_path):
    generator = Rule(numbered)
    step = Ask("answer", n=6, keep="list", rename={"answer": "candidates"})
    made, work = run(step, records("a"), tmp_path, teacher=generator)
    assert [r.n for r in generator.asked] == [6, 2, 1]
    assert len(made[0]["candidates"]) == 5 == len(made[0]["sources"])
    assert work.tally.notes["answers missing"] == 1
    assert "answer" not in made[0].values


def test_each_item_becomes_a_record_of_its_own(tmp_path):
    text = "---\nparser: {Lines: {field: prompt}}\n---\n{{ topic }}"
    step = Ask(file(tmp_path, text), n=2, keep="each", sampling=WARM)
    rows = records({"topic": "t", "licence": "mine"})
    made, _ = run(step, rows, tmp_path, teacher=Rule(lambda r: ["a\nb", "c"]))
    assert [(r.id, r["prompt"]) for r in made] == [("r0/0", "a"), ("r0/1", "b"), ("r0/2", "c")]
    assert all(r["licence"] == "mine" and r["topic"] == "t" for r in made)
    assert made[0].lineage == ({"step": "step", "from": ["r0"], "by": "teacher"},)


def test_the_best_has_the_highest_mean_log_probability(tmp_path):
    step = Ask("answer", n=3, keep="best", sampling=WARM)
    generator = Rule(lambda r: ["long one", "ok", "longer one"])
    made, _ = run(step, records("a"), tmp_path, teacher=generator)
    assert made[0]["answer"] == "ok" and generator.asked[0].logprobs

    class Silent(Rule):
        def _reply(self, request):
            return super()._reply(replace(request, logprobs=False))

    (tmp_path / "silent").mkdir()
    with pytest.raises(KDError, match="gives none: set keep"):
        run(step, records("a"), tmp_path / "silent", teacher=Silent(lambda r: ["x", "y", "z"]))


def test_names_in_and_out(tmp_path):
    step = Ask("answer", reads={"prompt": "question"}, rename={"answer": "reply"})
    rows = records({"question": "Who?", "prompt": "another"})
    made, _ = run(step, rows, tmp_path, teacher=Rule(lambda r: last(r).upper()))
    assert made[0]["reply"] == "WHO?" and made[0]["prompt"] == "another"


def test_what_a_generator_writes_cannot_rename_a_record(tmp_path):
    text = "---\nparser: JSONObject\n---\n{{ prompt }}"
    told = json.dumps({"id": "r1", "answer": "x"})
    made, work = run(
        Ask(file(tmp_path, text)), records("a"), tmp_path, teacher=Rule(lambda r: told)
    )
    assert not made and work.tally.dropped == {"malformed: names a value id or lineage": 1}


def test_who_answered_is_told_where_a_pool_did(tmp_path):
    class Pool(Rule):
        def _reply(self, request):
            return replace(super()._reply(request), sources=("small", "large"))

    step = Ask("answer", n=2, keep="list", sampling=WARM)
    made, _ = run(step, records("a"), tmp_path, teacher=Pool(lambda r: ["x", "y"]))
    assert made[0]["sources"] == ["small", "large"]
    assert made[0].lineage[-1]["by"] == "small"


def test_several_records_in_one_request(tmp_path):
    text = "{% for record in records %}{{ record.prompt }};{% endfor %}"
    rows = records(*"abcde")
    step = Ask(file(tmp_path, text), arity=2)
    made, work = run(step, rows, tmp_path, teacher=Rule(lambda r: last(r).upper()))
    assert [r["answer"] for r in made] == ["A;B;", "C;D;"]
    assert made[0].id == "r0+r1/0" and made[0].lineage[-1]["from"] == ["r0", "r1"]
    assert work.tally.dropped == {"left over: not 2 records": 1}
    drawn = Ask(file(tmp_path, text), arity=3, group="drawn")
    (tmp_path / "drawn").mkdir()
    made, work = run(drawn, rows, tmp_path / "drawn", teacher=Rule(lambda r: last(r)))
    assert [r["answer"][0] for r in made] == list("abcde") and not work.fallen
    assert all(len(set(r["answer"].split(";"))) == 4 for r in made), "no record twice"
    assert len({r["answer"][2:] for r in made}) > 2, "partners differ"


def test_draws_join_the_record_and_depend_on_it_alone(tmp_path):
    step = Ask(file(tmp_path, "{{ tone }}: {{ prompt }}"), draw={"tone": ["dry", "warm", "loud"]})
    rows = records(*map(str, range(40)))
    made, _ = run(step, rows, tmp_path, teacher=Rule(last))
    tones = {r.id: r["tone"] for r in made}
    assert set(tones.values()) == {"dry", "warm", "loud"}
    assert all(r["answer"] == f"{r['tone']}: {r['prompt']}" for r in made)
    (tmp_path / "b").mkdir()
    some, _ = run(step, rows[20:], tmp_path / "b", teacher=Rule(last))
    assert {r.id: r["tone"] for r in some} == {r.id: tones[r.id] for r in rows[20:]}


def test_demonstrations_of_the_records_leave_out_the_one_asked_about(tmp_path):
    rows = [*records("red apple", "green apple", "blue sky", answer="SECRET")]
    generator = Rule(whole)
    step = Ask("answer", shots=Shots(2))
    made, _ = run(step, rows, tmp_path, teacher=generator)
    for record in made:
        assert record["answer"].count(record["prompt"]) == 1
        assert record["answer"].count("SECRET") == 2
    (tmp_path / "b").mkdir()
    similar = Ask("answer", shots=Shots(1, select="similar"))
    made, _ = run(similar, rows, tmp_path / "b", teacher=generator)
    assert made[0]["answer"].startswith("green apple") and made[1]["answer"].startswith("red apple")
    with pytest.raises(KDError, match=r"lower shots\.count"):
        run(Ask("answer", shots=Shots(3)), rows, tmp_path, teacher=generator)


def test_demonstrations_of_a_file_belong_to_the_settings(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text('{"prompt": "1+1", "answer": "2"}\n')
    step = Ask("answer", shots=Shots(1, str(path), "first"))
    made, _ = run(step, records("2+2"), tmp_path, teacher=Rule(whole))
    assert made[0]["answer"] == "1+1\n2\n2+2"
    before = step.digest()
    path.write_text('{"prompt": "1+1", "answer": "3"}\n')
    assert step.digest() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2, "sampling": COLD}, "above 0, or n to 1"),
        ({"n": 0}, "at least 1"),
        ({"attempts": 0}, "at least 1"),
        ({"arity": 0}, "arity"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, message):
    with pytest.raises(KDError, match=message):
        Ask("answer", **arguments)


def test_an_unknown_name_is_found_before_anything_is_asked(tmp_path):
    generator = Rule(lambda r: "x")
    rows = [*records("a", "b"), *records({"question": "c"})]
    rows[2] = type(rows[2])("r2", rows[2].values)
    with pytest.raises(KDError, match="'prompt' is undefined for record r2, which has question"):
        run(Ask("answer"), rows, tmp_path, teacher=generator)
    assert not generator.asked
