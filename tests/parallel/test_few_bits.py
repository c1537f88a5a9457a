"""Quantised teachers and QLoRA students: two processes do what one does, or refuse it by name."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.parallel import few_bits
from tests.parallel.conftest import launch

HALF = few_bits.HALF
pytestmark = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def assert_equal(found, folder, cases):
    """To one process with the same micro-batches, in float32."""
    with few_bits.float32():
        alone = {case: few_bits.run(folder, case, "auto") for case in cases}
    assert len({tuple(told["losses"]) for told in alone.values()}) == len(cases)  # bits matter
    for case in cases:
        for how in ("fsdp", "ddp"):
            told = found[f"{case}-{how}"]
            if how == "fsdp" and case.startswith("lora_int8"):
                assert (
                    "--model.student.quantization=nf4, or --trainer.strategy=ddp" in told["refused"]
                )
                continue
            expected = alone[case]
            assert told["losses"] == pytest.approx(expected["losses"], abs=1e-6, rel=0), (case, how)
            assert told["frozen"] == expected["frozen"] and told["whole"] == expected["whole"]
            assert (told["frozen"] > 0) == (few_bits.CASES[case][0] != "none")


def test_two_processes_are_one(together, models):
    assert_equal(together["few_bits"], models, few_bits.FAST)


@pytest.fixture(scope="module")
def further(models):
    few_bits.wide(models)
    return launch(2, models, "few_bits_every", "few_bits_further")


@pytest.mark.slow
def test_every_pair_of_bits(further, models):
    assert_equal(further["few_bits_every"], models, tuple(few_bits.CASES))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fsdp", "ddp"])
def test_a_cut_run_goes_on_bit_for_bit(further, how):
    found = further["few_bits_further"]
    assert found[f"second-{how}"]["losses"] == found[f"whole-{how}"]["losses"][HALF:]


@pytest.mark.slow
def test_in_bfloat16_they_are_apart_by_its_rounding(further, models):
    """4-bit weights multiply in bfloat16 by default: float32's last place may turn a rounding."""
    found = further["few_bits_further"]["bfloat16"]["losses"]
    alone = few_bits.run(models, "qlora", "auto")["losses"]
    print(max(abs(a - b) for a, b in zip(found, alone, strict=True)))
    assert found[:HALF] == pytest.approx(alone[:HALF], abs=1e-6, rel=0)
    assert found == pytest.approx(alone, abs=5e-3, rel=0)
