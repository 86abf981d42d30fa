"""Scores over HTTP: what a scorer says here it says there, and what is not as it should be is refused."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from imitations import ANSWERS as BROKEN
from imitations import ImitationServer, Leaving, Refusal
from poise.errors import ConfigError, FeedbackError
from poise.feedback.remote import MAX_ROWS, RemoteScorer
from poise.feedback.rules import RefusalScorer
from poise.feedback.serving import ScorerServer
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.types import Completion, Prompt, Scores

CHANNELS = {"reward": False, "cost": True}
PROMPTS = [Prompt.of(f"Question {number}") for number in range(7)]
ANSWERS = [Completion(prompt_id=p.id, text="word " * n) for n, p in enumerate(PROMPTS)]
QUICK = {"backoff_s": 0.01, "attempts": 2, "seconds": 5.0}


class Lengths:
    """Scores by length; an empty answer has none."""

    def __init__(self):
        self.batches = []

    def score(self, prompts, completions):
        self.batches.append(len(completions))
        return [
            Scores(values={"reward": float(len(c.text)), "cost": -0.5}, explanation=p.text)
            if c.text
            else Scores(values={}, unscorable="empty response")
            for p, c in zip(prompts, completions, strict=True)
        ]


def test_scores_arrive_as_they_were_given_in_batches():
    with ScorerServer(Lengths(), CHANNELS, token="t", source="lengths") as server:
        found = RemoteScorer(server.url, token="t", batch_size=3, expect={"cost": True}).score(PROMPTS, ANSWERS)
        assert sum(server.scorer.batches) == 7
    expected = Lengths().score(PROMPTS, ANSWERS)
    assert [(s.values, s.unscorable, s.explanation) for s in found] == [
        (s.values, s.unscorable, s.explanation) for s in expected
    ]
    assert {s.source for s in found} == {f"lengths at {server.url}"}


def test_a_score_model_says_the_same_behind_http():
    model = ScoreModel(load_backbone("random:llama?hidden=32"))
    channels = {channel.name: channel.higher_is_worse for channel in model.channels}
    with ScorerServer(model, channels, token="t") as server:
        found = RemoteScorer(server.url, token="t").score(PROMPTS, ANSWERS)
    expected = model.score(PROMPTS, ANSWERS)
    for one, other in zip(found, expected, strict=True):
        assert one.values == pytest.approx({} if other.unscorable else other.values, abs=1e-5)
        assert one.unscorable == other.unscorable


def test_failed_completions_are_not_sent():
    failed = Completion(prompt_id=PROMPTS[0].id, text="", finish="error", error="no answer within 3 s")
    with ScorerServer(Lengths(), CHANNELS, token="t") as server:
        found = RemoteScorer(server.url, token="t").score(PROMPTS[:2], [failed, ANSWERS[1]])
        assert server.scorer.batches == [1]
    assert found[0].unscorable == "no answer within 3 s"
    assert found[1].values["reward"] == 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": "wrong"}, "401 wrong or no token.*Give the token that the server was started with"),
        ({"token": ""}, "401 wrong or no token"),
        ({"token": "t", "expect": {"cost": False}}, r"channel 'cost' should have higher_is_worse=False, the server"),
        ({"token": "t", "expect": {"harm": True}}, r"says there is no such channel. It has reward, cost"),
    ],
)
def test_a_wrong_token_or_a_channel_upside_down_is_refused(settings, message):
    with ScorerServer(Lengths(), CHANNELS, token="t") as server:
        with pytest.raises(FeedbackError, match=message):
            RemoteScorer(server.url, **QUICK, **settings).score(PROMPTS, ANSWERS)
        assert server.scorer.batches == []


def test_a_server_that_is_not_there_is_an_error_that_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(FeedbackError, match=r"nobody answers.*poise serve-scorer MODEL_FOLDER"):
        RemoteScorer(url, token="t", **QUICK).score(PROMPTS, ANSWERS)


def post(server, body, token="t", path="/score"):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


ROW = {"messages": [{"role": "user", "content": "Hello"}], "response": "Hi"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"rows": [ROW]}, 200, None),
        ({"rows": []}, 200, None),
        ({}, 422, "rows: Field required"),
        ({"rows": [ROW | {"extra": 1}]}, 422, "rows.0.extra: Extra inputs"),
        ({"rows": [ROW | {"response": None}]}, 422, "rows.0.response: Input should be a valid string"),
        ({"rows": [{"messages": [], "response": "x"}]}, 422, "rows.0.messages: List should have at least 1 item"),
        ({"rows": [ROW] * (MAX_ROWS + 1)}, 422, f"at most {MAX_ROWS} items"),
        ({"rows": [{"messages": [{"role": "assistant", "content": "x"}], "response": "x"}]}, 422, "must be the user's"),
        (b"{nonsense", 422, "the body: Invalid JSON"),
    ],
)
def test_the_server_checks_every_request(body, status, message):
    with ScorerServer(Lengths(), CHANNELS, token="t") as server:
        found, answer = post(server, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found == status
    assert message is None or message in answer["error"]


def test_without_a_token_only_the_health_is_told():
    with ScorerServer(RefusalScorer(), {"refusal": True}, token="t") as server:
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as answer:
            assert json.load(answer) == {"status": "ok", "source": "RefusalScorer", "channels": {"refusal": True}}
        assert post(server, b"{}", token="")[0] == 401
        assert post(server, b"{}", path="/other")[0] == 404
    with pytest.raises(ConfigError, match="needs a token"):
        ScorerServer(RefusalScorer(), {}, token="")


class Failing:
    def score(self, prompts, completions):
        if any("Question 3" in prompt.text for prompt in prompts):
            raise RuntimeError("a secret path")
        return Lengths().score(prompts, completions)


def test_what_a_scorer_cannot_do_makes_its_row_unscorable_and_stays_its_secret(capsys):
    with ScorerServer(Failing(), CHANNELS, token="t") as server:
        found = RemoteScorer(server.url, token="t", batch_size=2, **QUICK).score(PROMPTS, ANSWERS)
    assert "scorer failed" in found[3].unscorable
    assert "RuntimeError" in found[3].unscorable
    assert "secret" not in found[3].unscorable
    assert [bool(s.values) for s in found] == [False, True, True, False, True, True, True]
    assert "a secret path" in capsys.readouterr().err


class Liar(ImitationServer):
    """A scorer of somebody else, that says something odd wherever a response holds the word `lie`."""

    def __init__(self, lie=None, **settings):
        super().__init__(**settings)
        self.lie = lie

    def answer(self, method, path, body):
        if path == "/v1/health":
            return {"status": "ok", "source": "liar", "channels": CHANNELS}
        if path == "/v1/score":
            said = [row["response"] for row in body["rows"]]
            rows = [self.lie if "lie" in text else {"values": {"reward": 1.0, "cost": -1}} for text in said]
            return {"scores": [row for row in rows if row is not None]}
        raise Refusal(404, "Not Found")


def scores_with_a_lie(server, **settings):
    """Scores of seven responses in batches of three; the fifth is one that the server lies about."""
    answers = [Completion(prompt_id=p.id, text="lie" if n == 4 else "true") for n, p in enumerate(PROMPTS)]
    return RemoteScorer(server.url, token="t", batch_size=3, **QUICK | settings).score(PROMPTS, answers)


def nested(depth):
    return json.loads('{"a":' * depth + "1" + "}" * depth)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"values": {"reward": 1.0}}, "scores in the channels reward; expected reward, cost"),
        (
            {"values": {"reward": 1.0, "cost": 0.0, "extra": 0.0}},
            "scores in the channels reward, cost, extra; expected",
        ),
        ({"values": {"reward": 1.0, "cost": "high"}}, "values.cost: Input should be a valid number"),
        ({"values": {"reward": 1.0, "cost": "0.5"}}, "values.cost: Input should be a valid number"),
        ({"values": {"reward": 1.0, "cost": True}}, "values.cost: Input should be a valid number"),
        ({"values": {"reward": 1.0, "cost": None}}, "values.cost: Input should be a valid number"),
        ({"values": {"reward": 1.0, "cost": float("nan")}}, "values.cost: Input should be a finite number"),
        ({"values": {"reward": 1.0, "cost": float("-inf")}}, "values.cost: Input should be a finite number"),
        ({"values": {"reward": 1.0, "cost": 1e39}}, "values.cost: Input should be less than or equal to"),
        ({"values": {"reward": 1.0, "cost": 10**400}}, "values.cost: Input should be"),
        ({"values": [1.0, 2.0]}, "values: Input should be a valid dictionary"),
        ({"values": {}, "unscorable": 7}, "unscorable: Input should be a valid string"),
        ({"values": {}, "index": 3}, "index: Extra inputs are not permitted"),
        ({"values": nested(300)}, "a score that cannot be read"),
        (["reward", 1.0], "the record: Input should be"),
        ("reward", "the record: Input should be"),
        (None, "0 scores for 1 response: expected one"),  # the record is missing
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:50],
)
def test_a_score_that_is_none_costs_its_row_alone(lie, reason):
    with Liar(lie) as server:
        found = scores_with_a_lie(server)
    assert [dict(s.values) for s in found] == [{} if n == 4 else {"reward": 1.0, "cost": -1.0} for n in range(7)]
    assert reason in found[4].unscorable
    assert not any(s.unscorable for n, s in enumerate(found) if n != 4)


@pytest.mark.parametrize("fault", sorted(set(BROKEN) - {"429"}))
def test_an_answer_that_is_none_costs_its_row_alone(fault):
    with Liar(faults=[f'{fault}+"lie"']) as server:
        found = scores_with_a_lie(server)
    assert [bool(s.values) for s in found] == [n != 4 for n in range(7)]
    assert found[4].unscorable.startswith("the scorer failed: ")
    assert found[4].unscorable.isprintable()


def test_values_of_a_row_that_is_unscorable_are_not_used():
    with Liar({"values": {"reward": 1.0, "cost": 1.0}, "unscorable": "too long"}) as server:
        found = scores_with_a_lie(server)
    assert (found[4].values, found[4].unscorable) == ({}, "too long")


@pytest.mark.parametrize(
    "answer", [{"scores": {}}, {"scores": "none"}, {}, [], "no", {"scores": []}, {"scores": [1] * 9}]
)
def test_answers_that_are_not_scores_are_not_used(answer):
    with Liar() as server:
        server.answer = lambda method, path, body: (
            answer if body else {"status": "ok", "source": "liar", "channels": CHANNELS}
        )
        found = RemoteScorer(server.url, token="t", **QUICK).score(PROMPTS[:2], ANSWERS[:2])
    assert not any(s.values for s in found)
    assert all(s.unscorable for s in found)


def test_a_response_that_no_json_can_hold_is_not_sent():
    with Liar() as server:
        answers = [Completion(prompt_id=PROMPTS[0].id, text=text) for text in ("half a pair \ud800", "fine")]
        found = RemoteScorer(server.url, token="t", **QUICK).score(PROMPTS[:1] * 2, answers)
        assert [len(body["rows"]) for body in server.bodies if body] == [1]
    assert "surrogate" in found[0].unscorable
    assert found[1].values


class LeavingLiar(Leaving, Liar):
    pass


def test_scores_that_came_before_a_server_was_gone_are_kept():
    with LeavingLiar() as server:
        found = RemoteScorer(server.url, token="t", batch_size=2, concurrency=1, **QUICK).score(PROMPTS, ANSWERS)
    assert [bool(s.values) for s in found] == [True] * 4 + [False] * 3
    assert all("nobody answers" in s.unscorable for s in found[4:])


def test_the_command_serves_a_saved_model(tmp_path):
    ScoreModel(load_backbone("random:llama?hidden=32")).save_pretrained(tmp_path / "scores")
    command = [sys.executable, "-m", "poise", "serve-scorer", str(tmp_path / "scores"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("Scoring reward, cost at http://127.0.0.1:"), process.communicate()
        scorer = RemoteScorer(first.split()[-1], token=second.split()[-1], expect=CHANNELS)
        assert [s.values.keys() for s in scorer.score(PROMPTS[1:], ANSWERS[1:])] == [CHANNELS.keys()] * 6
    finally:
        process.terminate()
        process.communicate(timeout=30)
