"""What a method's file makes of an experiment: the parts that its paper names, with its numbers."""

from __future__ import annotations

import pytest
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
STUDENT = ("FromStudent", {"n": 1, "sampling": {"temperature": 1.0, "top_p": 1.0}})
GROUP = ("FromStudent", {"n": 8})
EXPECTED = {
    "gkd": {
        "loss": ("JensenShannon", {"beta": 0.5}),
        "rollout": ("Mixed", {"student_fraction": 0.5, "student": ("FromStudent", {})}),
    },
    "imitkd": {
        "loss": ("ForwardKL", {}),
        "rollout": ("Mixed", {"student_fraction": ("Linear", {"start": 0.0, "end": 1.0})}),
    },
    "minillm": {
        "loss": ("Weighted", {"terms": {
            "single": {"loss": ("ReverseKL", {}), "weight": 1.0},
            "long": {"loss": ("PolicyGradient", {
                "advantage": ("TokenReturn", {
                    "discount": 1.0, "following": True, "per_word": "remaining",
                }),
                "surrogate": ("ImportanceWeighted", {"level": "token"}),
                "reward_kl": 1.0,
            }), "weight": 1.0},
        }}),
        "rollout": ("TeacherMixed", {"teacher_share": 0.2}),
    },
    "distillm": {
        "loss": ("SkewReverseKL", {"skew": 0.1}),
        "rollout": ("Mixed", {
            "student_fraction": ("OnValidation", {"start": 0.1, "by": 0.1, "margin": 0.1}),
            "student": ("Replay", {"capacity": 1000, "reuse": ("Linear", {"start": 0.0})}),
        }),
    },
    "distillm2": {
        "loss": ("ContrastiveSkew", {
            "skew": 0.1, "least": 0.01, "adaptive": True, "normalise": "sequence",
            "balance": ("Linear", {"start": 1.0, "end": 1.5, "until": 0.5}),
        }),
        "rollout": ("Beside", {"rollouts": [("FromTeacher", {}), ("FromStudent", {})]}),
    },
    "opd": {
        "loss": ("PolicyGradient", {
            "advantage": ("TokenReturn", {"discount": 0.0}), "reward_kl": 1.0,
        }),
        "rollout": STUDENT,
    },
    "on_policy_reverse_kl": {"loss": ("ReverseKL", {}), "rollout": STUDENT},
    "seqkd": {"loss": ("CrossEntropy", {})},
    "seqkd_online": {"loss": ("CrossEntropy", {}), "rollout": ("FromTeacher", {"n": 1})},
    "speculative_kd": {
        "loss": ("ForwardKL", {}), "rollout": ("Speculative", {"top": 25, "block": 16}),
    },
    "taid": {
        "loss": ("TAID", {"start": 0.4, "end": 1.0, "pace": 5e-4, "momentum": 0.99}),
    },
    "gkd_with_reward": {
        "loss": ("Weighted", {"terms": {
            "reward": {"loss": ("PolicyGradient", {"advantage": ("RLOO", {})}), "weight": 0.5},
            "divergence": {"loss": ("JensenShannon", {"beta": 0.5}), "weight": 0.5},
        }}),
        "rollout": GROUP,
        "reward": ("Grade", {}),
    },
    "grpo": {
        "loss": ("PolicyGradient", {
            "advantage": ("GRPO", {}), "surrogate": ("ClippedRatio", {"low": 0.2, "high": 0.2}),
            "normalise": "sequence", "kl": ("K3", {}), "kl_weight": 0.04,
        }),
        "rollout": GROUP,
        "reward": ("Grade", {}),
    },
    "rloo": {
        "loss": ("PolicyGradient", {
            "advantage": ("RLOO", {}), "surrogate": ("ClippedRatio", {"level": "product"}),
            "normalise": "sequence", "reward_kl": 0.05,
        }),
        "rollout": GROUP,
        "reward": ("Grade", {}),
    },
    "direct_rlaif": {
        "loss": ("PolicyGradient", {"advantage": ("RLOO", {})}),
        "rollout": GROUP,
        "reward": ("Judge", {}),
    },
}  # fmt: skip


def agree(found, told, where):
    """`told` names classes and some of their settings; the rest is free."""
    if isinstance(told, tuple):
        kind, settings = told
        named = found if isinstance(found, str) else found["class_path"]
        assert named.rsplit(".", 1)[-1] == kind, where
        for name, value in settings.items():
            agree(found["init_args"][name], value, f"{where}.{name}")
    elif isinstance(told, dict):
        for name, value in told.items():
            agree(found[name], value, f"{where}.{name}")
    elif isinstance(told, list):
        assert len(found) == len(told), where
        for i, (one, other) in enumerate(zip(found, told, strict=True)):
            agree(one, other, f"{where}[{i}]")
    else:
        assert found == told, where


@pytest.mark.parametrize("name", EXPECTED)
def test_the_file_names_the_papers_parts(name, capsys):
    files = [CONFIGS / "experiment/demo.yaml", CONFIGS / f"method/{name}.yaml"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(x for f in files for x in ("-c", str(f))), "--print_config"])
    assert stop.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    for part, told in EXPECTED[name].items():
        agree(model[part], told, part)
