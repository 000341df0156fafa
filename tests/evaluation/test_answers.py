"""How answers are read and scored: independent of any model."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
from sklearn import metrics as sk

from gora.data.sources import read_rows
from gora.evaluation.tasks.gsm8k import final_number, is_marked
from gora.evaluation.tasks.metrics import accuracy, f1, matthews
from gora.recipe.schema import SourceSection

GSM8K = Path(__file__).parents[1] / "fixtures" / "gsm8k" / "test.jsonl.gz"


def test_the_gold_answers_of_all_test_rows_are_read_right():
    rows = read_rows(SourceSection(path=str(GSM8K)), ("test",)).rows
    assert len(rows) == 1319
    for row in rows:
        gold = Fraction(row["answer"].rsplit("####", 1)[1].strip().replace(",", ""))
        assert final_number(row["answer"]) == gold
        assert is_marked(row["answer"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 42", "42"),
        ("####42", "42"),
        ("16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18", "18"),
        ("#### 5\n\nQuestion: And 6?\nAnswer: #### 7", "5"),
        ("The answer is: 1,234.50", "1234.5"),
        ("The answer is: 1,234,567.", "1234567"),
        ("The answer is $18.00.", "18"),
        ("The answer is: -$5", "-5"),
        ("The answer is: $-20", "-20"),
        ("The answer is \u22127 degrees", "-7"),
        ("The answer is 7-3 = 4", "4"),
        ("7-3", "3"),
        ("The answer is 12 km.", "12"),
        ("The answer is **12** apples", "12"),
        ("The answer is: 10%", "10"),
        ("The answer is 3/4 of a cake", "3/4"),
        ("The answer is \\frac{3}{4}", "3/4"),
        ("so $\\boxed{42}$ it is, of 50", "42"),
        ("The answer is 3.", "3"),
        ("The answer is .5", "1/2"),
        ("The answer is:\n42", "42"),
        ("the answer is 5 on Monday. In all the answer is 12", "12"),
        ("Final answer: 8 boxes of 6", "8"),
        ("He has 3 apples and buys 4, so 7", "7"),
        ("5 x 3 = 15 and that is the answer", "15"),
        ("The answer is (5)", "5"),
        ("I do not know.", None),
        ("", None),
        ("The answer is unknown", None),
        ("1/0", "1"),
    ],
)
def test_an_awkward_answer_is_read_as_a_person_would(text, expected):
    assert final_number(text) == (None if expected is None else Fraction(expected))


LABELS = [
    ([0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]),
    ([1, 1, 1, 1], [1, 0, 1, 1]),
    ([0, 0, 0, 0], [1, 0, 1, 1]),
    ([0, 0], [0, 0]),
    ([2, 1, 0, 2, 1, 1, 0], [2, 1, 1, 0, 1, 2, 0]),
]


@pytest.mark.parametrize(("predicted", "gold"), LABELS)
def test_metrics_agree_with_scikit_learn(predicted, gold):
    assert accuracy(predicted, gold) == pytest.approx(sk.accuracy_score(gold, predicted))
    assert matthews(predicted, gold) == pytest.approx(sk.matthews_corrcoef(gold, predicted), abs=1e-12)
    if max(*predicted, *gold) < 2:
        assert f1(predicted, gold) == pytest.approx(sk.f1_score(gold, predicted, zero_division=0))


def test_an_answer_that_is_no_label_counts_as_wrong_everywhere():
    predicted, gold = [0, None, 1, None, 1, 0], [0, 1, 1, 0, 0, 0]
    # To scikit-learn, no label is a class of its own.
    as_class = [2 if label is None else label for label in predicted]
    assert accuracy(predicted, gold) == pytest.approx(sk.accuracy_score(gold, as_class))
    assert matthews(predicted, gold) == pytest.approx(sk.matthews_corrcoef(gold, as_class))
    positive = [int(label == 1) for label in as_class]
    assert f1(predicted, gold) == pytest.approx(sk.f1_score(gold, positive))
    assert not math.isnan(matthews([None, None], [0, 1]))
