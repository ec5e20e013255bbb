"""ruff's security rules (flake8-bandit) are on for the product, notice what they are for; exceptions say why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BAD = {
    "S608": "def f(c, name):\n    c.execute(f\"SELECT * FROM tasks WHERE task_id = '{name}'\")\n",
    "S602": "import subprocess\n\n\ndef f(name):\n    subprocess.run(name, shell=True, check=True)\n",
    "S301": "import pickle\n\n\ndef f(data):\n    return pickle.loads(data)\n",
    "S307": "def f(text):\n    return eval(text)\n",
    "S324": "import hashlib\n\n\ndef f(data):\n    return hashlib.md5(data).hexdigest()\n",
    "S506": "import yaml\n\n\ndef f(text):\n    return yaml.load(text, yaml.Loader)\n",
    "S103": "import os\n\n\ndef f(path):\n    os.chmod(path, 0o777)\n",
    "S104": 'HOST = "0.0.0.0"\n',
    "S311": "import random\n\n\ndef f():\n    return random.random()\n",
    "S323": "import ssl\n\nCONTEXT = ssl._create_unverified_context()\n",
    "S113": "import requests\n\n\ndef f(url):\n    return requests.get(url)\n",
    "S110": "def f(g):\n    try:\n        g()\n    except Exception:\n        pass\n",
}


def found(path: Path | str, *options: str, text: str | None = None) -> list[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *options, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=text, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [finding["code"] for finding in json.loads(done.stdout)]


@pytest.mark.parametrize("rule", BAD)
def test_a_planted_hole_is_noticed_with_our_settings(rule: str) -> None:
    """H16 and the like: as a file of the product would be."""
    assert rule in found("-", "--stdin-filename", "orchestratord/infra/planted.py", text=BAD[rule])


def test_the_product_has_none() -> None:
    assert found("orchestratord", "--select", "S", "--ignore", "S101") == []


def test_every_exception_says_why() -> None:
    """A `noqa` of a security rule names it and gives its reason behind a dash."""
    bare = []
    for file in (ROOT / "orchestratord").rglob("*.py"):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if "noqa" in line and re.search(r"noqa(?!: [A-Z])|noqa: (?:\w+, )*S\d+\b(?! - \w)", line):
                bare.append(f"{file.relative_to(ROOT)}:{number}")
    assert bare == []


def test_secrets_are_never_compared_with_an_operator() -> None:
    """vLLM CVE-2025-59425: `==` tells how much of a token is right."""
    odd = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in (ROOT / "orchestratord").rglob("*.py")
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.search(r"(token|secret|digest|api_key)\b\s*(==|!=)\s*(self\.|given|token|access|known)", line)
        and "model_digest" not in line
    ]
    assert odd == []
