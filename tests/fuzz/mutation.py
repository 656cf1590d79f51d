"""Changes to valid inputs, of bytes and of the words and numbers that stand in them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (
    *(b"0", b"1", b"-1", b"00", b"127", b"128", b"255", b"256", b"65535", b"65536", b"2147483647"),
    *(b"2147483648", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"1e400"),
    *(b"18446744073709551616", b"-0", b"0.5", b"1e3", b"+1", b"0x10", b"1_0", b"9" * 40),
)
_BYTES = (0, 1, 9, 10, 13, 32, 34, 44, 58, 0x7F, 0x80, 0xC0, 0xFE, 0xFF)


class Mutator:
    """Makes inputs out of a corpus; `words` are what stands in such inputs and decides.

    Equal random sources make equal inputs.
    """

    def __init__(
        self,
        source: random.Random,
        corpus: Sequence[bytes],
        words: Sequence[bytes] = (),
        most_bytes: int = 4096,
    ) -> None:
        self._source, self._corpus, self._words = source, tuple(corpus), tuple(words)
        self._most_bytes = most_bytes

    def choose(self) -> bytes:
        """An input of the corpus as it is."""
        return self._source.choice(self._corpus)

    def make(self) -> bytes:
        """An input of the corpus with one to six changes, now and then with none."""
        source = self._source
        data = bytearray(self.choose())
        for _ in range(source.choice((0, 1, 1, 1, 2, 2, 3, 6))):
            self._change(data)
        return bytes(data[: self._most_bytes])

    def _change(self, data: bytearray) -> None:
        source = self._source
        at = source.randrange(len(data) + 1)
        piece = slice(at, at + source.choice((1, 1, 2, 4, 8, 30)))
        match source.randrange(11):
            case 0 if at < len(data):
                data[at] ^= 1 << source.randrange(8)
            case 1 if at < len(data):
                data[at] = source.choice(_BYTES)
            case 2:
                data[at:at] = bytes([source.choice(_BYTES)])
            case 3:
                del data[piece]
            case 4:
                data[at:at] = data[piece] * source.choice((1, 1, 2, 20))
            case 5:
                del data[at:]
            case 6 if self._words:
                data[at:at] = source.choice(self._words)
            case 7 if self._words:
                word = source.choice(self._words)
                start = data.find(word)
                if start >= 0:
                    data[start : start + len(word)] = source.choice(self._words)
                else:
                    data[piece] = word
            case 8:
                numbers = list(_NUMBER.finditer(data))
                if numbers:
                    number = source.choice(numbers)
                    data[number.start() : number.end()] = source.choice(_NUMBERS)
            case 9:
                other = self.choose()
                start = source.randrange(len(other) + 1)
                data[at:] = other[start:]
            case _:
                other = self.choose()
                start = source.randrange(len(other) + 1)
                data[at:at] = other[start : start + source.choice((4, 16, 64))]
