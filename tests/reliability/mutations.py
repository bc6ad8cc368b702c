"""Seeded changes of JSON, of binary fields and of whole bytes; the same in every run."""

import copy
import json
import random
import resource
import struct
import time

from damage import spoiled

# What no writer of a file meant, and some readers believed.
HOSTILE = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 1.5, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "\0",
        "../..",
        "/etc/passwd",
        "\udcff",
        "9" * 5000,
        "$$",
    ),
    *([], {}, [[]], [None], {"": ""}, [1] * 1000, {"type": "x"}, "é" * 1000, "<|endoftext|>"),
)
_KINDS = ("flip", "insert", "remove", "cut", "zero", "repeat")
SECONDS, ROOM = 10.0, 200 * 2**20


def changes(draw: random.Random):
    """Changes of bytes, for `damage.spoiled`."""
    count = draw.randint(1, 4)
    return [
        (draw.choice(_KINDS), draw.randrange(2**20), draw.randbytes(draw.randint(1, 8)))
        for _ in range(count)
    ]


def _places(tree, path=()):
    yield path
    below = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in below:
        yield from _places(value, (*path, key))


def of_json(text: bytes, draw: random.Random) -> bytes:
    """JSON with parts replaced, removed, moved, renamed or nested; or with its bytes changed."""
    if draw.random() < 0.3:
        return spoiled(text, changes(draw))
    tree = json.loads(text)
    for _ in range(draw.randint(1, 3)):
        places = [place for place in _places(tree) if place]
        if not places:
            break
        *path, last = draw.choice(places)
        node = tree
        for key in path:
            node = node[key]
        kind = draw.randrange(6)
        if kind == 0:
            del node[last]
        elif kind == 1 and isinstance(node, dict):
            node[str(draw.choice(HOSTILE))] = node.pop(last)
        elif kind == 2:
            node[last] = {"a": node[last]}
        elif kind == 3 and len(places) > 1:
            other = tree
            for key in draw.choice(places)[:-1]:
                other = other[key]
            node[last] = copy.deepcopy(
                draw.choice(list(other.values()) if isinstance(other, dict) else other)
            )
        else:
            node[last] = copy.deepcopy(draw.choice(HOSTILE))
    made = json.dumps(tree).encode()
    if draw.random() < 0.05:
        deep = draw.choice((b"[", b'{"a":'))
        made = made[:-1] + b"," + deep * draw.choice((50, 5000, 200_000))
    return made


def of_fields(whole: bytes, draw: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """Bytes in which fields of 1, 2, 4 or 8 bytes get extreme values, between two places."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        size = draw.choice((1, 2, 4, 8))
        at = draw.randrange(begin, max(begin + 1, min(end or len(data), len(data)) - size))
        value = draw.choice(
            (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), draw.randrange(2 ** (8 * size)))
        )
        order = draw.choice("<>")
        data[at : at + size] = struct.pack(
            f"{order}{ {1: 'B', 2: 'H', 4: 'I', 8: 'Q'}[size] }", value
        )
    return bytes(data)


def of_bytes(whole: bytes, draw: random.Random) -> bytes:
    """Either kind of change."""
    return of_fields(whole, draw) if draw.random() < 0.5 else spoiled(whole, changes(draw))


class Watch:
    """Fails where one case takes too long, or all of them took far more memory than their files."""

    def __init__(self):
        self._before = _peak()
        self._largest = 0
        self.tried = self.read = 0

    def case(self, size: int, use) -> None:
        """Run `use()`, which gives whether the input of `size` bytes was read."""
        self._largest = max(self._largest, size)
        begin = time.monotonic()
        self.read += bool(use())
        self.tried += 1
        assert time.monotonic() - begin < SECONDS
        assert _peak() - self._before < 2 * self._largest + ROOM


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
