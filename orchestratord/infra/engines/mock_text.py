"""What the mock engine writes: pure functions of the job."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestratord.ports import Job

DIMENSIONS = 8
# Characters of one to four bytes and a joined emoji: what a stream must carry unharmed.
_PLAIN = (
    "a ability an and answer as at but by can day each even few for from good hand if in is it just kind line long "
    "many may more near of on or part place say so some than that the then thing time to way well when will work year"
)
_FOREIGN = 'größe naïve мир слово 東京 言葉 🙂 👩‍🔬 \\n " data: {} </s>'
WORDS = (*_PLAIN.split(), *_FOREIGN.split())


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


def words(job: Job) -> Iterator[str]:
    """The endless text of a job, token by token. Stop strings cut it short, they do not change it."""
    state = _digest(job.prompt, job.seed, replace(job.sampling, stop=None))
    while True:
        for byte in state:
            yield " " + WORDS[byte % len(WORDS)]
        state = hashlib.sha256(state).digest()


def until(tokens: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """`tokens` up to the first stop string. What of it was out already stays out: nothing is held back here."""
    text = ""
    for token in tokens:
        text += token
        found = min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            yield token[: max(0, len(token) - (len(text) - found))]
            return
        yield token
        text = text[-max(map(len, stops), default=0) :] if stops else ""


def count(text: str) -> int:
    """Tokens of a prompt: its words and one begin mark."""
    return len(text.split()) + 1


def _floats(*parts: object) -> list[float]:
    """DIMENSIONS numbers in -1..1."""
    raw = _digest(*parts)
    return [int.from_bytes(raw[4 * i : 4 * i + 4]) / 2**31 - 1 for i in range(DIMENSIONS)]


def embeddings(job: Job) -> Iterator[dict[str, Any]]:
    for index, text in enumerate(job.inputs):
        vector = _floats("embedding", text)
        length = math.sqrt(sum(value * value for value in vector))
        yield {"index": index, "embedding": [value / length for value in vector], "tokens_in": count(text)}


def ranking(job: Job) -> Iterator[dict[str, Any]]:
    scores = [(8 * _floats("rerank", job.prompt, text)[0], index) for index, text in enumerate(job.inputs)]
    for score, index in sorted(scores, key=lambda scored: (-scored[0], scored[1])):
        yield {"index": index, "relevance_score": score, "scale": "logit"}


def outputs(job: Job) -> Iterator[Any]:
    """Token texts without end, or `result` payloads."""
    if job.workload == "completion":
        return until(words(job), job.sampling.stop or ())
    return embeddings(job) if job.workload == "embedding" else ranking(job)


def tokens_in(job: Job) -> int:
    """Prompt tokens of the whole job."""
    return sum(map(count, job.inputs)) + (count(job.prompt) if job.workload != "embedding" else 0)
