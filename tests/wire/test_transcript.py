"""A transcript is written from a log's bytes: it says the same as if it were made from what they mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.facts import TranscriptSource
from orchestratord.ports import Artifact, Encoded
from orchestratord.wire import canonical, sse
from orchestratord.wire.transcript import transcript

METADATA = {"seed": 7, "model_digest": None, "placement": {"filters": ["ctx"], "pinned": False}}
TAGS = ("sse", "task:1", "sse")


def token(event_id: int, text: str, index: int) -> bytes:
    return sse.TOKEN % (event_id, sse.quote(text), index)


def slowly(frames: bytes) -> Artifact:
    """The same transcript, from objects."""
    events = sse.decode(frames)
    content = {
        "schema": "orchestratord.transcript/1",
        "text": "".join(payload["t"] for _, name, payload in events if name == "token"),
        "events": [{"id": event_id, "event": name, "data": payload} for event_id, name, payload in events],
    }
    tags = tuple(sorted(set(TAGS)))
    name = canonical.artifact_id("trace", content, tags, None, METADATA)
    return Artifact(name, "trace", content, tags, None, METADATA, 9)


def check(frames: bytes) -> None:
    found = transcript(TranscriptSource(frames, TAGS, METADATA, 9))
    assert found.opened() == slowly(frames)
    assert canonical.id_of(found.opened()) == found.id
    assert isinstance(found.content, Encoded)
    assert found.content == canonical.canonical(json.loads(found.content))


START = sse.encode(1, "started", {"queue_position": 0, "predicted_start_ms": 12})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_tokens_of_any_text(texts: list[str]) -> None:
    """OC-CTRL-2067"""
    frames = START + b"".join(token(n + 2, text, n) for n, text in enumerate(texts))
    check(frames + sse.encode(len(texts) + 2, "end", {"tokens_out": len(texts), "finish_reason": "stop"}))


@pytest.mark.parametrize(
    "text", ['","i":7}', '{"t":"x","i":0}', "\n\nid: 9\nevent: end\ndata: {}\n\n", '\\"', "\u2028"]
)
def test_a_text_that_looks_like_a_frame(text: str) -> None:
    check(START + token(2, text, 0) + token(3, "b", 1))


@pytest.mark.parametrize("events", [(), ("result",), ("token", "result", "token"), ("token", "result"), ("token",) * 3])
@pytest.mark.parametrize("ended", [True, False])
def test_any_order_of_events(events: tuple[str, ...], ended: bool) -> None:
    """OC-CTRL-2067: what a completion's tokens are spared by standing in a row, no other log may lose."""
    frames, index = START, 0
    for event_id, name in enumerate([*events, "end"] if ended else events, 2):
        frames += token(event_id, "a", index) if name == "token" else sse.encode(event_id, name, {"n": '","i":'})
        index += name == "token"
    check(frames)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("result", {"index": 0, "embedding": [0.1, -1e-7, 1e21, 3.0], "tokens_in": 4}),
        ("error", {"code": "INTERNAL", "message": "é\n", "details": {"ключ": [1, None], "a": {"z": 1, "b": True}}}),
    ],
)
def test_other_events(name: str, payload: dict[str, Any]) -> None:
    check(START + sse.encode(2, name, payload))


def test_without_what_was_said() -> None:
    frames = START + token(2, "said", 0)
    found = transcript(TranscriptSource(frames, TAGS, METADATA, 9), full=False).opened()
    assert found.content == {"schema": "orchestratord.transcript/1", "text": "", "events": []}
    assert found.id == canonical.id_of(found)
