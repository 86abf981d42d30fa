"""The scorer's server against clients that are many, slow, hostile or wrong: all are answered, none holds it up."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from poise.errors import ConfigError
from poise.feedback.batching import QueueFull, ScoringQueue
from poise.feedback.remote import RemoteScorer, RowScores, ScoreRow
from poise.feedback.serving import Limits, ScorerServer
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.types import Completion, Prompt, Scores

ROW = {"messages": [{"role": "user", "content": "Hello"}], "response": "Hi"}
LENGTH = {"length": False}


class Lengths:
    """Scores by length, after a pause; keeps the sizes of its batches."""

    def __init__(self, pause=0.0):
        self.pause, self.batches = pause, []

    def score(self, prompts, completions):
        self.batches.append(len(completions))
        time.sleep(self.pause)
        return [Scores(values={"length": float(len(c.text))}) for c in completions]


def serve(scorer=None, **limits):
    return ScorerServer(scorer or Lengths(), LENGTH, token="t", limits=Limits(**limits))


def connect(server):
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def head(method="POST", path="/score", **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def everything(connection):
    """All that comes until the server hangs up."""
    data = b""
    with suppress(ConnectionResetError):  # of what was sent after it
        while part := connection.recv(65536):
            data += part
    return data


def raw(server, *parts):
    with connect(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        return everything(connection)


def post(server, rows, token="t"):
    address = urlsplit(server.url)
    client = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        client.request("POST", "/score", json.dumps({"rows": rows}), {"Authorization": f"Bearer {token}"})
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        client.close()


def at_once(server, number, rows):
    """The answers to `number` clients that all connect before any of them asks."""
    ready = threading.Barrier(number)

    def one(index):
        ready.wait(30)
        return post(server, rows(index))

    with ThreadPoolExecutor(number) as clients:
        return list(clients.map(one, range(number)))


def test_three_hundred_clients_at_once_are_all_answered_with_their_own_scores():
    with serve() as server:
        answers = at_once(server, 300, lambda index: [ROW | {"response": "x" * index}])
        assert [status for status, _, _ in answers] == [200] * 300
        assert [a["scores"][0]["values"]["length"] for _, _, a in answers] == [float(index) for index in range(300)]
        assert len(server.scorer.batches) < 300  # merged
        assert max(server.scorer.batches) <= 64


def test_clients_for_whom_there_is_no_room_are_told_when_to_come_again():
    with serve(Lengths(pause=0.1), rows_of_a_batch=4, rows_waiting=8) as server:
        answers = at_once(server, 100, lambda index: [ROW])
    told = [(headers, answer) for status, headers, answer in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert all(1 <= int(headers["retry-after"]) <= 60 and "wait" in answer["error"] for headers, answer in told)


def test_clients_beyond_the_number_of_connections_are_told_to_come_again():
    with serve(connections=10) as server:
        idle = [connect(server) for _ in range(10)]
        time.sleep(0.2)
        status, headers, answer = post(server, [ROW])
        for connection in idle:
            connection.close()
        assert (status, headers["Retry-After"], answer) == (503, "1", {"error": "too many connections"})
        time.sleep(0.2)
        assert post(server, [ROW])[0] == 200


def test_a_client_that_is_told_to_come_again_does_and_gets_its_scores():
    prompts = [Prompt.of(f"Question {number}") for number in range(40)]
    answers = [Completion(prompt_id=p.id, text="x" * n) for n, p in enumerate(prompts)]
    with serve(Lengths(pause=0.02), rows_of_a_batch=2, rows_waiting=4) as server:
        scorer = RemoteScorer(server.url, token="t", batch_size=2, concurrency=8, attempts=9, backoff_s=0.05)
        found = scorer.score(prompts, answers)
    assert [s.values.get("length") for s in found] == [float(n) for n in range(40)]


def test_a_small_request_does_not_wait_for_a_large_one():
    with serve(Lengths(pause=0.02), rows_of_a_batch=8) as server, ThreadPoolExecutor(1) as other:
        large = other.submit(post, server, [ROW] * 800)
        time.sleep(0.3)
        assert post(server, [ROW])[0] == 200
        assert not large.done()
        assert len(large.result()[2]["scores"]) == 800


def test_without_the_token_not_a_byte_of_the_body_is_waited_for():
    with serve() as server:
        for wrong in ("Bearer no", "t", "", "Bearer \xff"):
            started = time.monotonic()
            with connect(server) as connection:
                connection.sendall(head(Content_Length=10**6).replace(b"\r\n\r\n", b"\r\n", 1))
                connection.sendall(b"Authorization: " + wrong.encode("latin-1") + b"\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 401")
            assert time.monotonic() - started < 1.5


def test_a_client_that_sends_all_of_a_large_body_still_hears_that_its_token_is_wrong():
    with serve() as server:
        status, _, answer = post(server, [ROW | {"response": "x" * 2**20}] * 10, token="wrong")
    assert (status, answer["error"].split(":")[0]) == (401, "wrong or no token")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(Authorization="Bearer t", Content_Length=17 * 2**20), 413),
        (head(Authorization="Bearer t", Content_Length=10**18), 413),
        (head(Authorization="Bearer t", Content_Length=10**30), 400),
        (head(Authorization="Bearer t"), 411),
        (head(Authorization="Bearer t", Transfer_Encoding="chunked"), 411),
        (head(Authorization="Bearer t", Transfer_Encoding="chunked", Content_Length=5), 400),
        (head(Authorization="Bearer t", Content_Length=5, Transfer_encoding="Chunked"), 400),
        (head(Authorization="Bearer t", Transfer_Encoding="gzip, chunked", Content_Length=5), 501),
        (head(Authorization="Bearer t", Content_Length=5, content_length=6), 400),
        (head(Authorization="Bearer t", Content_Length="+5"), 400),
        (head(Authorization="Bearer t", Content_Length="5, 6"), 400),
        (head(Authorization="Bearer t", Content_Length="0x5"), 400),
        (head(Authorization="Bearer t", Content_Length=-5), 400),
        (head(Authorization="Bearer t", Content_Length=5, **{"Transfer_Encoding ": "chunked"}), 400),
        (head(Authorization="Bearer t", Content_Length=5, Content_Encoding="gzip"), 415),
        (head("GET", "/health", Content_Length=5), 413),
        (head("DELETE", Authorization="Bearer t"), 404),
        (head("POST", "/other", Authorization="Bearer t", Content_Length=5), 404),
        (head("POST", "/other", Content_Length=5), 401),
        (head(Authorization="Bearer t", X="x" * 40_000), 431),
        (head(Authorization="Bearer t", X="x" * 10**6), 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    ],
)
def test_a_head_that_leaves_doubt_is_refused_and_nothing_after_it_is_taken_for_a_request(request_head, status):
    smuggled = b"0\r\n\r\n" + head("GET", "/health")
    with serve() as server:
        found = raw(server, request_head, smuggled)
    assert found.startswith(b"HTTP/1.1 ")
    assert found.count(b"HTTP/1.1 ") == 1
    assert int(found[9:12]) in ({status, 400} if status == 501 else {status})
    assert b"Traceback" not in found


def test_slow_heads_and_slow_bodies_are_hung_up_on_and_hold_nobody_up():
    def drip(connection, rest):
        with connection, suppress(OSError):
            for byte in rest:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
            return connection.recv(4096)
        return b""

    with serve(seconds_for_the_head=0.6, seconds_for_the_body=0.6) as server, ThreadPoolExecutor(40) as others:
        slow_heads = [others.submit(drip, connect(server), head("GET", "/health")) for _ in range(20)]
        slow_bodies = []
        for _ in range(20):
            connection = connect(server)
            connection.sendall(head(Authorization="Bearer t", Content_Length=1000))
            slow_bodies.append(others.submit(drip, connection, b"x" * 40))
        assert post(server, [ROW])[0] == 200
        started = time.monotonic()
        assert not any(b"200 OK" in each.result() for each in slow_heads + slow_bodies)
        assert time.monotonic() - started < 8
        with connect(server) as silent:
            assert everything(silent) == b""


def test_a_body_that_does_not_come_in_time_is_told_so():
    with serve(seconds_for_the_body=0.3) as server:
        found = raw(server, head(Authorization="Bearer t", Content_Length=1000), b"{")
    assert found.startswith(b"HTTP/1.1 408")
    assert b"within 0.3 s" in found


@pytest.mark.parametrize(
    "body",
    [b"[" * 10**5, b'{"rows":' * 10**4, b"\xff\xfe", b"", b'{"rows": [' + b"9" * 10**5 + b"]}", b'"\\ud800"', b"null"],
)
def test_a_body_that_is_no_request_is_refused_with_the_reason(body):
    with serve() as server:
        found = raw(server, head(Authorization="Bearer t", Content_Length=len(body), Connection="close"), body)
    assert found.startswith(b"HTTP/1.1 422")
    assert json.loads(found.split(b"\r\n\r\n", 1)[1])["error"].isprintable()


def conversation(turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": "word " * 20} for i in range(turns)]


def test_what_the_scorer_does_not_see_whole_is_unscorable_and_takes_no_time():
    model = ScoreModel(load_backbone("random:llama?hidden=32"), max_prompt_tokens=64, max_response_tokens=16)
    channels = {channel.name: channel.higher_is_worse for channel in model.channels}
    rows = [
        ROW,
        ROW | {"response": "word " * 40},
        ROW | {"messages": conversation(7)},
        ROW | {"messages": conversation(2001)},
        ROW | {"response": "x" * 300_000},
    ]
    with ScorerServer(model, channels, token="t", sees_all=model.sees_all) as server:
        started = time.monotonic()
        found = post(server, rows)[2]["scores"]
        assert time.monotonic() - started < 5
    assert found[0]["values"].keys() == channels.keys()
    assert [row["values"] for row in found[1:]] == [{}] * 4
    assert all(row["unscorable"].startswith("longer than the window") for row in found[1:])


class Odd:
    """Fails on one row, says too few or odd things about others."""

    def score(self, prompts, completions):
        if any("fail" in c.text for c in completions):
            raise MemoryError("/home/someone/model")
        values = {"nan": float("nan"), "text": "high", "none": None}
        scores = [Scores(values={"length": values.get(c.text, 1.0)}) for c in completions]
        return scores[:-1] if any("few" in c.text for c in completions) else scores


def test_a_row_on_which_the_scorer_fails_costs_no_other(capsys):
    said = ["a", "fail", "b", "nan", "c", "few", "text", "d", "none", "e"]
    with serve(Odd()) as server:
        status, _, answer = post(server, [ROW | {"response": text} for text in said])
    assert status == 200
    assert [bool(row["values"]) for row in answer["scores"]] == [len(text) == 1 for text in said]
    assert "/home/someone" not in json.dumps(answer)
    assert "MemoryError" in answer["scores"][1]["unscorable"]
    assert "Traceback" not in capsys.readouterr().err


def test_rows_of_a_client_that_has_left_are_not_scored():
    scorer = Lengths(pause=0.2)
    with serve(scorer, rows_of_a_batch=4) as server:
        body = json.dumps({"rows": [ROW] * 400}).encode()
        with connect(server) as connection:
            connection.sendall(head(Authorization="Bearer t", Content_Length=len(body)) + body)
            time.sleep(0.5)
        time.sleep(0.5)
        assert post(server, [ROW])[0] == 200
    assert sum(scorer.batches) < 100


def test_a_queue_that_is_full_says_when_and_one_that_is_closed_gives_up():
    begun, go_on = threading.Event(), threading.Event()

    def score(rows):
        begun.set()
        go_on.wait(10)
        return [RowScores(values={})] * len(rows)

    row = ScoreRow.model_validate(ROW)
    queue = ScoringQueue(score, batch_rows=2, max_rows=4)
    first = queue.put([row] * 2)
    begun.wait(10)
    large = queue.put([row] * 9)  # it would never fit otherwise
    with pytest.raises(QueueFull) as full:
        queue.put([row])
    assert 1 <= full.value.seconds <= 60
    assert queue.put([]).result(1) == []
    queue.close()
    go_on.set()
    assert len(first.result(5)) == 2
    assert large.cancelled()
    with pytest.raises(QueueFull):
        queue.put([row])


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("203.0.113.1", 0)])
def test_an_address_that_cannot_be_listened_at_is_an_error_that_names_it(host, port):
    with pytest.raises(ConfigError, match=f"cannot listen on {host}"):
        ScorerServer(Lengths(), LENGTH, token="t", host=host, port=port)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_answers_what_is_under_way_and_ends_well(stop):
    program = """
import signal, time
from poise.cli.serving import _stoppable
from poise.feedback.serving import ScorerServer
from poise.types import Scores
class Slow:
    def score(self, prompts, completions):
        print("scoring", flush=True)
        time.sleep(1.0)
        return [Scores(values={"length": 1.0}) for _ in completions]
with _stoppable():
    server = ScorerServer(Slow(), {"length": False}, token="t")
    print(server.url, flush=True)
    server.serve_forever()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()
        with ThreadPoolExecutor(1) as client:
            prompt = Prompt.of("Hello")
            scorer = RemoteScorer(url, token="t", attempts=1)
            scorer.health()
            scores = client.submit(scorer.score, [prompt], [Completion(prompt_id=prompt.id, text="Hi")])
            assert process.stdout.readline() == "scoring\n"
            process.send_signal(stop)
            assert scores.result(20)[0].values == {"length": 1.0}
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "Stopped\n", "")
    finally:
        process.kill()
        process.communicate()


def test_a_scorer_behind_a_server_reads_tools_and_scores_no_image():
    seen = []

    class Reads:
        def score(self, prompts, completions):
            seen.extend(prompts)
            return [Scores(values={"reward": 1.0}) for _ in prompts]

    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    asked = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "name": "add"},
    ]
    with_tools = Prompt.of(asked).with_tools([call])
    image = Prompt.of([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}])
    with ScorerServer(Reads(), {"reward": False}, token="t") as server:
        scorer = RemoteScorer(server.url, token="t")
        prompts = [with_tools, image]
        found = scorer.score(prompts, [Completion(prompt_id=prompt.id, text="Four.") for prompt in prompts])
    assert found[0].values == {"reward": 1.0} and [prompt.id for prompt in seen] == [with_tools.id]
    assert not found[1].values and "reads only text" in found[1].unscorable
