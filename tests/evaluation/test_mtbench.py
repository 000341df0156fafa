"""MT-Bench: answers in FastChat's form, and a judge behind real sockets that is good, slow, broken or gone."""

import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from gora.errors import InputError
from gora.evaluation.mtbench import MTBench, prompts
from gora.evaluation.mtbench.endpoint import Endpoint, Garbled
from gora.evaluation.mtbench.judge import rating_in
from gora.evaluation.task import JudgeSettings, Options, Sampling
from tests.helpers.environment import clean_environment

KEY = "sk-very-secret-0123456789"


class FakeSubject:
    """Answers with what it was asked; remembers every call."""

    converses = True

    def __init__(self, name="one"):
        self.name, self.calls = name, []

    def ask(self, conversations, sampling):
        self.calls.append((conversations, sampling))
        return [[f"{self.name}: {len(talk)}: {talk[-1]['content'][:60]}"] for talk in conversations]

    def complete(self, texts, sampling):
        raise AssertionError("MT-Bench is a conversation")


class Server:
    """An endpoint that does what `answer(number, body)` says: a text to say, a status with headers, or a deed."""

    def __init__(self, answer):
        self.answer, self.requests, self.bodies, self.keys = answer, 0, [], []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number, outer.requests = outer.requests, outer.requests + 1
                    outer.bodies.append((self.path, body))
                    outer.keys.append(self.headers["Authorization"])
                said = outer.answer(number, body)
                if callable(said):
                    said(self)
                elif isinstance(said, str):
                    respond(self, 200, completion(said))
                else:
                    respond(self, *said)

            def log_message(self, *arguments):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def completion(text):
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 7}})


def respond(handler, status, text="", headers=()):
    content = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def hang_up(handler):
    """Reset the connection instead of answering."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def break_off(handler):
    """Send a part of what was announced."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(completion("[[9]]").encode())


def rate(number, body):
    """A rating that follows from the request alone, so that tests can do the arithmetic by themselves."""
    return f"Good enough. Rating: [[{rating_of(body['messages'])}]]"


def rating_of(messages):
    return 1 + sum(messages[-1]["content"].encode()) % 10


@pytest.fixture
def serve(monkeypatch):
    """Servers that are closed in the end; pauses are noted and not waited for. A token of the hub lies about."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_a_judge")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    pauses, servers = [], []
    monkeypatch.setattr(Endpoint, "pause", lambda self, seconds: pauses.append(seconds))

    def start(answer=rate):
        servers.append(Server(answer))
        return servers[-1]

    start.pauses = pauses
    yield start
    for server in servers:
        server.close()


def options(folder, server=None, *, limit=None, **settings):
    judge = JudgeSettings(base_url=server.url, model="the-judge", **{"timeout": 5.0, **settings}) if server else None
    folder.mkdir(exist_ok=True)
    return Options(folder=folder, limit=limit, judge=judge, model_name="mine", model_fingerprint="weights")


def evaluate(chosen, subject=None):
    return MTBench().evaluate(subject or FakeSubject(), chosen)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_written_as_fastchat_writes_them_and_judged_later(tmp_path, capsys, serve):
    subject = FakeSubject()
    scores = evaluate(options(tmp_path), subject)
    assert scores.metrics == {}
    assert "--judge-url URL" in capsys.readouterr().out
    written = lines(tmp_path / "model_answer.jsonl")
    assert [line["question_id"] for line in written] == list(range(81, 161))
    for line in written:
        assert set(line) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert line["model_id"] == "mine"
        assert isinstance(line["tstamp"], float)
        (choice,) = line["choices"]
        assert choice["index"] == 0
        assert [text[:6] for text in choice["turns"]] == ["one: 1", "one: 3"]
    assert len({line["answer_id"] for line in written}) == 80
    samplings = Counter()
    for conversations, sampling in subject.calls:
        samplings[sampling] += len(conversations)
    assert samplings == {
        Sampling(max_new_tokens=1024, temperature=0.7): 2 * 20,
        Sampling(max_new_tokens=1024, temperature=0.0): 2 * 40,
        Sampling(max_new_tokens=1024, temperature=0.1): 2 * 20,
    }
    second = [talk for conversations, _ in subject.calls for talk in conversations if len(talk) == 3]
    assert [message["role"] for message in second[0]] == ["user", "assistant", "user"]
    assert second[0][1]["content"] == written[0]["choices"][0]["turns"][0]
    again = FakeSubject()
    assert evaluate(options(tmp_path, serve()), again).metrics["unjudged"] == 0
    assert again.calls == []


@pytest.mark.parametrize(
    "other",
    [
        {"model_fingerprint": "other weights"},
        {"model_fingerprint": None},
        {"model_name": "yours"},
        {"seed": 1},
        {"limit": 2},
        {"temperature": 0.5},
        {"max_new_tokens": 9},
    ],
)
def test_answers_of_another_evaluation_are_set_aside(tmp_path, other):
    evaluate(options(tmp_path, limit=3))
    before = (tmp_path / "model_answer.jsonl").read_text()
    scores = evaluate(replace(options(tmp_path, limit=3), **other), FakeSubject("two"))
    assert not scores.facts["answers"]["reused"]
    assert all(row["answers"][0].startswith("two:") for row in scores.rows)
    (kept,) = tmp_path.glob("model_answer.????????.jsonl")
    assert kept.read_text() == before


def test_answers_that_somebody_changed_are_not_taken_for_the_models(tmp_path):
    evaluate(options(tmp_path, limit=3))
    path = tmp_path / "model_answer.jsonl"
    path.write_text(path.read_text().replace("one: 1", "better"))
    assert evaluate(options(tmp_path, limit=3)).rows[0]["answers"][0].startswith("one: 1")


def test_scores_are_plain_means_of_what_the_judge_said(tmp_path, serve, capsys):
    server = serve()
    scores = evaluate(options(tmp_path, server, parallel=3))
    assert server.requests == 160
    by_turn, by_category = {1: [], 2: []}, {}
    category = {row["question_id"]: row["category"] for row in scores.rows}
    for line in lines(tmp_path / "judgments.jsonl"):
        rating = 1 + sum(line["user_prompt"].encode()) % 10
        assert line["score"] == rating
        assert line["judge"][0] == "the-judge"
        by_turn[line["turn"]].append(rating)
        by_category.setdefault(category[line["question_id"]], []).append(rating)
    everything = by_turn[1] + by_turn[2]
    assert len(everything) == 160
    expected = {"score": everything, "turn_1": by_turn[1], "turn_2": by_turn[2], **by_category}
    assert len(by_category) == 8
    for name, ratings in expected.items():
        assert scores.metrics[name] == pytest.approx(sum(ratings) / len(ratings))
    assert next(iter(scores.metrics)) == "score"
    assert (scores.metrics["judged"], scores.metrics["unjudged"]) == (160, 0)
    told = scores.facts["judge"]
    assert (told["model"], told["temperature"], told["asked_now"], told["judged_before"]) == ("the-judge", 0, 160, 0)
    assert told["prompts"]["origin"] == "gora"
    assert re.fullmatch("[0-9a-f]{64}", told["prompts"]["sha256"])
    for path, body in server.bodies:
        assert path == "/v1/chat/completions"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("the-judge", 0, 2048)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "warning" not in capsys.readouterr().out


def test_reference_answers_are_shown_in_math_reasoning_and_coding_only(tmp_path, serve):
    scores = evaluate(options(tmp_path, serve()))
    category = {row["question_id"]: row["category"] for row in scores.rows}
    seen = {(category[line["question_id"]], *line["judge"][1:]) for line in lines(tmp_path / "judgments.jsonl")}
    for name in set(category.values()):
        kind = "single-math-v1" if name in ("math", "reasoning", "coding") else "single-v1"
        assert {judge for which, judge in seen if which == name} == {kind, f"{kind}-multi-turn"}
    records = {(line["question_id"], line["turn"]): line for line in lines(tmp_path / "judgments.jsonl")}
    assert "your current position is now second place" in records[101, 1]["user_prompt"]
    assert "you were previously the second to last person" in records[101, 2]["user_prompt"]


def test_what_fails_for_a_while_is_tried_again_and_the_wait_asked_for_is_kept(tmp_path, serve):
    failures = [
        (500, "out of order"),
        (429, '{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', {"Retry-After": "7"}),
        hang_up,
        break_off,
        (503, '[{"error": "a list"}]', {"Retry-After": "soon"}),
    ]
    server = serve(lambda number, body: failures[number] if number < len(failures) else rate(number, body))
    scores = evaluate(options(tmp_path, server, limit=1, parallel=1))
    assert scores.metrics["judged"] == 2
    assert server.requests == len(failures) + 2
    first, asked, third, fourth, fifth = serve.pauses
    assert 0.5 <= first <= 1
    assert 7 <= asked <= 8
    assert 2 <= third <= 4 <= fourth <= 8 <= fifth <= 16


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not say.", "no rating like"),
        ("Rating: [[11]]", "the rating 11 is not between 1 and 10"),
        ("Rating: [[0]]", "the rating 0 is not between"),
        ("Rating: [[-3]]", "the rating -3 is not between"),
        ((200, "<html>Welcome</html>"), "not a chat completion: '<html>Welcome</html>'"),
        ((200, '{"choices": []}'), "there is no choices[0].message.content"),
        ((200, '{"choices": 1}'), "there is no choices[0].message.content"),
        ((200, '{"choices": [null]}'), "not a chat completion"),
        ((200, "[]"), "not a chat completion"),
        ((200, completion(None)), "choices[0].message.content is not a text"),
    ],
)
def test_nonsense_is_asked_again_and_then_recorded_as_unjudged(tmp_path, serve, capsys, answer, reason):
    server = serve(lambda number, body: rate(number, body) if number >= 3 else answer)
    chosen = options(tmp_path, server, limit=1, parallel=1)
    scores = evaluate(chosen)
    assert server.requests == 3 + 1
    assert (scores.metrics["judged"], scores.metrics["unjudged"]) == (1, 1)
    assert "turn_1" not in scores.metrics
    assert scores.metrics["score"] == scores.metrics["turn_2"] == rating_of(server.bodies[3][1]["messages"])
    assert reason in scores.rows[0]["unjudged"][0]
    first, _ = lines(tmp_path / "judgments.jsonl")
    assert first["score"] is None
    assert reason in first["reason"]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 answers are not judged" in said
    assert "same command again" in said
    assert evaluate(chosen).metrics["unjudged"] == 0
    assert server.requests == 5


def test_an_answer_that_comes_too_late_counts_as_none(tmp_path, serve):
    release = threading.Event()
    server = serve(lambda number, body: rate(number, body) if number else lambda handler: release.wait(20))
    scores = evaluate(options(tmp_path, server, limit=1, parallel=1, timeout=0.2, retries=0))
    release.set()
    assert scores.metrics["unjudged"] == 1
    assert "no answer within 0.2 s" in scores.rows[0]["unjudged"][0]


def test_a_server_that_dies_in_the_middle_costs_nothing_that_was_finished(tmp_path, serve, capsys):
    server = serve(lambda number, body: rate(number, body) if number < 11 else hang_up)
    chosen = options(tmp_path, server, limit=20, parallel=2, retries=1)
    scores = evaluate(chosen)
    assert scores.metrics["judged"] == 11
    assert scores.metrics["unjudged"] == 29
    # It is given up after a few failures in a row, not asked for each of the rest.
    assert server.requests < 11 + 2 * 6
    reasons = [reason for row in scores.rows for reason in row["unjudged"] if reason]
    assert any("tried 2 times" in reason for reason in reasons)
    assert any(reason.startswith("not asked, since others failed: the connection failed") for reason in reasons)
    assert "29 of 40 answers are not judged" in " ".join(capsys.readouterr().out.split())
    with open(tmp_path / "judgments.jsonl", "a") as stream:
        stream.write('{"question_id": 81, "score": 9, "finge')
    healthy = serve()
    second = evaluate(replace(chosen, judge=replace(chosen.judge, base_url=healthy.url)))
    assert healthy.requests == 29
    assert second.metrics["unjudged"] == 0
    assert second.facts["judge"]["judged_before"] == 11
    # A third run asks nobody.
    assert evaluate(options(tmp_path, healthy, limit=20)).metrics == second.metrics
    assert healthy.requests == 29


@pytest.mark.parametrize("change", ["judge", "answers", "prompts"])
def test_a_judgement_belongs_to_its_judge_answers_and_prompts(tmp_path, serve, change):
    server = serve()
    chosen = options(tmp_path, server, limit=3)
    evaluate(chosen)
    if change == "judge":
        chosen = replace(chosen, judge=replace(chosen.judge, model="another"))
    if change == "answers":
        chosen = replace(chosen, model_fingerprint="other")
    if change == "prompts":
        chosen = replace(chosen, judge=replace(chosen.judge, prompts=fastchat_like(tmp_path / "p.jsonl")))
    scores = evaluate(chosen, FakeSubject("two"))
    assert server.requests == 12
    assert scores.facts["judge"]["judged_before"] == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, f'{{"error": {{"message": "Incorrect API key: {KEY}"}}}}'), "environment variable JUDGE_KEY is not acc"),
        ((403, "no"), "Is the key in JUDGE_KEY allowed to use the model 'the-judge'"),
        ((404, '{"detail": "Not Found"}'), "often ends in /v1, and the model's name, 'the-judge'"),
        ((405, ""), "Check the address"),
        ((429, '{"error": {"message": "pay", "code": "insufficient_quota"}}'), "quota is used up"),
        ((400, '{"error": {"message": "only 1", "param": "temperature"}}'), "it does not accept temperature"),
    ],
)
def test_what_can_never_succeed_ends_at_once(tmp_path, serve, monkeypatch, answer, message):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(lambda number, body: answer if number >= 4 else rate(number, body))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        evaluate(options(tmp_path, server, parallel=1, api_key_env="JUDGE_KEY"))
    assert str(answer[0]) in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.requests == 5
    assert len(lines(tmp_path / "judgments.jsonl")) == 4


def test_a_missing_key_is_named_when_the_endpoint_wants_one(tmp_path, serve):
    server = serve(lambda number, body: (401, ""))
    with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
        evaluate(options(tmp_path, server, limit=1))
    # Not the token of the hub, which the library sends where it is given none.
    assert set(server.keys) == {"Bearer none"}


def test_a_redirect_to_another_host_does_not_carry_the_key(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = serve(lambda number, body: (401, "who are you?"))
    server = serve(lambda number, body: (307, "", {"Location": f"{other.url}/moved"}))
    with pytest.raises(InputError, match=f"which leads to {other.url}/moved, answers with status 401"):
        evaluate(options(tmp_path, server, limit=1, parallel=1))
    assert (server.keys, other.keys) == ([f"Bearer {KEY}"], [None])


def test_a_request_that_is_refused_is_not_repeated(tmp_path, serve):
    server = serve(lambda number, body: (400, '{"error": {"message": "too long"}}') if not number else rate(0, body))
    scores = evaluate(options(tmp_path, server, limit=1, parallel=1))
    assert scores.rows[0]["unjudged"] == ["the endpoint refuses the request: status 400: too long", None]
    assert server.requests == 2


def test_the_key_is_sent_as_bearer_and_stands_nowhere_else(tmp_path, serve, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    answers = [f"You sent {KEY}. [[5]]", (500, f"do not show {KEY}"), (200, f"{KEY} is no JSON")]
    server = serve(lambda number, body: answers[number % 3])
    chosen = options(tmp_path, server, limit=4, parallel=1, api_key_env="JUDGE_KEY", retries=0)
    scores = evaluate(chosen)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert "You sent ***." in (tmp_path / "judgments.jsonl").read_text()
    captured = capfd.readouterr()
    everywhere = [captured.out, captured.err, repr(scores), repr(chosen), *(p.read_text() for p in tmp_path.iterdir())]
    assert not any(KEY in text for text in everywhere)


def test_a_short_key_is_no_secret_and_spoils_no_text(tmp_path, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "5")
    server = serve(lambda number, body: "Rating: [[5]]")
    assert evaluate(options(tmp_path, server, limit=1)).metrics["score"] == 5
    assert set(server.keys) == {"Bearer 5"}


def test_several_requests_are_in_flight(tmp_path, serve):
    together = threading.Barrier(4)

    def wait_for_the_others(number, body):
        together.wait(20)
        return rate(number, body)

    # Nobody is answered before four have asked.
    server = serve(wait_for_the_others)
    scores = evaluate(options(tmp_path, server, limit=4, parallel=4, timeout=20, retries=0))
    assert (scores.metrics["judged"], server.requests) == (8, 8)


def fastchat_like(path):
    """Prompts in the form of FastChat's file, in other words, with a pairwise one that is not for us."""
    one = "Q {question} A {answer} {{as is}}"
    both = "{question_1}|{answer_1}|{question_2}|{answer_2}"
    records = [
        {"name": "pair-v2", "prompt_template": "{answer_a} {answer_b}", "system_prompt": ""},
        {"name": "single-v1", "type": "single", "system_prompt": "S1", "prompt_template": one},
        {"name": "single-math-v1", "system_prompt": "S2", "prompt_template": f"{one} {{ref_answer_1}}"},
        {"name": "single-v1-multi-turn", "system_prompt": "", "prompt_template": both},
        {"name": "single-math-v1-multi-turn", "system_prompt": "S4", "prompt_template": f"{both} {{ref_answer_2}}"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_of_prompts_is_used_word_for_word(tmp_path, serve):
    path, server = fastchat_like(tmp_path / "judge_prompts.jsonl"), serve()
    question = {"question_id": "x", "category": "math", "turns": ["{answer} 1+1?", "and {0}?"]}
    plain = {**question, "question_id": "y", "category": "writing"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(question)}\n{json.dumps(plain)}\n")
    (tmp_path / "reference_answer").mkdir()
    reference = {"question_id": "x", "choices": [{"turns": ["two", "three"]}]}
    (tmp_path / "reference_answer" / "gpt-4.jsonl").write_text(json.dumps(reference))
    chosen = replace(options(tmp_path, server, parallel=1, prompts=path), data=str(tmp_path / "q.jsonl"))
    scores = evaluate(chosen)
    assert [body["messages"] for _, body in server.bodies] == [
        [
            {"role": "system", "content": "S2"},
            {"role": "user", "content": "Q {answer} 1+1? A one: 1: {answer} 1+1? {as is} two"},
        ],
        [
            {"role": "system", "content": "S4"},
            {"role": "user", "content": "{answer} 1+1?|one: 1: {answer} 1+1?|and {0}?|one: 3: and {0}? three"},
        ],
        [
            {"role": "system", "content": "S1"},
            {"role": "user", "content": "Q {answer} 1+1? A one: 1: {answer} 1+1? {as is}"},
        ],
        [{"role": "user", "content": "{answer} 1+1?|one: 1: {answer} 1+1?|and {0}?|one: 3: and {0}?"}],
    ]
    assert scores.facts["judge"]["prompts"]["origin"] == str(path)


def test_an_installed_fastchat_lends_its_prompts(tmp_path, serve, monkeypatch):
    package = tmp_path / "site" / "fastchat"
    (package / "llm_judge" / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of it is to be run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert prompts.read_prompts(None).origin == "gora"
    fastchat_like(package / "llm_judge" / "data" / "judge_prompts.jsonl")
    server = serve()
    scores = evaluate(options(tmp_path / "run", server, limit=1))
    assert scores.facts["judge"]["prompts"]["origin"] == "fastchat of unknown version"
    assert "S1" in [body["messages"][0]["content"] for _, body in server.bodies]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question} only", "never shows what is rated, {answer}"),
        ("{answer} {answer.__class__}", "has no field 'answer.__class__'"),
        ("{answer} {", "A brace of its own is written twice"),
        (None, "must be a text, and is null"),
    ],
)
def test_prompts_that_cannot_be_filled_in_are_refused(tmp_path, template, message):
    path = fastchat_like(tmp_path / "p.jsonl")
    records = [dict(record, prompt_template=template) if "S1" in record.values() else record for record in lines(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(InputError, match=re.escape(message)):
        prompts.read_prompts(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "api.openai.com/v1"}, "is not an address of an endpoint"),
        ({"base_url": "http://localhost:99999/v1"}, "is not an address of an endpoint"),
        ({"base_url": "https://user:pass@host/v1"}, "holds a name or password"),
        ({"model": ""}, "has no name"),
        ({"parallel": 0}, "one request at a time or more"),
        ({"retries": -1}, "needs 0 retries or more, not -1"),
        ({"timeout": float("nan")}, "needs between 0 and 86400 s to answer, not nan"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which is to hold the judge's key, is not set"),
        ({"api_key_env": "ODD_KEY"}, "ODD_KEY holds characters that no key has"),
        ({"prompts": "nowhere.jsonl"}, "Judge prompts: "),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_asked(tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("ODD_KEY", "two\nlines")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if "prompts" in change:
        change = {"prompts": tmp_path / change["prompts"]}
    settings = replace(JudgeSettings(base_url="http://localhost:1/v1", model="the-judge"), **change)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        MTBench().check(replace(options(tmp_path), judge=settings))
    assert "two" not in str(caught.value)


def test_a_judge_is_not_reached_while_the_hub_is_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = JudgeSettings(base_url="http://localhost:1/v1", model="the-judge")
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set, .* Unset it for this command"):
        MTBench().check(replace(options(tmp_path), judge=settings))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"category": "math", "turns": ["a", "b"]}, "q.jsonl:2: question_id must be"),
        ({"question_id": 2, "category": "math", "turns": ["a"]}, "q.jsonl:2: turns must be a list of two texts"),
        ({"question_id": 1, "category": "math", "turns": ["a", "b"]}, "q.jsonl:2: its question_id is not its own"),
        ({"question_id": 2, "category": None, "turns": ["a", "b"]}, "q.jsonl:2: category must be a text"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, row, message):
    good = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match=re.escape(message)):
        MTBench().check(replace(options(tmp_path), data=str(tmp_path / "q.jsonl")))


def test_a_question_without_the_reference_answer_it_needs_is_refused_only_where_it_is_judged(tmp_path):
    question = {"question_id": 7, "category": "math", "turns": ["a", "b"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    chosen = replace(options(tmp_path), data=str(tmp_path / "q.jsonl"))
    MTBench().check(chosen)
    with pytest.raises(InputError, match="there are none to question 7"):
        MTBench().check(replace(chosen, judge=JudgeSettings(base_url="http://localhost:1/v1", model="the-judge")))
    with pytest.raises(InputError, match="one answer to each question, not 3"):
        MTBench().check(replace(chosen, samples=3))


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("[[ 7.5 ]]", 7.5),
        ("The matrix [[1]] is right. Rating: [[10]]", 10),
        ("Rating: [8]", 8),
        ("**Rating**: [8]", 8),
    ],
)
def test_the_last_rating_counts(text, rating):
    assert rating_in(text) == rating


@pytest.mark.parametrize("text", ["", "as [1] says", "[[seven]]", "7/10", "[[1, 2]]", "[[1e1]]"])
def test_what_is_no_rating_is_not_made_one(text):
    with pytest.raises(Garbled):
        rating_in(text)


def test_a_wait_that_the_endpoint_asks_for_has_an_end(tmp_path, serve):
    server = serve(lambda number, body: (429, "", {"Retry-After": "86400"}))
    scores = evaluate(options(tmp_path, server, limit=1, parallel=1))
    assert server.requests == 2
    assert serve.pauses == []
    assert "it asks to wait for 86400 s; tried 1 time" in scores.rows[0]["unjudged"][0]


PROGRAM = """
import sys, threading
from pathlib import Path
from gora.errors import GoraError
from gora.evaluation.mtbench import MTBench
from gora.evaluation.task import JudgeSettings, Options
from gora.runtime.interrupt import StopSignal, stopping_at_once

class Subject:
    converses = True
    def ask(self, conversations, sampling):
        return [[talk[-1]["content"][:50]] for talk in conversations]

judge = JudgeSettings(base_url=sys.argv[2], model="the-judge", parallel=2, timeout=60.0)
options = Options(folder=Path(sys.argv[1]), limit=5, judge=judge, model_fingerprint="weights")
try:
    with stopping_at_once():
        MTBench().evaluate(Subject(), options)
except StopSignal as stop:
    sys.exit(128 + stop.number)
"""


@contextmanager
def program(folder, server):
    line = [sys.executable, "-c", PROGRAM, str(folder), server.url]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=clean_environment(HF_HUB_OFFLINE="0"))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_ends_at_once_and_loses_nothing_that_is_finished(tmp_path, serve):
    stuck, release = threading.Semaphore(0), threading.Event()

    def answer(number, body):
        if number < 4:
            return rate(number, body)
        stuck.release()
        return lambda handler: release.wait(60)

    server = serve(answer)
    with program(tmp_path, server) as process:
        # Both threads wait for an answer: all four that were given have been written.
        assert stuck.acquire(timeout=60)
        assert stuck.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    release.set()
    assert [line["score"] is None for line in lines(tmp_path / "judgments.jsonl")] == [False] * 4
    healthy = serve()
    with program(tmp_path, healthy) as process:
        assert process.wait(timeout=60) == 0
    assert healthy.requests == 6
