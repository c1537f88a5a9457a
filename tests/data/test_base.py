"""What every data module does."""

import pytest

from kd_lightning.data.skills import InstructionFollowing, PlainText
from kd_lightning.errors import KDError
from kd_lightning.types import IGNORE
from tests.data import kit


def ready(module, tokenizer=None):
    module.tokenizer = tokenizer or kit.byte_tokenizer()
    return module


def test_a_users_file_needs_no_python(tmp_path):
    rows = [{"q": f"{i}?", "a": {"text": f"{i}!"}} for i in range(20)]
    data = ready(
        InstructionFollowing(
            kit.write(tmp_path / "my.jsonl", rows), columns={"prompt": "q", "answer": "a.text"}
        )
    )
    data.setup("fit")
    assert len(data.examples("train")) == 19
    assert len(data.examples("validation")) == 1
    example = data.examples("train")[0]
    assert example.id == "my.jsonl:1"
    assert (example.messages[0].content, example.answer) == ("0?", "0!")
    assert example.skill == "instruction_following"
    assert data.skills == ("instruction_following",)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 8
    assert (batch.targets != IGNORE).any(1).all()


def test_an_unknown_column_name_of_ours(tmp_path):
    with pytest.raises(KDError, match=r"qestion is no field .*use answer, id, input, messages"):
        InstructionFollowing("my.jsonl", columns={"qestion": "q"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"validation_share": 1.0}, "validation_share"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(KDError, match=message):
        kit.Echo("a.jsonl", **settings)


def test_a_row_without_the_field_is_named(tmp_path):
    path = kit.write(tmp_path / "my.jsonl", [{"prompt": "a", "answer": "b"}, {"text": "c"}])
    data = ready(InstructionFollowing(path, validation_share=0.0))
    with pytest.raises(KDError, match=r"my\.jsonl:2: .*'prompt'.*its columns: 'text'"):
        data.encoded("train")


def test_no_data_no_tokenizer_no_split(tmp_path):
    with pytest.raises(KDError, match=r"set --data.path"):
        ready(kit.Echo()).encoded("train")
    path = kit.numbers(tmp_path / "a.jsonl", 9)
    with pytest.raises(KDError, match=r"set --data.tokenizer"):
        kit.Echo(path).encoded("train")
    with pytest.raises(KDError, match="nowhere is no tokenizer folder"):
        kit.Echo(path, tokenizer=str(tmp_path / "nowhere")).encoded("train")
    with pytest.raises(KDError, match="dev is no split"):
        ready(kit.Echo(path)).examples("dev")


def test_the_length_limit(tmp_path):
    path = kit.write(
        tmp_path / "a.jsonl",
        [{"prompt": "p" * 10, "answer": "a" * n} for n in (1, 5, 30)] + [{"prompt": "p" * 90}],
    )
    with pytest.raises(KDError, match=r"row a\.jsonl:3 has .*--data.truncation=drop"):
        ready(kit.Echo(path, max_length=60, validation_share=0.0)).encoded("train")
    cut = ready(kit.Echo(path, max_length=60, truncation="right", validation_share=0.0))
    assert len(cut.encoded("train")) == 3
    assert cut.summary["train"].truncated == 1
    assert cut.summary["train"].dropped == {"answer cut off by the length limit": 1}
    with pytest.raises(KDError, match=r"no row of train is left \(4 longer than 8 tokens\)"):
        ready(kit.Echo(path, max_length=8, truncation="drop", validation_share=0.0)).setup()


def test_summary_counts(tmp_path, capsys):
    path = kit.numbers(tmp_path / "a.jsonl", 10)
    data = ready(kit.Echo(path, validation=path))
    data.setup("fit")
    data.setup("fit")
    rows = data.encoded("train")
    summary = data.summary["train"]
    assert summary.rows == len(rows) == 10
    assert summary.tokens == sum(len(row) for row in rows)
    assert summary.answered == pytest.approx(20 / summary.tokens)  # a digit and an end each
    assert summary.longest == max(len(row) for row in rows)
    shown = capsys.readouterr().out
    assert shown.count("train") == 1  # not again at the second call
    assert f"{summary.tokens:,}" in shown


def test_system_prompt_limits_and_splits(tmp_path):
    path = kit.numbers(tmp_path / "a.jsonl", 10)
    data = ready(kit.Echo(path, validation=path, system="be brief", limit_train=4))
    data.setup("fit")
    assert set(data.summary) == {"train", "validation"}
    assert [m.role for m in data.examples("train")[0].messages] == ["system", "user", "assistant"]
    assert len(data.encoded("train")) == 4
    assert len(data.encoded("validation")) == 10
    assert "be brief" in data.tokenizer.decode(data.prompt_ids(data.examples("train")[0]))


def test_a_rows_own_system_prompt_comes_before_the_configured_one(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    begun = [{"role": "system", "content": "turn"}, turns[0]]
    rows = [
        {"system": "own", "prompt": "q", "answer": "a"},
        {"system_prompt": "own", "question": "q", "response": "a"},  # OpenOrca
        {"system": "", "prompt": "q", "answer": "a"},
        {"system": "own", "conversations": turns},
        {"system": "own", "messages": begun, "answer": "a"},  # answered as a conversation
    ]
    path = kit.write(tmp_path / "my.jsonl", rows)

    def read(**settings):
        data = ready(InstructionFollowing(path, validation_share=0.0, test=path, **settings))
        for split in ("train", "test"):
            for example in data.examples(split):
                *head, user, assistant = example.messages
                assert (user.content, assistant.content) == ("q", "a")
                yield head[0].content if head else "none"

    assert list(read()) == ["own", "own", "none", "own", "turn"] * 2
    assert list(read(system="all")) == ["own", "own", "all", "own", "turn"] * 2
    mapped = ["all", "all", "all", "all", "turn"] * 2
    assert list(read(system="all", columns={"system": "nowhere"})) == mapped


def test_plain_rows_of_a_class_of_its_own(tmp_path):
    class Made(kit.Echo):
        def rows(self, split):
            return [{"prompt": f"{split} {i}"} for i in range(3)] + [{"no": 1}] * (split == "test")

    data = ready(Made())
    data.setup("fit")
    assert [e.id for e in data.examples("train")] == ["train:0", "train:1", "train:2"]
    with pytest.raises(KDError, match=r"Made, test row 3: .*no 'prompt' or 'question'"):
        data.setup("test")


def test_evaluation_reads_every_row_once_in_order(tmp_path):
    path = kit.numbers(tmp_path / "a.jsonl", 10)
    data = ready(kit.Echo(path, validation=path, eval_batch_size=4))
    for _ in range(2):
        names = [name for batch in data.val_dataloader() for name in batch.ids]
        assert names == [f"a.jsonl:{i}" for i in range(1, 11)]
    assert [b.ids for b in data.predict_dataloader()] == [b.ids for b in data.test_dataloader()]


class TestPlainText:
    def make(self, tmp_path, rows, **settings):
        path = kit.write(tmp_path / "t.jsonl", rows)
        return ready(PlainText(path, validation_share=0.0, **settings))

    def test_all_tokens_and_the_end(self, tmp_path):
        data = self.make(tmp_path, [{"text": "ab"}, {"text": "cd", "complete": False}])
        whole, cut = data.encoded("train")
        assert data.tokenizer.decode(whole.ids) == "<s>ab</s>"
        assert data.tokenizer.decode(cut.ids) == "<s>cd"
        assert whole.answered == len(whole) - 1
        assert data.grade(whole.example, "x") == {}

    def test_ends(self, tmp_path):
        for end, text in [("bos", "<s>ab<s>"), ("none", "<s>ab")]:
            data = self.make(tmp_path, [{"text": "ab"}], end=end)
            assert data.tokenizer.decode(data.encoded("train")[0].ids) == text

    def test_control_tokens_in_the_text_stay_text(self, tmp_path):
        data = self.make(tmp_path, [{"text": "a</s><|im_end|>b"}])
        ids = data.encoded("train")[0].ids.tolist()
        assert ids.count(data.tokenizer.eos_token_id) == 1
        assert data.tokenizer.decode(ids) == "<s>a</s><|im_end|>b</s>"

    def test_long_texts_become_windows_of_one_example(self, tmp_path):
        data = self.make(tmp_path, [{"text": "abcdefgh"}], max_length=4)
        assert [data.tokenizer.decode(r.ids) for r in data.encoded("train")] == [
            "<s>abc",
            "cdef",
            "fgh</s>",
        ]
        assert len(data.examples("train")) == 1
        dropped = self.make(
            tmp_path,
            [{"text": "abcdefgh"}, {"text": "a"}],
            max_length=4,
            long="policy",
            truncation="drop",
        )
        assert len(dropped.encoded("train")) == 1

    def test_a_prompt_is_the_beginning(self, tmp_path):
        data = self.make(tmp_path, [{"text": "abcdefgh"}], prompt_tokens=3)
        assert data.tokenizer.decode(data.prompt_ids(data.examples("train")[0])) == "<s>abc"


def test_streaming_serves_the_file_in_epochs(tmp_path):
    path, held = kit.numbers(tmp_path / "a.jsonl", 10), kit.numbers(tmp_path / "b.jsonl", 2)
    data = ready(
        kit.Echo(path, validation=held, streaming=True, limit_train=6, batch_size=4, shuffle=False)
    )
    data.setup("fit")
    assert "train" not in data.summary
    loader = data.train_dataloader()
    assert len(loader) == 2
    epochs = [[name.split(":")[1] for batch in loader for name in batch.ids] for _ in range(3)]
    assert epochs == [list("123456"), [*"789", "10", *"12"], list("345678")]


def test_streaming_puts_fillers_for_rows_left_out(tmp_path):
    path = kit.write(tmp_path / "a.jsonl", [{"prompt": "p" * n} for n in (1, 99, 1, 1)])
    held = kit.numbers(tmp_path / "b.jsonl", 2)
    data = ready(
        kit.Echo(
            path,
            validation=held,
            streaming=True,
            limit_train=4,
            batch_size=4,
            shuffle=False,
            truncation="drop",
            max_length=60,
        )
    )
    (batch,) = list(data.train_dataloader())
    assert batch.ids == ("a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "")
    assert batch.weights[3].sum() == 0


def test_streaming_needs_an_epoch_and_validation_rows(tmp_path):
    path = kit.numbers(tmp_path / "a.jsonl", 10)
    with pytest.raises(KDError, match=r"streaming needs --data.limit_train"):
        ready(kit.Echo(path, validation=path, streaming=True)).train_dataloader()
    with pytest.raises(KDError, match="streaming cannot hold rows back"):
        ready(kit.Echo(path, streaming=True, limit_train=4)).setup("fit")


def test_the_students_tokenizer_is_followed_and_a_set_one_is_not(tmp_path):
    class Module:
        tokenizer = kit.byte_tokenizer()

    class Trainer:
        lightning_module = Module()
        global_rank, world_size = 1, 2

    path = kit.numbers(tmp_path / "a.jsonl", 10)
    data = kit.Echo(path, validation=path)
    data.trainer = Trainer()
    data.setup("validate")
    assert data.tokenizer is Module.tokenizer
    Trainer.lightning_module.tokenizer = kit.spaced_tokenizer()
    before = data.encoded("validation")[0].ids.tolist()
    data.setup("validate")
    assert data.encoded("validation")[0].ids.tolist() != before
    own = ready(kit.Echo(path, validation=path))
    own.trainer = Trainer()
    chosen = own.tokenizer
    own.setup("validate")
    assert own.tokenizer is chosen
    assert own._sampler(None, 10, 4).rank == 1
    assert own._sampler(None, 10, 4).span == 8
