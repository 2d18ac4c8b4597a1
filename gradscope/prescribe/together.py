"""Make one remedy of several that an ailment needs at once."""

from __future__ import annotations

from dataclasses import replace

from gradscope.prescribe.paste import joined
from gradscope.records import Remedy


def together(first: Remedy, *others: Remedy) -> Remedy:
    """Return a remedy that does all of these, in their order; what is expected is the first one's."""
    whole = first
    for other in others:
        whole = replace(
            whole,
            title=f"{whole.title}, and {other.title[:1].lower()}{other.title[1:]}",
            why=f"{whole.why} {other.why}",
            code=joined(whole.code, other.code),
            action={"do": "all", "actions": [dict(whole.action), dict(other.action)]},
        )
    return whole
