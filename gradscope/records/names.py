"""Names as every file format can hold them."""

from __future__ import annotations


def storable(text: str) -> str:
    r"""Return a text with lone surrogates, which Python allows and UTF-8 doesn't, spelled out as \udxxx."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
