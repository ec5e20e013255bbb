"""Messages through a real chat template on a real llama-server."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestratord.domain.request import Message
from orchestratord.testing import tiny_gguf
from tests.engines.support import collect, job, run
from tests.engines.test_llamacpp_real import served

pytestmark = pytest.mark.llamacpp

# As instruction-tuned models carry them: a begin mark of its own, trimmed contents, system folded into the first turn,
# roles renamed, an exception for what they do not know.
TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{% set first = messages[0]['content'] | trim + '\n\n' %}\
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '') \
+ m['content'] | trim + '</turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""

TALK = [
    Message("system", " be brief "),
    Message("user", "größe? "),
    Message("assistant", "東京"),
    Message("user", "ba\nfi"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "turns.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "TEMPLATE", TURNS)
        tiny_gguf.tiny_llama(path)
    return path


def test_a_conversation_becomes_the_prompt_its_template_makes(model: Path) -> None:
    """Word for word, with the turn of the model opened; and it runs, counted as it will be counted."""

    async def body() -> None:
        async with served(model) as (engine, _):
            assert (await engine.props()).chat_template
            prompt = await engine.render(TALK)
            assert prompt == (
                "<turn>user\nbe brief\n\ngröße?</turn>\n<turn>model\n東京</turn>\n"
                "<turn>user\nba\nfi</turn>\n<turn>model\n"
            )
            collected = await collect(engine, job(prompt, max_tokens=4))
            assert collected.end is not None
            assert collected.end.tokens_in == await engine.tokenize(prompt)
            assert not prompt.startswith("<s>"), "the engine puts its own begin mark before every prompt"

    run(body())


def test_what_the_template_refuses_is_the_requests_fault(model: Path) -> None:
    """Two questions in a row: the template's own words come back."""

    async def body() -> None:
        async with served(model) as (engine, _):
            with pytest.raises(Exception, match="roles must alternate") as caught:
                await engine.render([Message("user", "a"), Message("user", "b")])
            assert getattr(caught.value, "kind", "") == "refused"

    run(body())
