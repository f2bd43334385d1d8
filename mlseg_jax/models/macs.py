"""Multiply-accumulates of a forward pass, as they are and as the paper counted them.

Every part of a model has a method ``macs`` that says how many it needs for a picture of
some size; these are its pieces. ``exact`` is every matrix product once, nothing
elementwise. ``paper`` follows the counter of the published tables (method.md 14.1):
norms and activations count by their elements, convolutions and linear layers count, but
what a backbone does inside its attention does not, and in Segmenter's blocks one of
the two attention products does not. Table 9, of frameworks that classify regions, was
counted by another program, which missed nothing: there ``paper`` is `in_full`.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by two rules; parts add up."""

    exact: int = 0
    paper: int = 0

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.exact + other.exact, self.paper + other.paper)

    def __rmul__(self, times: int) -> "Macs":
        return Macs(times * self.exact, times * self.paper)


def product(*sizes: int, in_paper: bool = True) -> Macs:
    """A matrix product: rows x columns x summed length (a linear layer, a
    convolution).
    """
    count = math.prod(sizes)
    return Macs(count, count if in_paper else 0)


def norm(*sizes: int) -> Macs:
    """A norm with scale and shift over so many values."""
    return Macs(0, 2 * math.prod(sizes))


def activation(*sizes: int) -> Macs:
    """A ReLU over so many values; the paper's counter knew no GELU."""
    return Macs(0, math.prod(sizes))


def in_full(count: Macs) -> Macs:
    """By the counter of table 9: every product, and norms are as good as nothing."""
    return Macs(count.exact, count.exact)
