"""llama-server's side of the wire; shapes as in the recordings."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.llamacpp import LlamaCpp
from orchestratord.ports import Engine
from tests.engines.fake import Text, event, json_response
from tests.engines.support import CLOCK

CTX, SLOTS = 2048, 4


def failure(message: str, kind: str, status: str, **more: int) -> bytes:
    document = {"code": int(status.split()[0]), "message": message, "type": kind, **more}
    return json_response({"error": document}, status)


class LlamaCppWire:
    name = "llamacpp"
    stream_path = "/completion"
    health_path = "/health"
    not_ready = failure("Loading model", "unavailable_error", "503 Service Unavailable")

    def driver(self, url: str, **options: Any) -> Engine:
        return LlamaCpp(url, clock=CLOCK, **options)

    def control(self, method: str, path: str, body: Any, busy: int) -> bytes | None:
        match method, path:
            case "GET", "/health":
                return json_response({"status": "ok"})
            case "GET", "/props":
                return json_response(
                    {
                        "default_generation_settings": {"n_ctx": CTX},
                        "total_slots": SLOTS,
                        "build_info": "b1-fake",
                        "model_path": "fake.gguf",
                        "chat_template": "{{ messages }}",
                    }
                )
            case "GET", "/slots":
                return json_response(
                    [{"id": slot, "n_ctx": CTX, "is_processing": slot < busy} for slot in range(SLOTS)]
                )
            case "POST", "/tokenize":
                return json_response({"tokens": list(range(mock_text.count(body["content"])))})
            case "POST", "/apply-template":
                prompt = "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"])
                return json_response({"prompt": prompt + "assistant:"})
        return None

    def refusal(self, body: Any) -> bytes | None:
        if "json_schema" in body and "no such type" in str(body["json_schema"]):
            return failure("bad schema", "invalid_request_error", "400 Bad Request")
        if (tokens := mock_text.count(body["prompt"])) > CTX:
            message = "the request exceeds the available context size"
            return failure(message, "exceed_context_size_error", "400 Bad Request", n_prompt_tokens=tokens, n_ctx=CTX)
        return None

    def events(self, body: Any) -> list[bytes]:
        sampling = Sampling(temperature=body.get("temperature"))
        text = Text.of(body["prompt"], body["n_predict"], body["seed"], sampling, stop=body.get("stop") or ())
        events = [
            event({"index": 0, "content": token, "stop": False, "tokens_predicted": n, "tokens_evaluated": 1})
            for n, token in enumerate(text.tokens, 1)
        ]
        end = {
            "content": "",
            "stop": True,
            "stop_type": "limit" if text.reason == "length" else "word",
            "tokens_predicted": len(text.tokens),
            "tokens_evaluated": text.prompt_tokens,
        }
        return [*events, event(end)]

    def error(self, message: str) -> bytes:
        return event({"error": {"code": 500, "message": message, "type": "server_error"}})

    def full(self) -> bytes:
        return failure("no slot available", "unavailable_error", "503 Service Unavailable")
