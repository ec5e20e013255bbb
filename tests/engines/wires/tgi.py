"""TGI's side of the wire. NOT recorded from a server: made from the router's documented protocol (3.3), with its rules
of what it refuses. Two independent real clients accept it: see test_tgi_clients.
"""

from __future__ import annotations

from typing import Any

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.tgi import Tgi
from orchestratord.ports import Engine
from tests.engines.fake import Text, event, json_response
from tests.engines.support import CLOCK, response

CTX = 2048
INFO = {
    "model_id": "org/fake",
    "model_sha": "0" * 40,
    "model_pipeline_tag": "text-generation",
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": CTX - 1,
    "max_total_tokens": CTX,
    "validation_workers": 2,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "version": "3.3.6",
    "sha": None,
    "docker_label": None,
}


def wrong(inputs: str, parameters: dict[str, Any], *, stream: bool) -> str | None:
    """What the router's validation says, or None."""
    best_of, length = parameters.get("best_of") or 1, parameters.get("max_new_tokens") or 100
    temperature, top_p, top_k = (parameters.get(name) for name in ("temperature", "top_p", "top_k"))
    stop = parameters.get("stop") or ()
    tokens = mock_text.count(inputs)
    faults = {
        "`inputs` cannot be empty": not inputs,
        "`best_of` is not supported when streaming tokens": stream and best_of > 1,
        "`temperature` must be strictly positive": temperature is not None and temperature <= 0,
        "`top_p` must be > 0.0 and < 1.0": top_p is not None and not 0 < top_p < 1,
        "`top_k` must be strictly positive": top_k is not None and top_k <= 0,
        "`repetition_penalty` must be strictly positive": (parameters.get("repetition_penalty") or 1) <= 0,
        "`frequency_penalty` must be >= -2.0 and <= 2.0": not -2 <= (parameters.get("frequency_penalty") or 0) <= 2,
        "`max_new_tokens` must be strictly positive": parameters.get("max_new_tokens") == 0,
        "`stop` supports up to 4 stop sequences": len(stop) > 4,
        f"`inputs` tokens + `max_new_tokens` must be <= {CTX}. Given: {tokens} `inputs` tokens and {length} "
        "`max_new_tokens`": tokens + length > CTX,
    }
    said = next((message for message, is_so in faults.items() if is_so), None)
    return None if said is None else f"Input validation error: {said}"


def written(inputs: str, parameters: dict[str, Any]) -> Text:
    knobs = ("temperature", "top_k", "top_p", "typical_p")
    sampled = parameters.get("do_sample") or any(parameters.get(knob) is not None for knob in knobs)
    return Text.of(
        inputs,
        parameters.get("max_new_tokens") or 100,
        parameters.get("seed") or 0,
        Sampling(temperature=1.0 if sampled else 0.0),
        keep_stop=True,
        stop=parameters.get("stop") or (),
    )


def events(inputs: str, parameters: dict[str, Any]) -> list[bytes]:
    """A stream: one event a token, the last of them with the whole text."""
    text = written(inputs, parameters)
    made = []
    for index, token in enumerate(text.tokens, 1):
        last = index == len(text.tokens)
        details = {
            "finish_reason": "length" if text.reason == "length" else "stop_sequence",
            "generated_tokens": len(text.tokens),
            "seed": parameters.get("seed"),
            "input_length": text.prompt_tokens,
        }
        made.append(
            event(
                {
                    "index": index,
                    "token": {"id": index, "text": token, "logprob": -0.5, "special": False},
                    "generated_text": "".join(text.tokens) if last else None,
                    "details": details if last and parameters.get("details") else None,
                }
            )
        )
    return made


def generated(inputs: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The reply without a stream."""
    text = written(inputs, parameters)
    whole: dict[str, Any] = {"generated_text": "".join(text.tokens)}
    if parameters.get("details"):
        whole["details"] = {
            "finish_reason": "length" if text.reason == "length" else "stop_sequence",
            "generated_tokens": len(text.tokens),
            "seed": parameters.get("seed"),
            "prefill": [],
            "tokens": [
                {"id": i, "text": token, "logprob": -0.5, "special": False} for i, token in enumerate(text.tokens, 1)
            ],
        }
    return whole


class TgiWire:
    name = "tgi"
    stream_path = "/generate_stream"
    health_path = "/health"
    not_ready = json_response({"error": "unhealthy", "error_type": "healthcheck"}, "503 Service Unavailable")

    def driver(self, url: str, **options: Any) -> Engine:
        return Tgi(url, clock=CLOCK, **options)

    def control(self, method: str, path: str, body: Any, busy: int) -> bytes | None:
        match method, path:
            case "GET", "/health" | "/":
                return response(b"", content_type="text/plain")
            case "GET", "/info":
                return json_response(INFO)
            case "GET", "/v1/models":
                return json_response({"object": "list", "data": [{"id": "org/fake", "object": "model"}]})
            case "POST", "/tokenize":
                return json_response(self._tokens(body["inputs"]))
            case "POST", "/chat_tokenize":
                text = "<s>" + "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"]) + "assistant:"
                made = self._tokens(text.removeprefix("<s>"))
                return json_response({"tokenize_response": made, "templated_text": text})
            case "POST", "/generate":
                return self._whole(body["inputs"], body.get("parameters") or {})
            case "POST", "/":  # what clients use: a switch between the two, and a list around the one
                parameters = body.get("parameters") or {}
                if body.get("stream"):
                    return response(
                        b"".join(self._stream(body["inputs"], parameters)), content_type="text/event-stream"
                    )
                return self._whole(body["inputs"], parameters, listed=True)
        return None

    @staticmethod
    def _tokens(text: str) -> list[dict[str, Any]]:
        words = ["<s>", *text.split()]
        return [{"id": sum(word.encode()), "text": word, "start": 0, "stop": len(word)} for word in words]

    @staticmethod
    def _whole(inputs: str, parameters: dict[str, Any], *, listed: bool = False) -> bytes:
        if (message := wrong(inputs, parameters, stream=False)) is not None:
            document = {"error": message, "error_type": "validation"}
            return json_response(document, "422 Unprocessable Entity")
        whole = generated(inputs, parameters)
        return json_response([whole] if listed else whole)

    @staticmethod
    def _stream(inputs: str, parameters: dict[str, Any]) -> list[bytes]:
        if (message := wrong(inputs, parameters, stream=True)) is not None:
            return [event({"error": message, "error_type": "validation"})]
        return events(inputs, parameters)

    def refusal(self, body: Any) -> bytes | None:
        return None  # it always answers 200

    def events(self, body: Any) -> list[bytes]:
        return self._stream(body["inputs"], body["parameters"])

    def error(self, message: str) -> bytes:
        return event({"error": f"Request failed during generation: {message}", "error_type": "generation"})

    def full(self) -> bytes:
        said = event({"error": "Model is overloaded", "error_type": "overloaded"})
        return response(said, content_type="text/event-stream")
