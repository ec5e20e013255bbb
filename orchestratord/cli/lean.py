"""A lean start: without what Connexion imports for other people, and with a collector that lets the start alone; and
memory that goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

# Connexion 3.3 names these at import and calls them in places no daemon of ours comes to.
UNUSED = ("httpx", "jinja2", "requests", "starlette.templating", "starlette.testclient")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGE = 264 * 1024  # more than is read from a connection at once

COLLECT_EVERY = 5000, 1, 400  # new objects per pass over the young, the middle, the old: see gc.set_threshold


class _Later(ModuleType):
    """Stands for a module that is imported when something of it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(_call, self.__name__, name)


def _call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """Imports in this block get stand-ins for those of the modules that are not there yet; later ones the modules."""
    stand_ins = {name: _Later(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def import_connexion() -> None:
    """Connexion, quietly, for 9 MiB less with the test tools installed, 8 without."""
    with warnings.catch_warnings(), without(UNUSED):
        warnings.simplefilter("ignore", DeprecationWarning)  # a user can do nothing about them
        importlib.import_module("connexion")


@contextmanager
def making() -> Iterator[None]:
    """What is made in this block stays for good: the collector does not look at it, neither now nor later.

    It would look 186 times and find next to nothing, for a fifth of the CPU of a start; later a full pass over it would
    hold the event loop for 26 to 45 ms. Passes over more young objects take 1.4 ms at most, as one over the middle did
    before, and half as long in all. What survives them are tasks that are kept: those are looked at once more, soon and
    few at a time, for 4 ms; with twenty passes' worth of them it was 26 to 42.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
        gc.set_threshold(*COLLECT_EVERY)
    finally:
        gc.enable()


def give_back() -> None:
    """Have what is large go back to the system as soon as it is freed, where the C library is glibc.

    By itself it keeps up to twice the largest block it has seen freed: some 20 MiB after a few bodies of a mebibyte.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, LARGE)
        mallopt(M_MMAP_THRESHOLD, LARGE)
