"""Answers with rewards: their shapes, their groups, and how groups travel."""

import math

import pytest
import torch

from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.skills import DemoPreference, Preference
from kd_lightning.errors import KDError
from tests.data.kit import CHATML, Echo, byte_tokenizer, learned, numbers, write


def made(tmp_path, rows, **settings):
    path = write(tmp_path / "rows.jsonl", rows)
    data = Preference(path, validation=path, shuffle=False, **settings)
    data.tokenizer = byte_tokenizer(CHATML)
    return data


def texts(data, split="train"):
    """What is learned of each row, with its reward."""
    known = data.tokenizer
    return [
        ("".join(learned(known, row)).removesuffix("<|im_end|>"), row.reward)
        for row in data.encoded(split)
    ]


USER = {"role": "user", "content": "q"}
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant: "
PAIRS = {
    "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "conversations": {
        "prompt": "q",
        "chosen": [USER, {"role": "assistant", "content": "good"}],
        "rejected": [USER, {"role": "assistant", "content": "bad"}],
    },
    "turns": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "transcripts": {"chosen": HH + "good", "rejected": HH + "bad"},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_pairs(tmp_path, row):
    data = made(tmp_path, [row])
    assert texts(data) == [("good", 1.0), ("bad", 0.0)]
    assert data.examples("train")[0].answer == "good"


def test_only_the_last_answer_is_learned(tmp_path):
    data = made(tmp_path, [PAIRS["transcripts"]])
    [example] = data.examples("train")
    assert [m.content for m in example.messages] == ["hi", "hello", "q", "good"]
    assert texts(data)[0][0] == "good"


def test_scores_of_pairs_and_lists(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 3.5},
        {"prompt": "q", "candidates": ["a", "b", "c"], "scores": [1, 4, None]},
        {
            "instruction": "q",
            "completions": [
                {"response": "a", "overall_score": 2},
                {"response": "b", "overall_score": 1},
            ],
        },
    ]
    data = made(tmp_path, rows)
    values = [("a", 8), ("b", 3.5), ("a", 1), ("b", 4), ("a", 2), ("b", 1)]
    assert texts(data) == values
    assert [e.answer for e in data.examples("train")] == ["a", "b", "a"]


def test_answers_in_columns_and_single_ones(tmp_path):
    row = {"question": "q", "big": {"text": "a", "ok": True}, "small": {"text": "b", "ok": False}}
    settings = {"answers_from": ["big.text", "small.text"], "scores_from": ["big.ok", "small.ok"]}
    assert texts(made(tmp_path, [row], **settings)) == [("a", 1.0), ("b", 0.0)]
    single = [
        {"prompt": "q", "answer": "a", "label": True},
        {"prompt": "q", "completion": "b", "score": -2},
    ]
    data = made(tmp_path, single)
    assert texts(data) == [("a", 1.0), ("b", -2.0)]
    assert data.grade(data.examples("train")[1], "b") == {}  # nothing says what is good


FAULTS = [
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the same text"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "must be a text"),
    ({"chosen": "a", "rejected": "b"}, "without a prompt"),
    ({"chosen": HH + "a", "rejected": HH.replace("hi", "ho") + "b"}, "the same prompt"),
    ({"prompt": "q", "candidates": ["a"], "scores": [1]}, "two or more answers"),
    ({"prompt": "q", "candidates": ["a", "b"], "scores": [1]}, "one number for each"),
    ({"prompt": "q", "candidates": ["a", "b"], "scores": [1, "x"]}, "a score must be a number"),
    ({"prompt": "q", "answer": "a"}, "no 'label'"),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 1},
        "a tie is no pair",
    ),
    (
        {"prompt": [USER, {"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"},
        "ends with the assistant's turn",
    ),
]


@pytest.mark.parametrize(("row", "told"), FAULTS)
def test_rows_that_say_nothing_are_refused(tmp_path, row, told):
    with pytest.raises(KDError, match=told):
        made(tmp_path, [row]).encoded("train")


def test_settings_that_cannot_work():
    with pytest.raises(KDError, match="equally many"):
        Preference("x", answers_from=["a"])
    with pytest.raises(KDError, match="at least 2"):
        Preference("x", unpaired=1)
    with pytest.raises(KDError, match="streaming=false"):
        Preference("x", streaming=True, limit_train=2, validation="y")


def lists(count, answers=3):
    return [
        {
            "prompt": f"question {i}",
            "candidates": [f"answer {i} {k}" + "!" * k for k in range(answers)],
            "scores": [(i + k) % answers for k in range(answers)],
        }
        for i in range(count)
    ]


def test_a_batch_counts_prompts_and_keeps_their_answers_together(tmp_path):
    data = made(tmp_path, lists(5), batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(b) for b in batches] == [6, 6, 3]
    assert batches[0].group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batches[1].reward.tolist() == [2, 0, 1, 0, 1, 2]
    assert [len(set(b.ids)) for b in batches] == [2, 2, 1]
    for micro in batches[0].split(rows=4):
        assert len(micro) == 3 and len(set(micro.group.tolist())) == 1


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_tokens": 300}])
def test_ranks_share_prompts_not_answers(tmp_path, settings):
    rows = lists(5)
    seen = []
    for rank in range(2):
        data = made(tmp_path, rows, **settings)
        data._ranks = lambda rank=rank: (rank, 2)
        seen.append(list(data.train_dataloader()))
    assert len(seen[0]) == len(seen[1])
    names = []
    for batch in (b for each in seen for b in each):
        real = [i for i in batch.ids if i]
        assert all(real.count(name) == 3 for name in real)
        assert batch.group is not None and len(batch.reward) == len(batch)  # fillers alone as well
        assert batch.reward[len(real) :].isnan().all()
        assert len(set(batch.group[len(real) :].tolist())) == len(batch) - len(real)
        names += sorted(set(real))
    assert sorted(names) == sorted(row.example.id for row in data.encoded("train"))[::3]


def test_a_group_is_left_out_as_a_whole(tmp_path):
    rows = [*lists(3), {"prompt": "q", "chosen": "x" * 300, "rejected": "y"}]
    data = made(tmp_path, rows, max_length=120, truncation="drop")
    assert len(data.encoded("train")) == 9
    dropped = data.summary["train"].dropped
    assert dropped == {"longer than 120 tokens": 1, "another answer to its prompt was left out": 1}


def test_other_rewards_are_other_data(tmp_path):
    def state(rows):
        data = made(tmp_path, rows)
        data.setup("fit")
        return data.state_dict()["digest"]

    rows = lists(2)
    first = state(rows)
    assert state(lists(2)) == first
    rows[0]["scores"] = [0, 2, 1]
    assert state(rows) != first


def test_resume_goes_on_at_the_next_prompt(tmp_path):
    data = made(tmp_path, lists(7), batch_size=2)
    data.shuffle = True
    loader = data.train_dataloader()
    whole = [b.ids for _ in range(2) for b in loader]
    begun = made(tmp_path, lists(7), batch_size=2)
    begun.shuffle = True
    first = iter(begun.train_dataloader())
    next(first), next(first)
    state = begun.state_dict()
    other = made(tmp_path, lists(7), batch_size=2)
    other.shuffle = True
    other.setup("fit")
    other.load_state_dict(state)
    rest = other.train_dataloader()
    assert [b.ids for _ in range(2) for b in rest] == whole[2:]


def test_unpaired_answers_share_a_reference_point(tmp_path):
    data = made(tmp_path, [{**PAIRS["texts"], "prompt": f"q{i}"} for i in range(3)], unpaired=4)
    batch = next(iter(data.train_dataloader()))
    groups = batch.group.tolist()
    judged = ~batch.reward.isnan()
    assert sorted(batch.reward[judged].tolist()) == [0, 0, 0, 1, 1, 1]
    assert groups == sorted(groups) and len(set(groups)) == 2
    for row in data.encoded("train"):
        if math.isnan(row.reward):
            said = "".join(learned(data.tokenizer, row)).removesuffix("<|im_end|>")
            assert said in ("good", "bad")
    others = [r for r in data.encoded("train") if math.isnan(r.reward)]
    assert len(others) == 6


def test_an_answer_is_mismatched_with_another_prompt(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": f"a{i}", "label": i % 2} for i in range(6)]
    data = made(tmp_path, rows, unpaired=3)
    for row in data.encoded("train"):
        text = data.tokenizer.decode(row.ids)
        prompt, answer = text[text.index("q") + 1 :][0], text[text.rindex("a") + 1]
        assert (prompt != answer) == math.isnan(row.reward)


def test_graded_by_the_best_and_the_worst(tmp_path):
    data = made(tmp_path, [{"prompt": "q", "chosen": "red cat", "rejected": "blue dog"}])
    [example] = data.examples("train")
    assert data.grade(example, "red cat") == {"rouge_l": 1.0, "nearer_the_best": 1.0}
    assert data.grade(example, "a blue dog")["nearer_the_best"] == 0.0


def test_a_mixture_keeps_groups_and_single_rows(tmp_path):
    pairs = Preference(write(tmp_path / "p.jsonl", lists(4)))
    plain = Echo(numbers(tmp_path / "n.jsonl", 4))
    for part in (pairs, plain):
        part.splits.paths["validation"] = part.splits.paths["train"]
    mixed = Mixture({"pairs": Part(pairs), "plain": Part(plain)}, batch_size=4, epoch_rows=8)
    mixed.tokenizer = byte_tokenizer(CHATML)
    for batch in mixed.train_dataloader():
        judged = ~batch.reward.isnan()
        assert judged.sum() == 6 and (batch.skill[judged] == 0).all()
        assert len(batch) == 8 and len(set(batch.group.tolist())) == 4


def test_rows_without_rewards_have_none(tmp_path):
    data = Echo(numbers(tmp_path / "n.jsonl", 4), validation=numbers(tmp_path / "v.jsonl", 2))
    data.tokenizer = byte_tokenizer(CHATML)
    batch = next(iter(data.train_dataloader()))
    assert batch.group is None and batch.reward is None


def test_the_demo_as_preferences():
    data = DemoPreference(train_rows=50, validation_rows=20, test_rows=20)
    data.tokenizer = byte_tokenizer(CHATML)
    for split in ("train", "validation", "test"):
        for example in data.examples(split):
            right, slip = example.meta["answers"]
            assert data.grade(example, right) == {"exact_match": 1.0}
            assert data.grade(example, slip) == {"exact_match": 0.0}
    shuffled = DemoPreference(train_rows=200, validation_rows=20, test_rows=20, shuffled=1.0)
    shuffled.tokenizer = data.tokenizer
    right = [e.meta["answers"][0] == e.meta["right"] for e in shuffled.examples("train")]
    assert 0.35 < sum(right) / len(right) < 0.65


SHAPES = {
    "preference/hh_harmless.train.jsonl": {},
    "preference/dpo_en_demo.train.jsonl": {},
    "thinking_cot/gsm8k_model_solutions.train.jsonl": {
        "answers_from": ["6b_finetuning.solution", "175b_verification.solution"],
        "scores_from": ["6b_finetuning.is_correct", "175b_verification.is_correct"],
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_real_files(shared, name):
    found = sorted((shared / "data").rglob(name.rpartition("/")[2]))
    if not found:
        pytest.skip(f"{name} is not in the shared data")
    data = Preference(str(found[0]), limit_train=40, max_length=4000, truncation="drop",
                      bad_rows="skip", bad_share=0.2, **SHAPES[name])  # fmt: skip
    data.tokenizer = byte_tokenizer(CHATML)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 16 and torch.bincount(batch.group).tolist() == [2] * 8


def test_texts_apart(tmp_path):
    row = {"prompt": "q", "input": "more", "candidates": ["one", "two"], "scores": [0.5, 2]}
    data = made(tmp_path, [row, {**row, "prompt": "other"}], apart=True)
    rows = data.encoded("train")
    ids = [data.tokenizer.encode(text) for text in ("q\n\nmore", "one", "two")]
    assert [row.ids.tolist() for row in rows[:3]] == [
        [data.tokenizer.bos_token_id, *told, data.tokenizer.eos_token_id] for told in ids
    ]
    assert math.isnan(rows[0].reward) and [row.reward for row in rows[1:3]] == [0.5, 2.0]
    assert len({row.group for row in rows[:3]}) == 1 and rows[3].group != rows[0].group
    batch = next(iter(data.train_dataloader()))
    assert batch.input_ids[1].tolist()[:4] == [data.tokenizer.bos_token_id, *ids[1]]
    with pytest.raises(KDError, match="unpaired"):
        made(tmp_path, [row], apart=True, unpaired=4)
