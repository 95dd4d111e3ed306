"""Twice the working precision from pairs of float64 numbers, for residuals and gradients.

A pair (high, low) represents its exact sum, with ``low`` at most half a unit in the last place of
``high``. Sums and products of two float64 numbers are exact in that form (Knuth, 1969; Dekker,
1971), and sums of many numbers are exact in about their leading 80 bits. Only elementwise numpy is
used, so results are the same on every processor.
"""

from __future__ import annotations

import numpy as np

from .aliases import FloatArray

Pair = tuple[FloatArray, FloatArray]

# 2**27 + 1 splits 53 bits into two halves whose products are exact
SPLITTER = 134217729.0


def two_sum(a: FloatArray, b: FloatArray) -> Pair:
    """The rounded sum of `a` and `b`, and its rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def halves(a: FloatArray) -> Pair:
    """Two numbers of at most 26 bits each that add up to `a`."""
    big = SPLITTER * a
    high = big - (big - a)
    return high, a - high


def two_product(a: FloatArray, b: FloatArray, a_halves: Pair | None = None) -> Pair:
    """The rounded product of `a` and `b`, and its rounding error."""
    product = a * b
    a_high, a_low = halves(a) if a_halves is None else a_halves
    b_high, b_low = halves(b)
    error = a_high * b_high
    error -= product
    error += a_high * b_low
    error += a_low * b_high
    error += a_low * b_low
    return product, error


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs."""
    high, low = two_sum(a[0], b[0])
    return two_sum(high, low + a[1] + b[1])


def total(terms: FloatArray, low: FloatArray) -> Pair:
    """Sum of `terms` over the first axis, plus `low` (Rump, Ogita and Oishi, 2008).

    The leading bits of the terms, down to the last bit of ``len(terms)`` times the largest, add up
    without error.
    """
    unit = np.ldexp(1.0, np.frexp(np.abs(terms).max(axis=0) * len(terms))[1])
    leading = terms + unit
    leading -= unit
    return two_sum(np.add.reduce(leading), np.add.reduce(terms - leading) + low)
