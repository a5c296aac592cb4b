"""Readers of the data sets, and the data that every installation carries."""

from .digits import Digits, load_digits

__all__ = ["Digits", "load_digits"]
