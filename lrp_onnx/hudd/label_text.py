"""What a person means by a label: a class by name or number, or numbers to regress."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lrp_onnx.hudd.label_table import few

Answer = int | tuple[float, ...]
_WHOLE = re.compile(r"(\d+)(?:[.,]0*)?")


class LabelText:
    """Reads labels.

    Parameters
    ----------
    classes : sequence of str or None
        Class names by index.
    outputs : int or None
        Number of outputs of the model; None leaves indexes, and how many numbers there are, unchecked.
    regression : bool
        Labels are numbers.
    """

    def __init__(self, classes: Sequence[str] | None, outputs: int | None, regression: bool) -> None:
        self.classes, self.outputs, self.regression = classes or (), outputs, regression
        if self.classes:
            self._classes: int | None = len(self.classes)
        else:
            self._classes = None if outputs is None else max(outputs, 2)  # one output tells two classes apart

    def read(self, text: str) -> Answer | None:
        """Class index, or numbers; None for what is neither."""
        return self._numbers(text) if self.regression else self._class(text)

    @property
    def expected(self) -> str:
        """What is wrong with a label that means nothing, and what would be right."""
        if self.regression:
            count = "" if self.outputs is None else f"{self.outputs} "
            return f"expected {count}numbers, separated by spaces"
        index = "an index" if self._classes is None else f"an index from 0 to {self._classes - 1}"
        names = f"{few([repr(name) for name in self.classes])}, or " if self.classes else ""
        return f"not one class of the model; expected {names}{index}"

    def _class(self, text: str) -> int | None:
        for same in (str.strip, lambda name: name.strip().casefold()):
            if found := [index for index, name in enumerate(self.classes) if same(name) == same(text)]:
                return found[0] if len(found) == 1 else None
        if not (whole := _WHOLE.fullmatch(text)):
            return None
        number = int(whole[1])
        if self.classes and all(name.isdecimal() for name in self.classes):
            # a spreadsheet has made 7 of "007"; an index would mean another class
            found = [index for index, name in enumerate(self.classes) if int(name) == number]
            return found[0] if len(found) == 1 else None
        return number if self._classes is None or number < self._classes else None

    def _numbers(self, text: str) -> tuple[float, ...] | None:
        try:
            numbers = tuple(float(part.replace(",", ".")) for part in text.replace(";", " ").split())
        except ValueError:
            return None
        fits = len(numbers) == (self.outputs or len(numbers))
        return numbers if fits and all(map(math.isfinite, numbers)) else None
