"""Which rows are for training, validation and test."""

import datasets
import pytest

from kd_lightning.data.splits import Splits
from kd_lightning.errors import KDError
from tests.data import kit


def prompts(splits, split):
    return [row.values["prompt"] for row in splits.read(split)]


def make(train=None, share=0.1, seed=0, **paths):
    return Splits({"train": train, **paths}, share=share, seed=seed)


def test_a_share_is_held_back_by_the_seed(tmp_path):
    path = kit.numbers(tmp_path / "a.jsonl", 50)
    train, held = prompts(make(path), "train"), prompts(make(path), "validation")
    assert len(held) == 5
    assert not set(train) & set(held)
    assert len({*train, *held}) == 50
    assert prompts(make(path), "validation") == held
    assert prompts(make(path, seed=1), "validation") != held
    assert prompts(make(path), "test") == held


def test_a_small_file_holds_back_one_row(tmp_path):
    path = kit.numbers(tmp_path / "a.jsonl", 3)
    assert len(prompts(make(path), "validation")) == 1
    with pytest.raises(KDError, match="too few to hold some back"):
        make(kit.numbers(tmp_path / "b.jsonl", 1)).read("train")
    with pytest.raises(KDError, match="no validation rows"):
        make(path, share=0.0).read("validation")
    assert len(prompts(make(path, share=0.0), "train")) == 3


def test_own_files_keep_all_training_rows(tmp_path):
    a, b, c = (kit.numbers(tmp_path / f"{n}.jsonl", k) for n, k in [("a", 9), ("b", 2), ("c", 4)])
    splits = make(a, validation=b, test=c)
    assert [len(prompts(splits, s)) for s in ("train", "validation", "test")] == [9, 2, 4]


def test_test_alone_does_not_need_training_rows(tmp_path):
    splits = make(None, test=kit.numbers(tmp_path / "c.jsonl", 4))
    assert len(prompts(splits, "test")) == 4
    with pytest.raises(KDError, match=r"no train rows: set --data.path"):
        splits.read("train")


def test_a_folder_names_splits_in_its_files(tmp_path):
    kit.numbers(tmp_path / "x.train.jsonl", 6)
    kit.numbers(tmp_path / "y-train.jsonl", 5)
    kit.numbers(tmp_path / "x.valid.jsonl", 2)
    splits = make(str(tmp_path))
    assert len(prompts(splits, "train")) == 11
    assert len(prompts(splits, "validation")) == len(prompts(splits, "test")) == 2


def test_a_folder_without_names_and_a_pattern(tmp_path):
    kit.numbers(tmp_path / "p0.jsonl", 6)
    kit.numbers(tmp_path / "p1.jsonl", 5)
    assert len(prompts(make(str(tmp_path), share=0.0), "train")) == 11
    assert len(prompts(make(str(tmp_path / "p*.jsonl"), share=0.0), "train")) == 11


def test_data_sets_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": str(i)} for i in range(10)])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "dev": rows.select(range(3))}).save_to_disk(
        tmp_path / "two"
    )
    assert len(prompts(make(str(tmp_path / "one")), "train")) == 9
    both = make(str(tmp_path / "two"))
    assert [len(prompts(both, s)) for s in ("train", "validation")] == [10, 3]
    with pytest.raises(KDError, match=r"two has no test rows \(only train, validation\)"):
        make(str(tmp_path / "two"), test=str(tmp_path / "two")).read("test")


@pytest.mark.parametrize("path", ["no.jsonl", "no/such/deep/folder", "no*.jsonl"])
def test_what_does_not_exist(path):
    with pytest.raises(KDError, match=r"does not exist|no file matches"):
        list(make(path, share=0.0).read("train"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(KDError, match="has no data file"):
        make(str(tmp_path)).read("train")


def test_a_hub_out_of_reach():
    with pytest.raises(KDError, match=r"nobody/nothing is no file.*the hub does not give it"):
        list(make("nobody/nothing").read("train"))


def test_an_unknown_split():
    with pytest.raises(KDError, match="eval is no split: use train, validation, test"):
        make("a.jsonl", eval="b.jsonl")
