"""vLLM 0.32's side of the wire; shapes as in recordings/vllm."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.vllm import Vllm
from orchestratord.ports import Engine
from tests.engines.fake import Text, event, json_response
from tests.engines.support import CLOCK, response

CTX = 2048
METRICS = b"""# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",enable_prefix_caching="True",engine="0",num_gpu_blocks="64"} 1.0
"""


def failure(message: str, kind: str, status: str) -> bytes:
    document = {"message": message, "type": kind, "param": None, "code": int(status.split()[0])}
    return json_response({"error": document}, status)


class VllmWire:
    name = "vllm"
    stream_path = "/v1/completions"
    health_path = "/health"
    not_ready = response(b"", "503 Service Unavailable")

    def driver(self, url: str, **options: Any) -> Engine:
        return Vllm(url, clock=CLOCK, **options)

    def control(self, method: str, path: str, body: Any, busy: int) -> bytes | None:
        match method, path:
            case "GET", "/health":
                return response(b"", content_type="text/plain")
            case "GET", "/version":
                return json_response({"version": "0.32.0"})
            case "GET", "/metrics":
                return response(METRICS, content_type="text/plain")
            case "GET", "/v1/completions":
                return json_response({"detail": "Method Not Allowed"}, "405 Method Not Allowed")
            case "GET", "/v1/models":
                model = {"id": "fake", "object": "model", "root": "org/fake", "parent": None, "max_model_len": CTX}
                adapter = {**model, "id": "lora", "root": "org/lora", "parent": "fake"}
                return json_response({"object": "list", "data": [adapter, model]})
            case "POST", "/tokenize":
                return self._tokens(body)
            case "POST", "/detokenize":
                return json_response({"prompt": "".join(map(chr, body["tokens"])).replace("\x01", "<s>")})
        return None

    @staticmethod
    def _tokens(body: Any) -> bytes:
        """A begin mark, then a token for every character but the prompt's counted words: see `mock_text.count`."""
        text = body.get("prompt")
        if "messages" in body:
            text = "<s>" + "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"]) + "assistant:"
            tokens = [1, *map(ord, text.removeprefix("<s>"))]
        elif body["prompt"].startswith(("user:", "system:")):
            tokens = [1, *map(ord, body["prompt"])]
        else:
            tokens = list(range(mock_text.count(text)))
        marks = ["<s>", *(chr(token) for token in tokens[1:])] if body.get("return_token_strs") else None
        return json_response({"count": len(tokens), "max_model_len": CTX, "tokens": tokens, "token_strs": marks})

    def refusal(self, body: Any) -> bytes | None:
        if body["max_tokens"] > CTX or mock_text.count(body["prompt"]) > CTX:
            message = f"This model's maximum context length is {CTX} tokens."
            return failure(message, "BadRequestError", "400 Bad Request")
        return None

    def events(self, body: Any) -> list[bytes]:
        sampling = Sampling(temperature=body.get("temperature"))
        room = CTX - mock_text.count(body["prompt"])  # cut to fit without a word, as the real one does
        stop = body.get("stop") or ()
        text = Text.of(body["prompt"], min(body["max_tokens"], room), body["seed"], sampling, stop=stop)
        events = [
            self._event(
                [self._choice(token, text.reason if count == len(text.tokens) else None)], text.prompt_tokens, count
            )
            for count, token in enumerate(text.tokens, 1)
        ]
        return [*events, self._event([], text.prompt_tokens, len(text.tokens)), b"data: [DONE]\n\n"]

    @staticmethod
    def _choice(text: str, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    @staticmethod
    def _event(choices: list[dict[str, Any]], tokens_in: int, tokens_out: int) -> bytes:
        usage = {"prompt_tokens": tokens_in, "total_tokens": tokens_in + tokens_out, "completion_tokens": tokens_out}
        return event({"id": "cmpl-1", "object": "text_completion", "model": "fake", "choices": choices, "usage": usage})

    def error(self, message: str) -> bytes:
        return event({"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})

    def full(self) -> bytes:
        return failure("no room", "ServiceUnavailable", "503 Service Unavailable")
