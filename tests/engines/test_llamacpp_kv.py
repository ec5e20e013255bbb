"""What tokens take in llama-server's KV cache: read from headers, and compared with what the server allocates."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest

from orchestratord.domain.kv import KvLayout
from orchestratord.infra.engines.gguf_header import read_header
from orchestratord.infra.engines.llamacpp import LlamaCpp
from orchestratord.infra.engines.llamacpp_kv import kv_layout, layout
from orchestratord.infra.engines.llamacpp_slots import slots_of
from orchestratord.infra.process import ProcessHost
from orchestratord.ports import EngineError, ProcessSpec
from orchestratord.testing.tiny_gguf import tiny_llama, windowed_gguf
from tests.engines.support import CLOCK, collect, job, run


def process(path: Path, *extra: str, **env: str) -> ProcessSpec:
    return ProcessSpec("llamacpp", str(path), 2, 512, 1, None, extra, env, None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {name: folder / f"{name}.gguf" for name in ("plain", "windowed")}
    tiny_llama(found["plain"])
    windowed_gguf(found["windowed"])
    return found


# -- the header ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["plain", "windowed"])
def test_a_header_is_read_as_the_gguf_package_does(models: dict[str, Path], name: str) -> None:
    """Every scalar and every short text; vocabularies and scores of that length are left out."""
    theirs = {
        key: field.contents()
        for key, field in gguf.GGUFReader(models[name]).fields.items()
        if not key.startswith("GGUF.") and field.types[0] is not gguf.GGUFValueType.ARRAY
    }
    ours = read_header(str(models[name]))
    assert {key: value for key, value in ours.items() if not isinstance(value, list)} == theirs
    assert "tokenizer.ggml.tokens" not in ours


def test_every_kind_of_value(tmp_path: Path) -> None:
    """Numbers of every width, and arrays of them; of a nested or long array nothing."""
    path = tmp_path / "kinds.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -1)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -2)
    writer.add_int32("a.i32", -3)
    writer.add_uint64("a.u64", 1 << 40)
    writer.add_int64("a.i64", -(1 << 40))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "größe")
    writer.add_string("a.template", "x" * 2000)
    writer.add_array("a.heads", [4, 0, 4])
    writer.add_array("a.flags", [True, False])
    writer.add_array("a.long", list(range(5000)))
    writer.add_array("a.last", [7])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(str(path)) == {
        "general.architecture": "llama",
        "a.u8": 255,
        "a.i8": -1,
        "a.u16": 65535,
        "a.i16": -2,
        "a.i32": -3,
        "a.u64": 1 << 40,
        "a.i64": -(1 << 40),
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.yes": True,
        "a.text": "größe",
        "a.heads": [4, 0, 4],
        "a.flags": [True, False],
        "a.last": [7],
    }


def test_a_damaged_header_is_an_error_and_no_figure(models: dict[str, Path], tmp_path: Path) -> None:
    """Cut anywhere, or with a length beyond the file: a ValueError, never a wrong value or a lot of memory."""
    whole = models["plain"].read_bytes()
    end = whole.index(b"tokenizer.ggml.token_type")
    path = tmp_path / "cut.gguf"
    for size in (0, 3, 4, 8, 20, 24, *range(30, 400, 7), end):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError):
            read_header(str(path))
        assert kv_layout(str(path), process(path)) is None
    huge = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 1 << 60)
    for data in (
        b"SSH-" + whole[4:],
        whole[:4] + b"\x63\0\0\0" + whole[8:],
        huge,
        huge.replace(b"\x08\0\0\0", b"\x04\0\0\0"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError):
            read_header(str(path))
    assert kv_layout(str(tmp_path), process(tmp_path)) is None  # a folder
    assert kv_layout("/nowhere.gguf", process(path)) is None


# -- from header to bytes ------------------------------------------------------------------------------------
def header(arch: str = "llama", **said: Any) -> dict[str, Any]:
    given = {"block_count": 4, "attention.head_count": 8, "embedding_length": 512, **said}
    return {"general.architecture": arch, **{f"{arch}.{name}": value for name, value in given.items()}}


KV2 = {"attention.head_count_kv": 2}
WINDOW = {"attention.sliding_window": 100}
KNOWN: list[tuple[dict[str, Any], KvLayout | None]] = [
    (header(), KvLayout(4 * 8 * 128 * 2)),  # as many heads as it asks with
    (header(**KV2), KvLayout(4 * 2 * 128 * 2)),
    (header(**KV2, **{"attention.key_length": 96, "attention.value_length": 32}), KvLayout(4 * 2 * 128 * 2)),
    (header(**{"attention.head_count_kv": [2, 0, 0, 4]}), KvLayout(6 * 128 * 2)),  # recurrent layers have none
    (header(**{"attention.head_count_kv": [0, 2, 0, 0], "ssm.state_size": 16}), KvLayout(2 * 128 * 2)),
    (header("gemma2", **KV2, **WINDOW), KvLayout(2 * 512, ((100, 2 * 512),))),
    (header("gemma3", **{**KV2, "block_count": 7}, **WINDOW), KvLayout(512, ((100, 6 * 512),))),
    (header("new", **KV2, **WINDOW, **{"attention.sliding_window_pattern": 4}), KvLayout(512, ((100, 3 * 512),))),
    (
        header("new", **KV2, **WINDOW, **{"attention.sliding_window_pattern": [True, False, False, True]}),
        KvLayout(1024, ((100, 1024),)),
    ),
    (header("new", **KV2, **{"attention.sliding_window": 0}), KvLayout(2048)),
    # What is not certain is not known.
    (header("new", **KV2, **WINDOW), None),
    (header("new", **KV2, **WINDOW, **{"attention.sliding_window_pattern": [True]}), None),
    (header(**{"attention.head_count_kv": [2, 2]}), None),
    (header("deepseek2", **KV2, **{"attention.key_length_mla": 192}), None),
    (header("gemma3n", **KV2, **{"attention.shared_kv_layers": 2}), None),
    (header("falcon-h1", **KV2, **{"ssm.state_size": 16}), None),
    (header("mamba", **{"attention.head_count": 0, "ssm.state_size": 16}), None),
    ({}, None),
]


@pytest.mark.parametrize(("said", "expected"), KNOWN)
def test_layers_heads_and_windows(said: dict[str, Any], expected: KvLayout | None) -> None:
    assert layout(said, "f16", "f16") == expected


def test_types_and_options(models: dict[str, Path]) -> None:
    """K and V may be of different types; what decides behind our back leaves no figure."""
    path = models["windowed"]

    def of(*extra: str, **env: str) -> KvLayout | None:
        return kv_layout(str(path), process(path, *extra, **env))

    plain = of()
    assert plain is not None
    ((window, small),) = plain.windows
    assert of("--swa-full") == KvLayout(plain.full + small)
    assert of("-ctk", "q8_0") == KvLayout(plain.full * 49 // 64, ((window, small * 49 // 64),))
    assert of("--cache-type-k", "f32", "-ctv", "f32") == KvLayout(plain.full * 2, ((window, small * 2),))
    assert of("-ctv", "q9_9") is None
    assert of("--override-kv", "gemma3.attention.sliding_window=int:9") is None
    assert of(LLAMA_ARG_CACHE_TYPE_K="q4_0") is None
    assert of(LLAMA_ARG_SWA_FULL="1") is None
    assert of(LLAMA_ARG_THREADS="2") == plain


# -- against the server --------------------------------------------------------------------------------------
SIZE = re.compile(r"llama_kv_cache: size = +([0-9.]+) MiB \( *(\d+) cells, +(\d+) layers, +(\d+)/\d+ seqs\)")


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", ()),
        ("windowed", ()),
        ("windowed", ("-ctk", "q8_0", "-ctv", "q8_0")),
        ("windowed", ("--swa-full",)),
    ],
)
def test_the_server_allocates_what_we_compute(models: dict[str, Path], name: str, options: tuple[str, ...]) -> None:
    """ORCH-3023: bytes a token, times the cells of the server's caches, is what its log says it has taken; and after a
    task a slot holds as many tokens as we take it to."""
    given = process(models[name], *options, "-lv", "4")

    async def body() -> None:
        child = await ProcessHost(CLOCK).start(given)
        engine = LlamaCpp(child.url, clock=CLOCK, process=given)
        try:
            while await _reason(engine) is not None:
                assert child.returncode is None, "\n".join(child.tail())
            kv = (await engine.props()).kv
            assert kv is not None
            ended = (await collect(engine, job(max_tokens=9, slot=1))).end
            assert ended is not None
            assert ended.tokens_in is not None
            (slot,) = [slot for slot in await _raw_slots(engine) if slot["id"] == 1]
            assert slot["n_prompt_tokens"] == ended.tokens_in + ended.tokens_out - 1
            assert len(await slots_of(engine._http) or ()) == 2
            said = [found.groups() for line in child.tail() if (found := SIZE.search(line))]
        finally:
            await engine.close()
            await child.stop(5)
        computed = [kv.full, *(size for _, size in kv.windows)]
        assert len(said) == len(computed) + (name == "windowed" and "--swa-full" in options)
        mib = [float(size) for size, *_ in said]
        cells = [int(count) * int(streams) for _, count, _, streams in said]
        if len(said) > len(computed):  # the windows are kept in full: two caches of one size
            assert cells[0] == cells[1]
            mib, cells = [sum(mib)], cells[:1]
        for size, count, figure in zip(mib, cells, computed, strict=True):
            assert figure * count / (1 << 20) == pytest.approx(size, abs=0.01)

    run(body())


async def _reason(engine: LlamaCpp) -> str | None:
    try:
        return await engine.ready()
    except EngineError as error:
        return error.kind


async def _raw_slots(engine: LlamaCpp) -> list[dict[str, Any]]:
    _, _, text = await engine._http.request_json("GET", "/slots", limit_s=5)
    return msgspec.json.decode(text, type=list[dict[str, Any]])
