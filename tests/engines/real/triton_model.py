"""A toy text model for Triton's Python backend: words out of a hash of prompt and seed. Not imported by any test: it is
copied into a model repository (triton_repo.py) and runs inside tritonserver.

Decoupled: one response per token. Understands both dialects; the configuration's parameter `dialect` says which one.
"""

import hashlib
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb

WORDS = ["ba", "di", "ko", "mu", "se", "ra", "ti", "no", "ga", "lu", "pe", "vo", "größe", "мир", "東京"]
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def value(request, name, default=None):
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None or not tensor.as_numpy().size:
        return default
    first = tensor.as_numpy().reshape(-1)[0]
    return first.decode() if isinstance(first, bytes) else first.item()


def texts(request, name):
    tensor = pb.get_input_tensor_by_name(request, name)
    return [] if tensor is None else [text.decode() for text in tensor.as_numpy().reshape(-1)]


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.ctx = int(parameters["max_model_len"]["string_value"])
        self.one_text = parameters["dialect"]["string_value"] == "vllm"
        self.token_s = float(parameters["token_ms"]["string_value"]) / 1000
        self.cancelled = 0

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender()), daemon=True).start()

    def answer(self, request, sender):
        try:
            self.write(request, sender)
        except Exception as error:
            sender.send(pb.InferenceResponse(error=pb.TritonError(repr(error))), FINAL)

    def write(self, request, sender):
        prompt = value(request, "text_input")
        if self.one_text:
            given = json.loads(value(request, "sampling_parameters", "{}"))
            stops = given.get("stop", [])
        else:
            names = ("max_tokens", "temperature", "top_k", "random_seed")
            given = {name: value(request, name) for name in names}
            given["seed"] = given["random_seed"]
            stops = texts(request, "stop_words")
        tokens_in = len(prompt.split()) + 1
        if tokens_in > self.ctx:
            said = f"prompt length {tokens_in} exceeds context {self.ctx}"
            sender.send(pb.InferenceResponse(error=pb.TritonError(said, pb.TritonError.INVALID_ARG)), FINAL)
            return
        greedy = given.get("temperature") == 0 or given.get("top_k") == 1
        state = hashlib.sha256(f"{prompt}|{0 if greedy else given.get('seed')}".encode()).digest()
        limit, text, sent = given["max_tokens"], "", 0
        while sent < limit:
            if request.is_cancelled():
                sender.send(pb.InferenceResponse(error=pb.TritonError("cancelled", pb.TritonError.CANCELLED)), FINAL)
                return
            if "explode" in prompt and sent == 2:
                sender.send(pb.InferenceResponse(error=pb.TritonError("the model exploded")), FINAL)
                return
            time.sleep(self.token_s)  # noqa: TID251 - in a server of its own
            state = hashlib.sha256(state).digest()
            token = " " + WORDS[state[0] % len(WORDS)]
            text, sent = text + token, sent + 1
            stopped = next((stop for stop in stops if stop in text), None)
            if stopped and self.one_text:  # vLLM takes the stop string out, TensorRT-LLM leaves it in
                token = token[: max(0, len(token) - (len(text) - text.index(stopped)))]
            reason = "stop" if stopped else "length" if sent == limit else "None"
            sender.send(self.response(token, reason, tokens_in, 1 if self.one_text else sent))
            if stopped:
                break
        sender.send(flags=FINAL)

    def response(self, token, reason, tokens_in, tokens_out):
        tensors = [
            pb.Tensor("text_output", np.array([token.encode()], dtype=object)),
            pb.Tensor("num_input_tokens", np.array([tokens_in], np.int32)),
            pb.Tensor("num_output_tokens", np.array([tokens_out], np.int32)),
        ]
        if self.one_text:
            tensors.append(pb.Tensor("finish_reason", np.array([reason.encode()], dtype=object)))
        return pb.InferenceResponse(output_tensors=tensors)
