"""What may stand in the headers of a trace, and what becomes of it, after the W3C recommendation "Trace Context".

Written by us, after the cases its own test suite covers: for each the headers that come in, and what must be true of
those that go out. GOES_ON: the trace is gone on with. NEW: another one begins.
"""

from __future__ import annotations

from dataclasses import dataclass

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"
GOES_ON, NEW = True, False


@dataclass(frozen=True)
class Vector:
    """headers: as they come. goes_on: whether the trace is. state: the tracestate that goes out; None: none at all."""

    name: str
    headers: tuple[tuple[str, str], ...]
    goes_on: bool
    state: str | None = None


def parent(name: str, *values: str, goes_on: bool = NEW) -> list[Vector]:
    """One header each."""
    return [Vector(f"{name}: {value!r}", (("traceparent", value),), goes_on) for value in values]


def state(name: str, *headers: str, out: str | None = None) -> Vector:
    return Vector(name, (("traceparent", GOOD), *(("tracestate", header) for header in headers)), GOES_ON, out)


def _members(count: int) -> str:
    return ",".join(f"k{number}={number}" for number in range(count))


KEY256, KEY241, KEY14 = "k" * 256, "t" * 241, "v" * 14
LOWER = "".join(map(chr, range(ord("a"), ord("z") + 1)))
VALUE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",=")

VECTORS: list[Vector] = [
    # 1-3: what is there
    Vector("both missing", (), NEW),
    Vector("traceparent alone", (("traceparent", GOOD),), GOES_ON),
    Vector("traceparent twice", (("traceparent", GOOD), ("traceparent", GOOD.replace("4b", "5c"))), NEW),
    # 4-5: its name
    Vector("another name with a hyphen", (("trace-parent", GOOD),), NEW),
    Vector("another name with a dot", (("trace.parent", GOOD),), NEW),
    *(Vector(f"cased {name}", ((name, GOOD),), GOES_ON) for name in ("TraceParent", "TrAcEpArEnT", "TRACEPARENT")),
    # 6-11: version
    *parent("version 00 has nothing behind it", f"{GOOD}.", f"{GOOD}-what-the-future-will-be-like"),
    *parent("a later version", f"cc{GOOD[2:]}", f"cc{GOOD[2:]}-what-the-future-will-be-like", goes_on=GOES_ON),
    *parent("a later version, not as told", f"cc{GOOD[2:]}.what-the-future-will-not-be-like"),
    *parent("version ff", f"ff{GOOD[2:]}"),
    *parent("version of other characters", f".0{GOOD[2:]}", f"0.{GOOD[2:]}", f"0X{GOOD[2:]}"),
    *parent("version too long", f"000{GOOD[2:]}", f"0000{GOOD[2:]}"),
    *parent("version too short", GOOD[1:], GOOD[2:]),
    # 12-15: trace id
    *parent("trace id of zeros", f"00-{'0' * 32}-{PARENT}-01"),
    *parent("trace id of other characters", f"00-.{TRACE[1:]}-{PARENT}-01", f"00-{TRACE[:-1]}.-{PARENT}-01"),
    *parent("trace id in capitals", f"00-{TRACE.upper()}-{PARENT}-01"),
    *parent("trace id too long", f"00-{TRACE}3-{PARENT}-01"),
    *parent("trace id too short", f"00-{TRACE[1:]}-{PARENT}-01"),
    # 16-19: parent id
    *parent("parent id of zeros", f"00-{TRACE}-{'0' * 16}-01"),
    *parent("parent id of other characters", f"00-{TRACE}-.{PARENT[1:]}-01", f"00-{TRACE}-{PARENT[:-1]}.-01"),
    *parent("parent id too long", f"00-{TRACE}-{PARENT}3-01"),
    *parent("parent id too short", f"00-{TRACE}-{PARENT[1:]}-01"),
    # 20-23: flags and blanks
    *parent("flags of other characters", f"{GOOD[:-2]}.0", f"{GOOD[:-2]}0.", f"{GOOD[:-2]}0X"),
    *parent("flags too long", f"{GOOD[:-2]}001"),
    *parent("flags too short", GOOD[:-1]),
    *parent("blanks around it", f" {GOOD}", f"\t{GOOD}", f"{GOOD} ", f"{GOOD}\t", f" \t {GOOD} \t", goes_on=GOES_ON),
    *parent("nothing in it", "", "-", "---", "00"),
    # 24-31: tracestate
    Vector("state without a parent", (("tracestate", "foo=1"),), NEW),
    Vector("state with a bad parent", (("traceparent", GOOD[1:]), ("tracestate", "foo=1")), NEW),
    state("state with its parent", "foo=1,bar=2", out="foo=1,bar=2"),
    *(
        Vector(f"a {name}", (("traceparent", GOOD), (name, "foo=1")), GOES_ON)
        for name in ("trace-state", "trace.state")
    ),
    *(
        Vector(f"state cased {name}", (("traceparent", GOOD), (name, "foo=1")), GOES_ON, "foo=1")
        for name in ("TraceState", "TrAcEsTaTe", "TRACESTATE")
    ),
    state("an empty state", ""),
    state("an empty state before another", "", "foo=1", out="foo=1"),
    state("an empty state after another", "foo=1", "", out="foo=1"),
    state("an empty member", "foo=1,,bar=2", out="foo=1,bar=2"),
    state("several states", "foo=1,bar=2", "rojo=1,congo=2", "baz=3", out="foo=1,bar=2,rojo=1,congo=2,baz=3"),
    state("one key twice", "foo=1,foo=2"),
    state("one key twice, in two headers", "foo=1", "foo=2"),
    state("every character a key may have", f"{LOWER}0123456789_-*/=1", out=f"{LOWER}0123456789_-*/=1"),
    state("every character of a tenant's key", "0a_-*/@b0_-*/=1", out="0a_-*/@b0_-*/=1"),
    state("every character a value may have", f"foo={VALUE}", out=f"foo={VALUE}"),
    # 32-37: what makes a state worthless; the trace goes on all the same
    state("blanks between members", "foo=1 \t , \t bar=2, \t baz=3", out="foo=1,bar=2,baz=3"),
    state("blanks around it", "foo=1\t \t,\t \tbar=2,\t \tbaz=3 ", out="foo=1,bar=2,baz=3"),
    state("a blank in a value", "foo=a b", out="foo=a b"),
    *(state(f"a wrong key {key!r}", f"{key}=1,bar=2") for key in ("foo ", "FOO", "foo.bar", "")),
    *(state(f"a wrong tenant's key {key!r}", f"{key}=1,bar=2") for key in ("foo@", "@foo", "foo@@bar", "foo@bar@baz")),
    state("32 members", _members(32), out=_members(32)),
    state("33 members", _members(33)),
    state("32 members in two headers", _members(20), _members(32)[len(_members(20)) + 1 :], out=_members(32)),
    state("a key of 256", f"foo=1,{KEY256}=1", out=f"foo=1,{KEY256}=1"),
    state("a key of 257", f"foo=1,{KEY256}k=1"),
    state("a tenant's key of 241 and 14", f"foo=1,{KEY241}@{KEY14}=1", out=f"foo=1,{KEY241}@{KEY14}=1"),
    state("a tenant of 242", f"foo=1,{KEY241}t@v=1"),
    state("a system of 15", f"foo=1,t@{KEY14}v=1"),
    state("a value of 256", f"foo={'v' * 256}", out=f"foo={'v' * 256}"),
    state("a value of 257", f"foo={'v' * 257}"),
    state("a value with =", "foo=bar=baz"),
    state("no value", "foo=,bar=3"),
    state("no =", "foo,bar=3"),
    state("more than a line may have", ",".join(f"k{number}={'v' * 256}" for number in range(32)), out=None),
]
