"""`run` and `cancel`: one task."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from orchestratord.cli.command import FAILED, INTERRUPTED, TRY_LATER, Commands, client_command, refused, seconds
from orchestratord.cli.output import complain, harmless, show
from orchestratord.client import Client, Event, ServerError


def register(commands: Commands) -> None:
    parser = client_command(commands, "run", _run, "Submit a prompt and stream the answer")
    parser.add_argument("prompt", help="- reads it from standard input")
    parser.add_argument("--model", help="model_ref or pool; by default the first ready pool")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--raw", action="store_true", help="send the prompt as it is, without the model's chat template"
    )
    parser.add_argument("--batch", action="store_true", help="priority batch instead of interactive")
    parser.add_argument("--deadline-s", type=seconds, default=300.0)
    parser = client_command(commands, "cancel", _cancel, "Cancel tasks; what they produced so far is kept")
    parser.add_argument("task_id", nargs="+")


def _cancel(client: Client, arguments: argparse.Namespace) -> int:
    states, code = [], 0
    for task_id in arguments.task_id:
        try:
            client.cancel(task_id)
            states.append(client.task(task_id))
        except ServerError as error:  # the others are to be canceled all the same
            code = refused(error)
    if states or not code:
        show(arguments, states, lambda: "\n".join(f"{state['task_id']} {state['state']}" for state in states))
    return code


def _run(client: Client, arguments: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    pools = client.pools()
    if arguments.model is None:
        meant = [pool for pool in pools if pool["ready"]][:1]
    else:  # an alias, which summaries do not show, is for the daemon to know
        meant = [pool for pool in pools if arguments.model in (pool["model_ref"], pool["id"])] or pools
    if not meant:
        return complain("no pool is ready for this; `orchestratord status` shows them and says why", TRY_LATER)
    fields: dict[str, Any] = {
        "workload": "completion",
        "model_ref": arguments.model or meant[0]["model_ref"],
        "ctx": arguments.max_tokens + len(prompt.encode()) + 64,
        "max_tokens": arguments.max_tokens,
        "priority": "batch" if arguments.batch else "interactive",
        "deadline_ms": int(arguments.deadline_s * 1000),
    }
    if arguments.seed is not None:
        fields["seed"] = arguments.seed
    admission = _submit(client, prompt, arguments.raw, fields, sorted({pool["engine"] for pool in meant}))
    try:
        if arguments.json:
            return _follow_as_json(client, admission)
        return _follow(client, admission)
    except KeyboardInterrupt:
        client.cancel(admission["task_id"])
        print()
        return complain("canceled", INTERRUPTED)


def _submit(client: Client, prompt: str, raw: bool, fields: dict[str, Any], engines: list[str]) -> dict[str, Any]:
    """Through the model's chat template if it has one, else (or with --raw) as plain text to continue.

    With no more room asked for than the model has. `engines`: those that may have it, one at least.
    """
    engine, *others = engines
    while True:
        text = {"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
        try:
            return client.submit(**fields, **text, engine=engine)
        except ServerError as error:
            details = error.envelope.get("details", {})
            if details.get("rule") == "no_chat_template" and not raw:
                raw = True
            elif details.get("rule") == "ctx_exceeds_model" and details.get("limit", fields["ctx"]) < fields["ctx"]:
                fields = {**fields, "ctx": details["limit"]}
            elif others and error.code == "POOL_UNREADY" and not error.envelope.get("retriable"):
                engine, *others = others
            else:
                raise


def _follow_as_json(client: Client, admission: dict[str, Any]) -> int:
    """One line per event, the admission first."""
    print(json.dumps({"event": "admission", "data": admission}), flush=True)
    failed = False
    for event in client.stream(admission["task_id"]):
        print(json.dumps({"id": event.id, "event": event.name, "data": event.data}, ensure_ascii=False), flush=True)
        failed = event.name == "error"
    return FAILED if failed else 0


def _follow(client: Client, admission: dict[str, Any]) -> int:
    """Print the answer as it comes; one live progress line on a terminal until then."""
    live = sys.stderr.isatty()
    shown = harmless if sys.stdout.isatty() else str  # a model may write anything; a file gets it as it is
    begun = time.monotonic()
    first: float | None = None
    for event in client.stream(admission["task_id"]):
        if event.name == "token":
            if first is None:
                first = time.monotonic()
                if live:
                    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            print(shown(event.data["t"]), end="", flush=True)
        elif event.name == "error":
            print()
            return complain(f"{event.data['code']}: {event.data['message']}", FAILED)
        elif event.name == "end":
            print()
            _summary(event, begun, first or time.monotonic())
        elif first is None and live:
            _progress(event, admission)
    return 0


def _summary(event: Event, begun: float, first: float) -> None:
    seconds = time.monotonic() - first
    rate = event.data["tokens_out"] / seconds if seconds > 0 else 0.0
    print(
        f"[{event.data['tokens_out']} tokens, {event.data['finish_reason']}, first after "
        f"{(first - begun) * 1000:.0f} ms, {rate:.1f} tokens/s]",
        file=sys.stderr,
    )


def _progress(event: Event, admission: dict[str, Any]) -> None:
    data = event.data
    start_ms = data.get("predicted_start_ms", admission["predicted_start_ms"])
    position = data.get("queue_position", admission["queue_position"])
    line = f"position {position}, expected to start in {start_ms / 1000:.1f} s"
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
