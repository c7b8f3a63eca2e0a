"""What an explanation holds: relevance by tensor name and the ledger; and how those of parts of a batch are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NodeBalance:
    """Relevance of one node, summed over the batch: what arrived, what was handed on, what its bias absorbed.

    What is left, `remainder`, went into the stabiliser (or, for a rule that does not conserve, was lost). `shares` says
    how much of `handed` each input tensor got.
    """

    node: str
    op_type: str
    rule: str
    arrived: Tensor
    handed: Tensor
    bias: Tensor
    shares: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def remainder(self) -> Tensor:
        return self.arrived - self.handed - self.bias


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `Explainer.explain` gives, batch first.

    Attributes
    ----------
    output : Tensor
        The model output that relevance started from (logits), (N, K) or as the model has it.
    target : numpy.ndarray or None
        Index of the explained output element of each sample, (N,); None where several were.
    relevance : dict of str to Tensor
        By tensor name: the model's inputs and the layers asked for, each shaped as the tensor.
    conservation : list of NodeBalance
        From the output back to the input.
    """

    output: Tensor
    target: np.ndarray | None
    relevance: dict[str, Tensor]
    conservation: list[NodeBalance]


def joined(parts: Sequence[Explanation]) -> Explanation:
    """The explanation of a batch from those of its parts, in order, but for the target; these lose their relevance."""
    if len(parts) == 1:
        return parts[0]
    names = list(parts[0].relevance)
    return Explanation(
        torch.cat([part.output for part in parts]),
        None,
        # tensor by tensor, so that one alone is there twice
        {name: torch.cat([part.relevance.pop(name) for part in parts]) for name in names},
        [_sum(balances) for balances in zip(*(part.conservation for part in parts), strict=True)],
    )


def _sum(balances: Sequence[NodeBalance]) -> NodeBalance:
    """One node's balance over the parts of a batch."""

    def total(sums: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(sums)).sum()

    first = balances[0]
    return NodeBalance(
        first.node,
        first.op_type,
        first.rule,
        total([b.arrived for b in balances]),
        total([b.handed for b in balances]),
        total([b.bias for b in balances]),
        {name: total([b.shares[name] for b in balances]) for name in first.shares},
    )
