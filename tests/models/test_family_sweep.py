"""Families of transformers as the sweep tries them: each works, or is refused in one line before the gradient pass."""

import pytest

from scripts.families.small import KINDS, build
from scripts.families.sweep import METHODS, TARGETS, alone, table, with_table

ALL = [(kind, family) for kind, (families, _) in KINDS.items() for family in families]


def test_families_that_are_refused_for_one_reason_stand_together():
    one = "refused: model 'model' (OneForCausalLM) cannot do it. Give another model."
    other = "refused: model 'model' (OtherForCausalLM) cannot do it. Give another mo"
    pairs = [f"{targets}/{method}" for targets in TARGETS for method in METHODS]
    results = {"causal/one": dict.fromkeys(pairs, one), "causal/other": dict.fromkeys(pairs, other)}
    assert "| refused: the model cannot do it | all | `causal/one`, `causal/other` |" in table(results).splitlines()


def test_the_table_counts_kinds_and_shows_what_does_not_work():
    results = {
        "causal/one": {"attention/gora": "works", "attention/lora": "works"},
        "causal/two": {"attention/gora": "refused: a | b", "attention/lora": "works"},
        "causal/three": {"all": "not built: sizes"},
        "encoder/four": {"attention/lora": "fault: KeyError"},
    }
    lines = table(results).splitlines()
    assert "| causal | 3 | 1 | 1 | 0 | 1 |" in lines
    assert "| encoder | 1 | 0 | 0 | 1 | 0 |" in lines
    assert "| refused: a \\| b | attention/gora | `causal/two` |" in lines
    assert "| not built: sizes | all | `causal/three` |" in lines
    assert "All four combinations work (causal): one." in lines
    begin, end = "<!-- families: written by scripts/families/sweep.py -->", "<!-- families: end -->"
    document = {"date": "2026-01-02", "versions": {"peft": "0.1"}, "families": results}
    page = with_table(f"before\n{begin}\nold\n{end}\nafter\n", document)
    assert "\n4 of " in page and " families were run, last on 2026-01-02, on a CPU, with peft 0.1." in page
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page


@pytest.mark.parametrize(("kind", "family"), [("causal", "deepseek_v3"), ("causal", "gemma3"), ("encoder", "roberta")])
def test_a_configuration_becomes_small(kind, family, tmp_path):
    assert build(kind, family, tmp_path) < 200_000
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), ALL)
def test_a_family_works_or_is_refused(kind, family):
    outcomes = alone(kind, family, 300).values()
    assert all(outcome.startswith(("works", "refused", "not built")) for outcome in outcomes), outcomes
