"""The faults of tests/mutants can be planted: patches apply, judgements are about faults that can be drawn."""

from __future__ import annotations

import subprocess

import pytest

from tests.mutants.__main__ import DRAWN, PATCHES, Mutant, drawn, judged, touched, written
from tests.mutants.field import ROOT
from tests.mutants.operators import faults

OURS = {mutant.name: mutant for mutant in written(PATCHES)}


@pytest.mark.parametrize("mutant", OURS.values(), ids=OURS)
def test_a_patch_applies_and_names_tests_that_exist(mutant: Mutant) -> None:
    """Code moves on and a patch stays behind: mend it, or let it go if the fault cannot be made any more."""
    command = ["git", "apply", "--check", "--unsafe-paths", f"--directory={ROOT}", "-"]
    done = subprocess.run(command, input=mutant.patch, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert mutant.tests, "it has no line `# kills:`"
    assert [name for name in mutant.tests if not name.startswith("-") and not (ROOT / name).exists()] == []


def test_as_many_are_drawn_as_written_and_the_same_each_time() -> None:
    first, again = list(drawn(DRAWN, seed=1)), list(drawn(DRAWN, seed=1))
    assert first == again
    assert len({mutant.name for mutant in first}) == DRAWN == len(OURS)
    assert list(drawn(DRAWN, seed=2)) != first


def test_what_is_judged_to_change_nothing_can_still_be_drawn() -> None:
    """A judgement of code that is no longer there judges nothing."""
    possible = {(fault.name, fault.was, fault.now) for _, found in faults(ROOT) for fault in found}
    assert judged().keys() - possible == set()
    assert all(len(reason.split()) > 3 for reason in judged().values()), "each one has a reason"


def test_a_diff_tells_the_lines_it_touches() -> None:
    """As they were, those beside an addition included."""
    diff = "--- a/a.py\n+++ b/a.py\n@@ -4,5 +4,5 @@\n one\n-two\n+TWO\n three\n four\n+five\n six\n"
    found = {line for path, lines in touched(diff) for line in lines if path == "a.py"}
    assert found == {5, 6, 7, 8}
