"""Strict local imitations of servers: they refuse what the real ones would, and fail on demand.

`ChatServer` speaks the chat completions of the OpenAI protocol. Its answers depend on model, messages and seed alone.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import socket
import threading
import time
import traceback
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

KNOWN = {
    *("model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "top_logprobs"),
    *("top_k", "return_token_ids", "stop_token_ids"),
}
BOMB = gzip.compress(bytes(96 * 2**20), 1)
# what a server may answer instead of an answer: status, content, headers
ANSWERS = {
    "broken": (200, b'{"choices": [{"mess', {}),
    "shapeless": (200, b'{"choices": []}', {}),
    "deep": (200, b"[" * 200_000, {}),
    "deep text": (500, b'{"error":' * 100_000, {}),
    "digits": (200, b"9" * 10_000, {}),
    "list": (200, b'{"choices": [[]]}', {}),
    "latin": (200, b'{"choices": "\xe9"}', {"Content-Type": "application/json"}),
    "bomb": (200, BOMB, {"Content-Encoding": "gzip"}),
    "bomb of an error": (400, BOMB, {"Content-Encoding": "gzip"}),
    "unknown encoding": (200, b"{}", {"Content-Encoding": "br"}),
    "no gzip": (200, b"{}", {"Content-Encoding": "gzip"}),
    "429": (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.05"}),
    "500": (500, b"out of luck", {}),
    "403": (403, b'{"error": "this text is filtered"}', {}),
    "escape": (400, b'{"error": "\\u001b[2Jgone\\r\\nError: all is well"}', {}),
}
FAULTS = {*ANSWERS, "hang", "killed"}


class Refusal(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class ImitationServer:
    """A server on a free loopback port; `faults` are what happens to the next requests instead of an answer.

    A fault that ends in + befalls every request of whose body it knows the text: `faults={"500+hello"}`.
    """

    models = ("imitation",)

    def __init__(self, *, token="", faults=(), delay=0.0):
        self.token, self.delay = token, delay
        self.faults = [fault for fault in faults if "+" not in fault]
        self.curses = [fault.split("+") for fault in faults if "+" in fault]
        self.bodies, self.paths, self.lock = [], [], threading.Lock()
        self.under_way = self.most_under_way = 0
        self.faults_met = Counter()

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.serve(self, None)

            def do_POST(self):
                server.serve(self, self.rfile.read(int(self.headers["content-length"])))

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64

            def handle_error(self, *_):
                pass  # a client that hangs up is part of the tests

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def serve(self, handler, body):
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            time.sleep(self.delay)
            self._serve(handler, body)
        finally:
            with self.lock:
                self.under_way -= 1

    def _serve(self, handler, body):
        fault = self._fault(handler.path, body)
        if fault == "hang":
            time.sleep(1.0)
        if fault in ("hang", "killed"):
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        if fault:
            status, content, headers = ANSWERS[fault]
            return reply(handler, status, content, {"Content-Type": "application/json"} | headers)
        try:
            if self.token and handler.headers.get("authorization") != f"Bearer {self.token}":
                raise Refusal(401, "Unauthorized")
            answer = self.answer(handler.command, handler.path, None if body is None else json.loads(body))
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            reply(handler, 200, content, {} if isinstance(answer, str) else {"Content-Type": "application/json"})
        except Refusal as refusal:
            error = {"error": {"message": str(refusal), "code": refusal.status}}
            reply(handler, refusal.status, json.dumps(error).encode())
        except Exception:  # a mistake of the imitation is no fault of the client's
            reply(handler, 418, traceback.format_exc()[-1500:].encode(), {"Content-Type": "text/plain"})

    def _fault(self, path, body):
        with self.lock:
            self.paths.append(path)
            self.bodies.append(None if body is None else json.loads(body))
            cursed = [fault for fault, text in self.curses if body is not None and text.encode() in body]
            fault = cursed[0] if cursed else self.faults.pop(0) if self.faults else ""
            self.faults_met[fault] += 1
        assert fault in FAULTS | {""}
        return fault

    def answer(self, method, path, body):
        if (method, path) == ("GET", "/v1/models"):
            return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if (method, path) == ("POST", "/v1/chat/completions"):
            return self.chat(body)
        raise Refusal(404, "Not Found")

    def chat(self, body):
        check_body(body, KNOWN, self.models)
        messages = body.get("messages")
        if not messages or any(set(m) != {"role", "content"} for m in messages) or messages[-1]["role"] == "assistant":
            raise Refusal(400, "messages must end with the user's")
        words = words_for(body, messages)
        tokens, finish = words[: body["max_tokens"]], "length" if len(words) > body["max_tokens"] else "stop"
        text = "".join(tokens)
        for stop in body.get("stop", ()):
            text = text.split(stop)[0]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        if body.get("logprobs"):
            listed = list_tokens(body.get("top_logprobs", 0))
            choice["logprobs"] = {
                "content": [
                    {"token": t, "logprob": -0.5 * (i + 1), "top_logprobs": listed} for i, t in enumerate(tokens)
                ]
            }
        if body.get("return_token_ids"):
            choice["token_ids"] = [sum(token.encode()) % 256 for token in tokens]
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice]}


def check_body(body, known, models):
    if unknown := body.keys() - known:
        raise Refusal(400, f"unknown fields {sorted(unknown)}")
    if body.get("model") not in models:
        raise Refusal(404, f"The model `{body.get('model')}` does not exist.")
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        raise Refusal(400, "max_tokens must be at least 1")
    if not 0 <= body.get("temperature", 1.0) <= 2 or not 0 < body.get("top_p", 1.0) <= 1:
        raise Refusal(400, "temperature or top_p out of range")
    if not isinstance(body.get("seed", 0), int) or body.get("top_logprobs", 0) > 20:
        raise Refusal(400, "seed or top_logprobs out of range")
    if "top_logprobs" in body and not body.get("logprobs"):
        raise Refusal(400, "top_logprobs needs logprobs")


def words_for(body, messages):
    """Three to ten words that follow from model, messages and seed."""
    seed = body.get("seed", 0) if body.get("temperature", 1.0) > 0 else 0
    digest = hashlib.sha256(json.dumps([body["model"], messages, seed]).encode()).hexdigest()
    return [f" {digest[i * 4 : i * 4 + 4]}" for i in range(3 + int(digest[-1], 16) % 8)]


def list_tokens(number):
    tokens = [("yes", -0.4), (" yes", -2.0), ("no", -1.5), ("Y", -3.0), ("the", -4.0)]
    return [{"token": token, "logprob": value} for token, value in tokens[:number]]


def reply(handler, status, content, headers=None):
    handler.send_response(status)
    for name, value in ({"Content-Type": "application/json"} if headers is None else headers).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


ChatServer = ImitationServer


class Leaving:
    """Goes before a server that listens no more after two answers."""

    def serve(self, handler, body):
        asked = [body for body in self.bodies if body is not None]
        if len(asked) == 2:
            self.http.shutdown()
            self.http.server_close()
            handler.close_connection = True
        else:
            super().serve(handler, body)


class VLLMServer(ImitationServer):
    """`vllm serve BASE --enable-lora` as documented, with a tiny model and adapters that peft loads from their folders.

    Answers are drawn token by token by the model itself, so that they tell which weights the server has.
    """

    COMPLETION = KNOWN - {"messages", "top_logprobs"} | {"prompt"}

    def __init__(self, base, *, runtime_updating=True, max_lora_rank=16, processed=True, skew=0.0, **settings):
        super().__init__(**settings)
        from poise.models.load import load_backbone

        self.base, self.updating, self.max_rank = base, runtime_updating, max_lora_rank
        self.processed, self.skew = processed, skew
        self.backbone = load_backbone(base)
        self.adapters, self.most_adapters, self.compute = {}, 0, threading.Lock()

    @property
    def models(self):
        return (self.base, *self.adapters)

    def answer(self, method, path, body):
        if (method, path) == ("POST", "/v1/completions"):
            with self.compute:
                return self.complete(body)
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and method == "POST" and self.updating:
            with self.compute:
                return self.load(body) if "unload" not in path else self.unload(body)
        return super().answer(method, path, body)

    def load(self, body):
        from peft import PeftModel

        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            raise Refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").exists():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(Path(path, "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            raise Refusal(400, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        with warnings.catch_warnings(action="ignore"):  # peft and transformers disagree about a name
            self.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.backbone.model), path).eval()
        self.most_adapters = max(self.most_adapters, len(self.adapters))
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body):
        name = body.get("lora_name")
        if not name:
            raise Refusal(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self.adapters:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def complete(self, body):
        check_body(body, self.COMPLETION, self.models)
        if not body.get("prompt") or any(not isinstance(i, int) or not 0 <= i < 260 for i in body["prompt"]):
            raise Refusal(400, "prompt must be text or token ids")
        model = self.adapters.get(body["model"], self.backbone.model)
        tokens, values, finish = self.draw(model, list(body["prompt"]), body)
        choice = {"index": 0, "text": self.backbone.tokenizer.decode(tokens, skip_special_tokens=True)}
        choice |= {"finish_reason": finish, "logprobs": {"tokens": tokens, "token_logprobs": values}}
        return {
            "object": "text_completion",
            "choices": [choice | {"token_ids": tokens, "prompt_token_ids": body["prompt"]}],
        }

    @torch.no_grad()
    def draw(self, model, ids, body):
        generator = torch.Generator().manual_seed(body["seed"])
        start, values, finish = len(ids), [], "length"
        for _ in range(body["max_tokens"]):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            scaled = logits / (body["temperature"] or 1.0)
            token = (
                int(logits.argmax())
                if body["temperature"] == 0
                else int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
            )
            values.append(float((scaled if self.processed else logits).log_softmax(-1)[token]) - self.skew)
            ids.append(token)
            if token == self.backbone.tokenizer.eos_token_id:
                finish = "stop"
                break
        return ids[start:], values, finish
