"""The same references against real servers, and the stand-ins under real clients. On demand: `tox run -e fetch`.

FETCH_TOOLS is the bin folder of an environment with moto, huggingface_hub and oras; a real registry is on PATH as
`docker-registry` (Debian's package of that name) or at FETCH_REGISTRY. What is missing is skipped, and said.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from orchestratord.domain.url import parse_url
from orchestratord.infra.fetch.policy import S3Access
from tests.fetch.hub import HubSite
from tests.fetch.site import HOSTS, MODEL, Site, authority, digest, serving, write_root
from tests.fetch.support import Lab

TOOLS = Path(os.environ.get("FETCH_TOOLS", "/nonexistent"))
REGISTRY = os.environ.get("FETCH_REGISTRY") or shutil.which("docker-registry")
PATIENCE_S = 30.0

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(not TOOLS.is_dir(), reason="FETCH_TOOLS names no environment; run it with tox run -e fetch"),
]


def tool(script: str, *arguments: str, **environ: str) -> str:
    """Run a script with the tools' own Python; gives what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_"))}
    done = subprocess.run(
        [str(TOOLS / "python"), "-c", script, *arguments],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@contextmanager
def server(command: Callable[[int, str, str], list[str]], folder: Path, **environ: str) -> Iterator[int]:
    """A server with a certificate, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    certificate = authority().issue_cert(*HOSTS)
    key, chain = str(folder / "key.pem"), str(folder / "chain.pem")
    certificate.private_key_pem.write_to_path(key)
    for n, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(chain, append=bool(n))
    with (folder / "server.log").open("wb") as log:
        child = subprocess.Popen(command(port, chain, key), env={**os.environ, **environ}, stdout=log, stderr=log)
        try:
            _until_up(port, child, folder)
            yield port
        finally:
            child.terminate()
            child.wait(PATIENCE_S)


def _until_up(port: int, child: subprocess.Popen[bytes], folder: Path) -> None:
    context = ssl.create_default_context(cafile=write_root(folder))
    ends = time.monotonic() + PATIENCE_S
    while True:
        assert child.poll() is None, (folder / "server.log").read_text()[-4000:]
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", port), 1) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return
        assert time.monotonic() < ends, "the server does not come up"
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.05)


def lab_for(folder: Path, port: int) -> Lab:
    lab = Lab(folder)
    lab.policy = replace(lab.policy, private=frozenset({f"127.0.0.1:{port}"}))
    return lab


# -- hf --------------------------------------------------------------------------------------------------------
DOWNLOAD = "import sys, huggingface_hub as h; print(h.hf_hub_download(sys.argv[1], sys.argv[2]))"
SNAPSHOT = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1]))"


@pytest.fixture
def hub() -> Iterator[tuple[Site, Site]]:
    with serving() as site, serving() as cdn:
        stand_in = HubSite(site, cdn)
        stand_in.repos["acme/coder"] = {"q4.gguf": MODEL, "README.md": b"hello"}
        stand_in.repos["acme/folder"] = {"config.json": b"{}", "model.safetensors": bytes(5000)}
        yield site, cdn


def test_the_real_client_takes_our_hub_for_one_and_both_bring_the_same(tmp_path: Path, hub: tuple[Site, Site]) -> None:
    """ORCH-3072: so what our own client is tested against is a hub."""
    environ = {
        "HF_ENDPOINT": hub[0].at(""),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "SSL_CERT_FILE": write_root(tmp_path),
    }
    theirs = Path(tool(DOWNLOAD, "acme/coder", "q4.gguf", **environ).strip())
    folder = Path(tool(SNAPSHOT, "acme/folder", **environ).strip())
    lab = Lab(tmp_path, *hub)
    assert theirs.read_bytes() == lab.fetch("hf:acme/coder/q4.gguf").read_bytes() == MODEL
    ours = lab.fetch("hf:acme/folder")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in ours.iterdir()}


def test_where_ours_goes_on_theirs_begins_again(tmp_path: Path, hub: tuple[Site, Site]) -> None:
    """Why there is a client of our own. If this fails, theirs has learnt it: look again whether it can be used."""
    hub[1].cuts = [1_000_000]
    environ = {"HF_ENDPOINT": hub[0].at(""), "HF_HOME": str(tmp_path / "hf"), "SSL_CERT_FILE": write_root(tmp_path)}
    tool(DOWNLOAD, "acme/coder", "q4.gguf", HF_HUB_DISABLE_XET="1", **environ)
    theirs = [asked.headers.get("range") for asked in hub[1].asked if asked.method == "GET"]
    hub[1].asked.clear()
    hub[1].cuts = [1_000_000]
    Lab(tmp_path, *hub).fetch("hf:acme/coder/q4.gguf")
    ours = [asked.headers.get("range") for asked in hub[1].asked]
    assert theirs == [None, None], "theirs goes on by now"
    assert str(ours[1])[:6] == "bytes="


# -- s3 --------------------------------------------------------------------------------------------------------
UPLOAD = """
import sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
s3.create_bucket(Bucket="models")
s3.upload_file(sys.argv[2], "models", "deep/q4.gguf")
"""


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[int]:
    def command(port: int, chain: str, key: str) -> list[str]:
        return [str(TOOLS / "moto_server"), "-H", "127.0.0.1", "-p", str(port), "-s", "-c", chain, "-k", key]

    (tmp_path / "m.gguf").write_bytes(MODEL)
    with server(command, tmp_path) as port:
        credentials = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        url = f"https://127.0.0.1:{port}"
        tool(UPLOAD, url, str(tmp_path / "m.gguf"), AWS_CA_BUNDLE=write_root(tmp_path), **credentials)
        yield port


def test_an_object_of_moto(tmp_path: Path, bucket: int) -> None:
    """ORCH-3072: whole, from where a break left it, and not under another digest."""
    lab = lab_for(tmp_path, bucket)
    lab.policy = replace(lab.policy, s3=S3Access(parse_url(f"https://127.0.0.1:{bucket}")))
    lab.environ = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    partial = lab.cache.partial(digest(MODEL))
    partial.note(None, len(MODEL))
    partial.write(MODEL[:1_500_000])
    partial.close()
    assert lab.fetch("s3://models/deep/q4.gguf", digest(MODEL)).read_bytes() == MODEL
    assert '" 206 -' in (tmp_path / "server.log").read_text(), "the rest of it was enough"
    assert lab.fetch("s3://models/deep/q4.gguf").read_bytes() == MODEL
    assert lab.refusal("s3://models/deep/q4.gguf", digest(b"")).code == "UNTRUSTED_ARTIFACT"
    assert lab.refusal("s3://models/nothing.gguf").code == "NOT_FOUND"
    assert lab.refusal("s3://nobody/deep/q4.gguf").code == "NOT_FOUND"


# -- oci -------------------------------------------------------------------------------------------------------
PUSH = """
import os, sys, oras.client
os.chdir(os.path.dirname(sys.argv[2]))
client = oras.client.OrasClient(hostname=sys.argv[1], insecure=False)
client.push(target=sys.argv[1] + "/acme/coder:q4", files=[os.path.basename(sys.argv[2])], disable_path_validation=True)
"""


@pytest.mark.skipif(REGISTRY is None, reason="no docker-registry on PATH, and FETCH_REGISTRY names none")
def test_an_image_of_a_real_registry(tmp_path: Path) -> None:
    """ORCH-3072: pushed by a real client, pulled by ours; by its tag, by its digest, from where a break left it."""

    def command(port: int, chain: str, key: str) -> list[str]:
        http = {"addr": f"127.0.0.1:{port}", "secret": "x", "tls": {"certificate": chain, "key": key}}
        storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
        (tmp_path / "registry.yml").write_text(json.dumps({"version": 0.1, "storage": storage, "http": http}))
        assert REGISTRY is not None
        return [REGISTRY, "serve", str(tmp_path / "registry.yml")]

    (tmp_path / "q4.gguf").write_bytes(MODEL)
    with server(command, tmp_path) as port:
        host = f"127.0.0.1:{port}"
        tool(PUSH, host, str(tmp_path / "q4.gguf"), REQUESTS_CA_BUNDLE=write_root(tmp_path))
        lab = lab_for(tmp_path, port)
        partial = lab.cache.partial(digest(MODEL))
        partial.note(None, len(MODEL))
        partial.write(MODEL[:1_500_000])
        partial.close()
        assert lab.fetch(f"oci://{host}/acme/coder:q4").read_bytes() == MODEL
        assert "http.response.status=206" in (tmp_path / "server.log").read_text(), "the rest of it was enough"
        assert lab.refusal(f"oci://{host}/acme/coder:q8").code == "NOT_FOUND"
        assert lab.refusal(f"oci://{host}/acme/coder:q4", digest(b"")).code == "UNTRUSTED_ARTIFACT"
