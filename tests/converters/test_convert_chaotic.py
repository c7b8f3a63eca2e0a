"""A network that makes rounding errors large is compared in float64; what is wrong in float64, too, is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lrp_onnx import Explainer
from lrp_onnx.converters import convert
from lrp_onnx.errors import ConversionError


class Chaotic(nn.Module):
    """Each layer makes a difference several times as large; after so many nothing of float32 is left."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(24))
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0.0, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def traced(seed: int) -> torch.jit.ScriptModule:
    return torch.jit.trace(Chaotic(seed).eval(), torch.zeros(2, 64))  # takes the quickest exporter


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_agreement_is_found_beyond_rounding_and_said() -> None:
    conversion = convert(traced(0), input_shape=(64,))
    assert conversion.relative < 1e-6
    assert any("rounding errors large" in note and "--dtype float64" in note for note in conversion.notes)
    x = torch.randn(2, 64, dtype=torch.float64)
    e = Explainer(conversion.model, dtype="float64").explain(x, target=0)
    assert np.allclose(e.output, Chaotic(0).double()(x).detach(), atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrp_onnx.converters import pytorch_export

    wrong = convert(traced(1), input_shape=(64,)).model
    monkeypatch.setattr(pytorch_export, "export_older", lambda *_: wrong)
    with pytest.raises(ConversionError, match="outputs differ by"):
        convert(traced(0), input_shape=(64,))
