"""The header of a GGUF file: what the model says of itself, without its vocabulary and weights.

The `gguf` package reads these too, but brings numpy along, which is more than the rest of the daemon together.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

MAGIC = b"GGUF"
VERSIONS = frozenset({2, 3})
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
KEPT_STRING, KEPT_ARRAY = 1024, 4096  # bytes, numbers; what is longer is a template or a vocabulary, and left out
_COUNT = struct.Struct("<Q").unpack_from
_KIND = struct.Struct("<I").unpack_from


def read_header(path: str) -> dict[str, Any]:
    """Names and values; of arrays only those of numbers. Takes some 50 ms: call it off the event loop.

    Raises OSError, and ValueError for a file that is no GGUF of a known version, or is cut short.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (struct.error, UnicodeDecodeError, KeyError, IndexError) as error:
            raise ValueError(f"{path} has a damaged GGUF header: {error!r}") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def header(self) -> dict[str, Any]:
        if self._data[: len(MAGIC)] != MAGIC or self._number(4) not in VERSIONS:
            raise ValueError("not a GGUF file of version 2 or 3")
        self._number(10)  # tensors
        found: dict[str, Any] = {}
        for _ in range(self._number(10)):
            name = self._text() or ""
            value = self._value(self._number(4))
            if value is not None:
                found[name] = value
        return found

    def _number(self, kind: int) -> Any:
        form = SCALARS[kind]
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _text(self) -> str | None:
        (size,) = _COUNT(self._data, self._at)
        start = self._at + 8
        self._at = start + size
        if self._at > len(self._data):
            raise IndexError("a text beyond the end of the file")
        return self._data[start : self._at].decode() if size <= KEPT_STRING else None

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(kind)
        (of,), (count,) = _KIND(self._data, self._at), _COUNT(self._data, self._at + 4)
        self._at += 12
        if of == STRING:
            self._skip_texts(count)
            return None
        form = struct.Struct(f"<{count}{SCALARS[of][1]}") if count <= KEPT_ARRAY else None
        start = self._at
        self._at += count * struct.calcsize(SCALARS[of])
        if self._at > len(self._data):
            raise IndexError("an array beyond the end of the file")
        return None if form is None else list(form.unpack_from(self._data, start))

    def _skip_texts(self, count: int) -> None:
        """A vocabulary has a quarter of a million of them."""
        data, at = self._data, self._at
        for _ in range(count):
            at += 8 + _COUNT(data, at)[0]
        self._at = at
