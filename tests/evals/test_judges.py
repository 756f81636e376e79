"""A judge over HTTP: what is asked, what counts as an answer, what is tried again, and what is never spent."""

import json
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from judge_server import Server, raw, refused, said, serving

from saeworks.errors import InputError
from saeworks.evals.judges import asking
from saeworks.evals.judges.asking import Asker
from saeworks.evals.judges.budget import Budget, Clock, Pace
from saeworks.evals.judges.cache import AnswerCache, default_directory
from saeworks.evals.judges.http_judge import FIRST_PAUSE, LONGEST_PAUSE, HttpJudge, retry_after
from saeworks.evals.judges.opening import JudgeConfig, identity_of, open_asker, open_judge
from saeworks.evals.judges.protocol import BudgetSpent, JudgeUnavailable, Question

QUESTION = Question("Be short.", "Which numbers?", 33)
KEY = "SAEWORKS_TEST_JUDGE_KEY"


class Slept:
    """A clock that is moved by sleeping alone, and remembers how long that was."""

    def __init__(self) -> None:
        self.time = 0.0
        self.naps = []
        self.lock = threading.Lock()

    def sleep(self, seconds):
        with self.lock:
            self.naps.append(seconds)
            self.time += seconds

    def clock(self):
        return Clock(lambda: self.time, self.sleep, lambda: 1_000_000.0)


def judge_at(server, slept=None, **options):
    return HttpJudge(server.url, "m", clock=(slept or Slept()).clock(), workers=1, **options)


def ask(server, slept=None, **options):
    judge = judge_at(server, slept, **options)
    try:
        return judge.answer(QUESTION)
    finally:
        judge.close()


def test_a_question_goes_out_in_openai_form_and_the_answer_comes_back(monkeypatch):
    monkeypatch.setenv(KEY, "secret-1")
    with serving(Server(said(" 1, 4. ", prompt=21, completion=6))) as server:
        answer = ask(server, key_variable=KEY)
        assert (answer.text, answer.outcome) == ("1, 4.", "answered")
        assert (answer.prompt_tokens, answer.answer_tokens) == (21, 6)
        assert server.paths == ["/v1/chat/completions"]
        assert server.headers[0]["Authorization"] == "Bearer secret-1"
        assert server.asked[0] == {
            "model": "m",
            "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which numbers?"}],
            "max_tokens": 33,
            "temperature": 0,
        }


@pytest.mark.parametrize(
    ("reply", "outcome", "reason"),
    [
        (said("1, 2, 1", finish="length"), "cut_off", "limit"),
        (said("", finish="length"), "cut_off", "limit"),
        (said(None, refusal="I will not."), "refused", "I will not."),
        (said("text", finish="content_filter"), "refused", "filter"),
        (said("I'm sorry, but I can't help with that."), "refused", "sorry"),
        (said("I’m sorry, no."), "refused", "sorry"),
        (said(""), "malformed", "no text"),
        (said(None), "malformed", "no text"),
        (raw(b'{"choices": []}'), "malformed", "no message"),
        (raw(b'{"choices": [{"message": "1, 2"}]}'), "malformed", "no message"),
        (raw(b'{"object": "list"}'), "malformed", "no message"),
        (refused(400, "prompt too long"), "failed", "status 400: prompt too long"),
    ],
)
def test_answers_count_as_what_they_are(reply, outcome, reason):
    with serving(Server(reply)) as server:
        answer = ask(server)
        assert answer.outcome == outcome
        assert reason in answer.reason
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        refused(500, "oops"),
        refused(503),
        refused(429, "slow down"),
        raw(b'{"choices": [{"message"'),
        raw(b"<html>busy</html>"),
        raw(b""),
        raw(b"[1, 2]"),
        raw(said("1")[2], "cut"),
        raw(b"", "drop"),
    ],
)
def test_faults_that_pass_are_tried_again(trouble):
    slept = Slept()
    with serving(Server(trouble, trouble, said("3"))) as server:
        assert ask(server, slept).text == "3"
        assert len(server.asked) == 3
    assert len(slept.naps) == 2
    assert FIRST_PAUSE * 0.75 <= slept.naps[0] <= FIRST_PAUSE
    assert FIRST_PAUSE * 1.5 <= slept.naps[1] <= FIRST_PAUSE * 2


def test_pauses_grow_to_a_limit_and_then_the_question_has_failed():
    slept = Slept()
    with serving(Server(otherwise=lambda _: refused(500, "oops"))) as server:
        answer = ask(server, slept, retries=9)
        assert answer.outcome == "failed"
        assert answer.reason == "status 500: oops, 10 attempts"
        assert len(server.asked) == 10
    assert sum(slept.naps[:6]) <= FIRST_PAUSE * 63
    assert all(LONGEST_PAUSE * 0.75 <= nap <= LONGEST_PAUSE for nap in slept.naps[6:])


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(status):
    slept = Slept()
    date = format_datetime(datetime.fromtimestamp(1_000_011, UTC), usegmt=True)
    with serving(Server(refused(status, Retry_After="7"), refused(status, Retry_After=date), said("1"))) as server:
        assert ask(server, slept).text == "1"
    assert slept.naps == [7.0, pytest.approx(11.0)]


def test_a_server_that_asks_for_an_hour_is_not_waited_for():
    slept = Slept()
    with serving(Server(refused(429, Retry_After="3600"))) as server, pytest.raises(JudgeUnavailable, match="3600"):
        ask(server, slept)
    assert slept.naps == []


def test_retry_after_is_read_in_every_form():
    clock = Slept().clock()
    assert retry_after(None, clock) is None
    assert retry_after("2.5", clock) == 2.5
    assert retry_after("-3", clock) == 0.0
    assert retry_after("soon", clock) is None
    assert retry_after("nan", clock) is None
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT", clock) == 0.0


@pytest.mark.parametrize("trouble", ["slow", "trickle"])
def test_a_slow_server_is_left_after_the_timeout(trouble):
    clock = Clock(time.monotonic, lambda _: None, time.time)
    with serving(Server(raw(said("1")[2], trouble), said("2"))) as server:
        judge = HttpJudge(server.url, "m", clock=clock, timeout=0.3, retries=1)
        assert judge.answer(QUESTION).text == "2"
        judge.close()
        assert len(server.asked) == 2


def test_no_server_at_all_is_a_failed_answer_that_cost_nothing():
    with serving(Server()) as server:
        url = server.url
    judge = HttpJudge(url, "m", clock=Slept().clock(), retries=2, budget=Budget(tokens=10_000))
    answer = judge.answer(QUESTION)
    assert answer.outcome == "failed"
    assert "no connection" in answer.reason
    assert judge.usage()["tokens"] == 0
    judge.close()


@pytest.mark.parametrize(
    ("reply", "error", "match"),
    [
        (refused(401, "bad key"), InputError, "judge_key_variable"),
        (refused(403), InputError, "refuses the key"),
        (refused(404, "no such model"), InputError, "no such model"),
        (refused(307, Location="http://127.0.0.1:1/elsewhere"), InputError, "check the address"),
        (refused(429, "pay first", code="insufficient_quota"), JudgeUnavailable, "nothing left"),
    ],
)
def test_what_no_other_question_would_mend_stops_everything(monkeypatch, reply, error, match):
    monkeypatch.setenv(KEY, "secret-2")
    with serving(Server(reply)) as server, pytest.raises(error, match=match) as caught:
        ask(server, key_variable=KEY)
    assert len(server.asked) == 1
    assert "secret-2" not in str(caught.value)


def test_requests_stop_before_the_budget_is_exceeded(tmp_path):
    questions = [Question("s", f"u{i}", 8) for i in range(12)]
    with serving(Server()) as server:
        judge = HttpJudge(server.url, "m", workers=3, budget=Budget(requests=5))
        with pytest.raises(BudgetSpent, match="5 requests"):
            Asker(judge, AnswerCache(tmp_path, judge)).ask(questions)
        assert len(server.asked) == 5
        judge.close()
        more = HttpJudge(server.url, "m", workers=3, budget=Budget(requests=7))
        answers = Asker(more, AnswerCache(tmp_path, more)).ask(questions)
        more.close()
        assert sum(a.cached for a in answers) == 5
        assert len(server.asked) == 12


def test_repeated_requests_count_against_the_budget():
    with serving(Server(otherwise=lambda _: refused(500))) as server:
        with pytest.raises(BudgetSpent):
            ask(server, budget=Budget(requests=3), retries=5)
        assert len(server.asked) == 3


def test_tokens_are_never_exceeded_whatever_the_server_counts():
    def costly(question):
        # All that the request could cost: every byte a token, and the longest answer.
        most = len(json.dumps(question).encode()) + question["max_tokens"]
        return said("1", prompt=most - question["max_tokens"], completion=question["max_tokens"])

    with serving(Server(otherwise=costly)) as server:
        budget = Budget(tokens=1000)
        judge = judge_at(server, budget=budget)
        asker = Asker(judge, None)
        with pytest.raises(BudgetSpent, match="tokens"):
            asker.ask([Question("s", f"u{i}", 20) for i in range(100)])
        judge.close()
        assert 1 <= len(server.asked) <= 1000 // 100
        assert budget.tokens <= 1000


def test_tokens_are_charged_as_counted_and_in_full_where_nobody_counted():
    body = json.loads(said("1")[2])
    del body["usage"]
    with serving(
        Server(said("1", prompt=100, completion=3), raw(json.dumps(body).encode()), refused(429), said("2"))
    ) as s:
        budget = Budget(tokens=10_000)
        judge = judge_at(s, budget=budget)
        judge.answer(QUESTION)
        assert budget.tokens == 103
        judge.answer(QUESTION)
        uncounted = budget.tokens - 103
        assert uncounted > len(QUESTION.system) + len(QUESTION.user) + QUESTION.max_tokens
        judge.answer(QUESTION)  # the 429 costs nothing
        assert budget.tokens == 103 + uncounted + 15
        judge.close()


def test_a_rate_limit_spaces_requests_evenly_for_all_threads():
    slept = Slept()
    pace = Pace(60.0, slept.clock())
    for _ in range(4):
        pace.wait()
    assert slept.naps == [1.0, 1.0, 1.0]
    pace.hold(5.0)
    pace.wait()
    assert slept.naps[-1] == pytest.approx(5.0)


def test_answers_are_kept_by_what_was_asked_of_whom(tmp_path):
    with serving(Server(otherwise=lambda q: said(q["messages"][1]["content"] + q["model"]))) as server:
        one, two = HttpJudge(server.url, "one"), HttpJudge(server.url, "two")
        first = Asker(one, AnswerCache(tmp_path, one))
        assert [a.text for a in first.ask([QUESTION, QUESTION])] == ["Which numbers?one"] * 2
        assert len(server.asked) == 1
        assert Asker(one, AnswerCache(tmp_path, one)).ask([QUESTION])[0].cached
        others = [Question("Be short.", "Which numbers?", 34), Question("Be long.", "Which numbers?", 33)]
        assert not any(a.cached for a in first.ask(others))
        assert not Asker(two, AnswerCache(tmp_path, two)).ask([QUESTION])[0].cached
        assert len(server.asked) == 4
        one.close()
        two.close()


def test_the_cache_holds_the_question_and_no_key_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "secret-3")
    with serving(Server(otherwise=lambda _: said("1"))) as server:
        judge = HttpJudge(server.url, "m", key_variable=KEY)
        cache = AnswerCache(tmp_path, judge)
        Asker(judge, cache).ask([QUESTION])
        file = cache.path(QUESTION)
        kept = file.read_text()
        assert json.loads(kept)["user"] == QUESTION.user
        assert "secret-3" not in kept
        for damage in (kept[:40], "[]", '{"text": 3, "outcome": "answered"}', '{"text": "1", "outcome": "great"}'):
            file.write_text(damage)
            assert cache.get(QUESTION) is None
            assert not Asker(judge, cache).ask([QUESTION])[0].cached
            assert cache.get(QUESTION).text == "1"
        judge.close()


@pytest.mark.parametrize(
    ("reply", "kept"),
    [(said("1"), True), (said("1", finish="length"), True), (said(None, refusal="no"), True), (said(""), False)],
)
def test_only_answers_that_would_come_again_are_kept(tmp_path, reply, kept):
    with serving(Server(reply, reply)) as server:
        judge = HttpJudge(server.url, "m")
        cache = AnswerCache(tmp_path, judge)
        first = Asker(judge, cache).ask([QUESTION])[0]
        second = Asker(judge, cache).ask([QUESTION])[0]
        judge.close()
        assert len(server.asked) == (1 if kept else 2)
        assert second.cached is kept
        assert (second.text, second.outcome) == (first.text, first.outcome)


def test_a_judge_that_fails_again_and_again_is_given_up(tmp_path):
    questions = [Question("s", f"u{i}", 8) for i in range(50)]
    with serving(Server(said("1"), otherwise=lambda _: refused(500, "down"))) as server:
        judge = judge_at(server, retries=0)
        with pytest.raises(JudgeUnavailable, match="status 500: down"):
            Asker(judge, AnswerCache(tmp_path, judge)).ask(questions)
        judge.close()
        assert len(server.asked) == 1 + asking.PATIENCE


def test_single_failures_do_not_stop_the_others_and_order_is_kept():
    def moody(question):
        text = question["messages"][1]["content"]
        return refused(500, "down") if text in ("u3", "u7") else said(text)

    questions = [Question("s", f"u{i}", 8) for i in range(12)]
    with serving(Server(otherwise=moody)) as server:
        judge = HttpJudge(server.url, "m", clock=Slept().clock(), retries=0, workers=4)
        asker = Asker(judge, None)
        answers = asker.ask(questions)
        judge.close()
    assert [a.text for a in answers] == ["" if i in (3, 7) else f"u{i}" for i in range(12)]
    assert asker.outcomes == {"answered": 10, "failed": 2}


def test_room_is_checked_before_anything_is_spent(tmp_path):
    questions = [Question("s", f"u{i}", 8) for i in range(6)]
    with serving(Server()) as server:
        judge = HttpJudge(server.url, "m", budget=Budget(requests=10))
        asker = Asker(judge, AnswerCache(tmp_path, judge))
        with pytest.raises(InputError, match="12 questions, but its budget has 10"):
            asker.check_room(questions, times=2)
        assert server.asked == []
        asker.ask(questions[:3])
        asker.check_room(questions, times=2)
        judge.close()


def test_settings_open_the_judge_they_name(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "secret-4")
    with serving(Server()) as server:
        config = JudgeConfig(
            judge=server.url,
            judge_model="m",
            judge_key_variable=KEY,
            judge_cache=str(tmp_path),
            judge_budget_requests=1,
        )
        with open_asker(config) as asker:
            assert asker.ask([QUESTION])[0].text == "1, 2"
            assert asker.judge.room() == 0
        assert "secret-4" not in config.model_dump_json()
    assert list(tmp_path.rglob("*.json"))
    assert open_judge(JudgeConfig()).name == "world"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_directory() == tmp_path / "cache" / "saeworks" / "judge"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"judge": "wrld"}, "Did you mean 'world'"),
        ({"judge": "http://localhost:1/v1"}, "judge_model"),
        ({"judge": "http:///v1", "judge_model": "m"}, "no address"),
        ({"judge": "http://me:pw@localhost:1/v1", "judge_model": "m"}, "user name or password"),
        ({"judge": "http://localhost:1/v1?key=3", "judge_model": "m"}, "without"),
        ({"judge": "http://localhost:1/v1", "judge_model": "m", "judge_key_variable": KEY}, "is not set"),
        ({"judge": "local:no/such/dir/anywhere"}, "no/such/dir/anywhere"),
    ],
)
def test_settings_that_name_no_judge_are_refused(monkeypatch, settings, match):
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(InputError, match=match) as caught:
        open_judge(JudgeConfig(**settings))
    assert "pw@" not in str(caught.value)


def test_the_identity_changes_with_the_judge():
    configs = [
        JudgeConfig(),
        JudgeConfig(judge="http://localhost:1/v1", judge_model="a"),
        JudgeConfig(judge="http://localhost:1/v1", judge_model="b"),
        JudgeConfig(judge="local:a"),
    ]
    assert len({identity_of(c) for c in configs}) == len(configs)
    assert identity_of(JudgeConfig(judge_budget_requests=3)) == identity_of(JudgeConfig())
