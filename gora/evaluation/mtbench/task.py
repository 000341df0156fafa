"""The task: ask, have the answers judged where an endpoint is named, and make scores of the ratings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from gora.errors import InputError
from gora.evaluation.mtbench.answers import Answers, answers_to
from gora.evaluation.mtbench.endpoint import Endpoint
from gora.evaluation.mtbench.judge import MAX_TOKENS, TEMPERATURE, Verdicts, judge, requests_for
from gora.evaluation.mtbench.judgments import Journal
from gora.evaluation.mtbench.prompts import Prompts, read_prompts
from gora.evaluation.mtbench.questions import PUBLISHED, Conversation, read_conversations, require_references
from gora.evaluation.task import JudgeSettings, Options, Scores, Subject
from gora.runtime.console import output


class MTBench:
    """Two-turn questions of eight categories; a judge rates each answer from 1 to 10 by itself.

    Zheng et al., arXiv 2306.05685: single-answer grading. Without a judge, the answers alone are written.
    """

    name: ClassVar[str] = "mtbench"

    def check(self, options: Options) -> None:
        """Refuse questions, judge settings and prompts that cannot be used; nothing is sent. Raises InputError."""
        if options.samples != 1:
            raise InputError(f"mtbench asks for one answer to each question, not {options.samples}.")
        questions = read_conversations(options.data, options.limit)
        if options.judge is not None:
            require_references(questions, options.data)
            read_prompts(options.judge.prompts)
            Endpoint(options.judge)

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask both turns of every question, and the judge about the answers; raises InputError.

        Metrics are `score`, the mean of all ratings, then `turn_1`, `turn_2`, a mean for each category, and how many
        answers are `judged` and `unjudged`; ratings run from 1 to 10. Without a judge there are none.
        """
        self.check(options)
        questions = read_conversations(options.data, options.limit)
        if not subject.converses:
            output.warn("this model was trained on no form for instructions; MT-Bench takes one for granted")
        answers = answers_to(questions, subject, options)
        if options.judge is None:
            output.say(_how_to_judge(answers))
            return Scores({}, _rows(questions, answers, None), _facts(options, answers))
        prompts = read_prompts(options.judge.prompts)
        journal = Journal(options.folder / "judgments.jsonl")
        requests = requests_for(questions, answers.turns, prompts, options.judge, options.model_name)
        verdicts = judge(requests, journal, options.judge)
        metrics = _metrics(questions, verdicts)
        _report(metrics, verdicts, prompts, journal)
        told = _judge_facts(options.judge, prompts, verdicts)
        return Scores(metrics, _rows(questions, answers, verdicts), {**_facts(options, answers), "judge": told})


def _metrics(questions: Sequence[Conversation], verdicts: Verdicts) -> dict[str, float]:
    """Means over the ratings that exist; what nobody has judged has none."""
    ratings = {place: judgment.rating for place, judgment in verdicts.judgments.items() if judgment.rating is not None}
    category = {question.id: question.category for question in questions}
    groups = {
        "score": list(ratings.values()),
        **{f"turn_{turn}": [rating for (_, which), rating in ratings.items() if which == turn] for turn in (1, 2)},
        **{
            name: [rating for (question, _), rating in ratings.items() if category[question] == name]
            for name in dict.fromkeys(category.values())
        },
    }
    means = {name: sum(group) / len(group) for name, group in groups.items() if group}
    return {**means, "judged": len(ratings), "unjudged": len(verdicts.judgments) - len(ratings)}


def _rows(questions: Iterable[Conversation], answers: Answers, verdicts: Verdicts | None) -> list[dict[str, Any]]:
    return [
        {
            "question_id": question.id,
            "category": question.category,
            "turns": list(question.turns),
            "answers": list(both),
            **(_judged(question, verdicts) if verdicts else {}),
        }
        for question, both in zip(questions, answers.turns, strict=True)
    ]


def _judged(question: Conversation, verdicts: Verdicts) -> dict[str, Any]:
    both = [verdicts.judgments[question.id, turn] for turn in (1, 2)]
    return {
        "ratings": [judgment.rating for judgment in both],
        "judgments": [judgment.text for judgment in both],
        "unjudged": [judgment.reason for judgment in both],
    }


def _facts(options: Options, answers: Answers) -> dict[str, Any]:
    return {"data": options.data or PUBLISHED, **answers.facts, "answers": {"reused": answers.reused}}


def _judge_facts(settings: JudgeSettings, prompts: Prompts, verdicts: Verdicts) -> dict[str, Any]:
    unjudged = sum(judgment.rating is None for judgment in verdicts.judgments.values())
    return {
        "model": settings.model,
        "base_url": settings.base_url,
        "prompts": {"origin": prompts.origin, "sha256": prompts.sha256},
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "answers": len(verdicts.judgments),
        "judged_before": verdicts.before,
        "asked_now": verdicts.asked,
        "unjudged": unjudged,
    }


def _how_to_judge(answers: Answers) -> str:
    return (
        f"answers   {answers.path}; nobody has judged them yet. To have it done, give this command again with "
        "--judge-url URL and --judge-model NAME, and the key, if the endpoint wants one, in the environment variable "
        f"{JudgeSettings.api_key_env}."
    )


def _report(metrics: dict[str, float], verdicts: Verdicts, prompts: Prompts, journal: Journal) -> None:
    output.say(f"judged    with the prompts of {prompts.origin}; every judgement is in {journal.path}")
    if not metrics["unjudged"]:
        return
    reasons = [judgment.reason for judgment in verdicts.judgments.values() if judgment.rating is None]
    output.warn(
        f"{metrics['unjudged']} of {len(verdicts.judgments)} answers are not judged, and the means leave them out "
        f"(the first: {reasons[0]}). The same command again asks for these only."
    )
