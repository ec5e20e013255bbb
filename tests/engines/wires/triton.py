"""Triton 2.51's side of the wire, in both dialects; shapes as in recordings/triton and the backends' documentation."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestratord.domain.request import Sampling
from orchestratord.infra.engines import mock_text
from orchestratord.infra.engines.triton import Triton
from orchestratord.ports import Engine
from tests.engines.fake import Text, event, json_response
from tests.engines.support import CLOCK, response

CTX = 2048
COMMON = ("text_input", "stream", "exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens")
PLAIN = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "random_seed", "stop_words")


class TritonWire:
    """one_text: the vLLM backend's dialect; else that of TensorRT-LLM."""

    health_path = "/v2/models/MODEL/ready"
    not_ready = json_response({"error": "Model version not ready"}, "400 Bad Request")

    def __init__(self, *, one_text: bool = False) -> None:
        self.one_text = one_text
        self.model = "vllm_model" if one_text else "ensemble"
        self.name = "triton-one-text" if one_text else "triton"
        self.health_path = f"/v2/models/{self.model}/ready"
        self.stream_path = f"/v2/models/{self.model}/generate_stream"

    def driver(self, url: str, **options: Any) -> Engine:
        return Triton(url, clock=CLOCK, slots=4, **options)

    def control(self, method: str, path: str, body: Any, busy: int) -> bytes | None:
        of_model = f"/v2/models/{self.model}"
        if (method, path) in (("GET", "/v2/health/live"), ("GET", f"{of_model}/ready")):
            return response(b"", content_type="text/plain")
        if (method, path) == ("GET", "/v2"):
            return json_response({"name": "triton", "version": "2.51.0", "extensions": []})
        if (method, path) == ("POST", "/v2/repository/index"):
            others = [{"name": "preprocessing", "version": "1", "state": "READY"}, {"name": "broken"}]
            return json_response([*others, {"name": self.model, "version": "1", "state": "READY"}])
        if (method, path) == ("GET", of_model):
            inputs = (*COMMON, *(("sampling_parameters", "return_finish_reason") if self.one_text else PLAIN))
            outputs = ("text_output", "num_input_tokens", "num_output_tokens", *(("finish_reason",) * self.one_text))
            return json_response(
                {
                    "name": self.model,
                    "versions": ["1"],
                    "platform": "python",
                    "inputs": [{"name": name, "datatype": "BYTES", "shape": [1]} for name in inputs],
                    "outputs": [{"name": name, "datatype": "BYTES", "shape": [1]} for name in outputs],
                }
            )
        if (method, path) == ("GET", f"{of_model}/config"):
            parameters = {"max_model_len": {"string_value": str(CTX)}}
            instances = [{"name": "i", "kind": "KIND_CPU", "count": 1}]
            config = {"max_batch_size": 0, "instance_group": instances, "parameters": parameters}
            return json_response({"name": self.model, **config})
        return None

    def refusal(self, body: Any) -> bytes | None:
        if mock_text.count(body["text_input"]) > CTX:
            said = event({"error": f"prompt length exceeds context {CTX}"})
            return response(said, "400 Bad Request", "text/event-stream; charset=utf-8")
        return None

    def events(self, body: Any) -> list[bytes]:
        given = msgspec.json.decode(body["sampling_parameters"]) if self.one_text else body
        sampling = Sampling(temperature=given.get("temperature"), top_k=given.get("top_k"))
        seed, stop = (
            given["seed" if self.one_text else "random_seed"],
            given.get("stop" if self.one_text else "stop_words"),
        )
        # TensorRT-LLM leaves the stop words in the text.
        text = Text.of(
            body["text_input"], given["max_tokens"], seed, sampling, keep_stop=not self.one_text, stop=stop or ()
        )
        assert body["exclude_input_in_output"]
        return [self._event(text, count) for count in range(1, len(text.tokens) + 1)]

    def _event(self, text: Text, count: int) -> bytes:
        fields = {"model_name": self.model, "model_version": "1", "text_output": text.tokens[count - 1]}
        if self.one_text:  # counts of this response; no reason yet is the text "None"
            fields["finish_reason"] = text.reason if count == len(text.tokens) else "None"
        return event(
            {**fields, "num_input_tokens": text.prompt_tokens, "num_output_tokens": 1 if self.one_text else count}
        )

    def error(self, message: str) -> bytes:
        return event({"error": message})

    def full(self) -> bytes:
        return json_response({"error": "Exceeds maximum queue size"}, "503 Service Unavailable")
