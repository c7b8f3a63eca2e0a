"""Class names that tell all classes of a model apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def unique_names(names: Sequence[str]) -> list[str]:
    """Names that are there twice, as "crane" is in ImageNet, with their place: "crane (134)"."""
    often = Counter(names)
    return [f"{name} ({place})" if often[name] > 1 else name for place, name in enumerate(names)]
