from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from kd_lightning.evaluation.measure import Measured, answer_positions, measure
from kd_lightning.types import IGNORE, Sampling
from tests.evaluation.pair import distiller, documents, instructions, mixture, ready

SHORT = Sampling(max_new_tokens=5)


def by_hand(module, data, split="validation"):
    """Means over all answer tokens from whole logits in float64, by another route."""
    kl, ce, agreement, tokens = 0.0, 0.0, 0.0, 0
    module.student.eval()
    for batch in data.val_dataloader():
        with torch.no_grad():
            ids, mask = batch.input_ids, batch.attention_mask
            s = module.student.transformer(input_ids=ids, attention_mask=mask).logits.double()
            t = module.teacher.model.transformer(input_ids=ids, attention_mask=mask).logits.double()
        log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
        for row in range(len(batch)):
            for place in range(batch.targets.shape[1]):
                target = int(batch.targets[row, place])
                if target == IGNORE:
                    continue
                p, q = log_t[row, place], log_s[row, place]
                kl += float((p.exp() * (p - q)).sum())
                ce -= float(q[target])
                agreement += float(p.argmax() == q.argmax())
                tokens += 1
    return {"kl": kl / tokens, "ce": ce / tokens, "agreement": agreement / tokens, "tokens": tokens}


def test_statistics_equal_a_direct_computation(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    module.student.train()
    found = measure(module.student, data, "validation", module.teacher, rows=0)
    expected = by_hand(module, data)
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-4), name
    assert found.answers == ()
    assert module.student.parameter_count == found.parameters
    module.student.train()
    measure(module.student, data, "validation", module.teacher, rows=0)
    assert module.student.training and all(m.training for m in module.student.modules())


def test_micro_batches_change_nothing(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    whole = measure(module.student, data, "validation", module.teacher, rows=0)
    split = measure(module.student, data, "validation", module.teacher, rows=0, micro_batch_rows=1)
    torch.testing.assert_close(whole.sums, split.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.positions, split.positions, rtol=1e-5, atol=1e-5)


def test_positions_and_rows_add_up_to_the_whole(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", module.teacher, sampling=SHORT)
    torch.testing.assert_close(found.positions.sum(0), found.sums.sum(0))
    table = found.by_position
    assert table["position"][0] == 1.0
    assert table["tokens"][0] == len(data.examples("validation"))  # each answer has a first token
    assert table["tokens"] == sorted(table["tokens"], reverse=True)
    kl = sum(k * n for k, n in zip(table["kl"], table["tokens"], strict=True))
    assert kl / sum(table["tokens"]) == pytest.approx(found.metrics["kl"])
    lengths = {e.id: n for e, n in zip(data.examples("validation"), counted(data), strict=True)}
    weighted = sum(a.kl * lengths[a.id] for a in found.answers) / sum(lengths.values())
    assert weighted == pytest.approx(found.metrics["kl"], rel=1e-5)


def counted(data):
    return [row.answered for row in data.encoded("validation")]


def test_answers_are_the_models_own_and_graded(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", module.teacher, rows=3, sampling=SHORT)
    examples = data.examples("validation")[:3]
    made = module.student.complete([data.prompt_ids(e) for e in examples], SHORT)
    assert [a.text for a in found.answers] == [c.text for c in made]
    assert [a.id for a in found.answers] == [e.id for e in examples]
    grades = [data.grade(e, c.text)["rouge_l"] for e, c in zip(examples, made, strict=True)]
    assert found.metrics["rouge_l"] == pytest.approx(sum(grades) / 3)
    assert next(iter(found.metrics)) == "rouge_l"  # the grade comes first


def test_a_teacher_alone_has_perplexity_and_no_kl(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    teacher = measure(module.teacher, data, "validation", rows=2, sampling=SHORT, name="teacher")
    student = measure(module.student, data, "validation", module.teacher, rows=0)
    assert "kl" not in teacher.metrics and "agreement" not in teacher.metrics
    assert teacher.metrics["ce"] == pytest.approx(student.metrics["teacher_ce"], rel=1e-5)
    assert len(teacher.answers) == 2 and teacher.answers[0].kl is None


def test_documents_have_no_answers(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), documents(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", module.teacher)
    assert found.answers == () and found.metrics["tokens"] > 0


def test_each_skill_of_a_mixture(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), mixture(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", module.teacher, rows=None, sampling=SHORT)
    assert set(found.by_skill) == {"left", "right"}
    tokens = sum(table["tokens"] for table in found.by_skill.values())
    assert tokens == found.metrics["tokens"]
    for skill, table in found.by_skill.items():
        own = [a.grades["rouge_l"] for a in found.answers if a.skill == skill]
        assert table["rouge_l"] == pytest.approx(sum(own) / len(own))


def test_without_a_teacher(tmp_path, tiny_teacher):
    module, data = distiller(None, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", rows=1, sampling=SHORT)
    assert "kl" not in found.metrics and found.metrics["perplexity"] > 1
    assert "kl" not in found.by_position


def test_state_and_back(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    found = measure(module.student, data, "validation", module.teacher, rows=2, sampling=SHORT)
    torch.save(found.state, tmp_path / "state.pt")
    back = Measured.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert back.metrics == found.metrics and back.answers == found.answers


def test_positions_begin_again_at_each_turn():
    targets = torch.tensor([[IGNORE, 5, 6, IGNORE, IGNORE, 7, 8, 9], [4, 4, IGNORE, 4, 4, 4, 4, 4]])
    found = answer_positions(targets)
    assert found[targets != IGNORE].tolist() == [0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4]


def test_two_ranks_find_the_same_as_one(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    alone = measure(module.student, data, "validation", module.teacher, rows=5, sampling=SHORT)
    mp.spawn(_rank, (str(tmp_path), tiny_teacher), nprocs=2)
    for rank in range(2):
        state = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        together = Measured.from_state(state)
        torch.testing.assert_close(together.sums, alone.sums, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.positions, alone.positions, rtol=1e-5, atol=1e-5)
        assert [a.id for a in together.answers] == [a.id for a in alone.answers]
        assert [a.text for a in together.answers] == [a.text for a in alone.answers]
        for a, b in zip(together.answers, alone.answers, strict=True):
            assert a.kl == pytest.approx(b.kl, rel=1e-5)


def _rank(rank: int, folder: str, teacher: str) -> None:
    from pathlib import Path
    from types import SimpleNamespace

    import torch.distributed as dist

    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=2)
    module, data = distiller(teacher, teacher), instructions(path)
    ready(module, data)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
    found = measure(module.student, data, "validation", module.teacher, rows=5, sampling=SHORT)
    torch.save(found.state, path / f"rank-{rank}.pt")
    dist.destroy_process_group()
