"""The main job through the generated Python client: enqueue, watch until it ended. Run by `tests.clients`."""

from __future__ import annotations

import sys
import threading
import uuid

from data.api.tasks import create_task, get_task  # type: ignore[import-not-found]
from data.client import Client  # type: ignore[import-not-found]
from data.models import TaskRequest  # type: ignore[import-not-found]


def main(url: str) -> int:
    client = Client(base_url=url)
    task_id = uuid.uuid4()
    body = TaskRequest.from_dict(
        {
            "task_id": str(task_id),
            "session_id": str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": "home",
            "engine": "llamacpp",
            "ctx": 512,
            "priority": "interactive",
            "max_tokens": 5,
            "deadline_ms": 60_000,
            "prompt": "hello",
        }
    )
    admitted = create_task.sync_detailed(client=client, body=body)
    assert admitted.status_code == 202, admitted
    assert admitted.parsed.task_id == task_id, admitted
    pause = threading.Event()
    for _ in range(200):
        status = get_task.sync(task_id, client=client)
        if str(status.state.value) == "ended":
            assert status.tokens_out == 5, status
            sys.stdout.write(f"generated Python client: {status.tokens_out} tokens, {status.finish_reason.value}\n")
            return 0
        pause.wait(0.05)
    raise AssertionError(f"it did not end: {status}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
