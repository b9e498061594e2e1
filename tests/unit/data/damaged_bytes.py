"""Files that went wrong: bytes of a good one cut, changed, repeated or left out, or no such bytes at all."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def _changed(draw: st.DrawFn, good: bytes) -> bytes:
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 8, 512]))
        what = draw(st.sampled_from(["change", "change", "cut", "drop", "insert", "repeat"]))
        if what == "change":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "cut":
            del content[place:]
        elif what == "drop":
            del content[place : place + length]
        elif what == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            content[place:place] = content[place : place + length]
    return bytes(content)


def damaged(*good: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of contents: short random bytes, and damaged forms of good files."""
    return st.one_of(st.binary(max_size=80), *(_changed(content) for content in good))
