"""Readers of the data sets, and the data that every installation carries."""

from .digits import Digits, load_digits
from .mnist import MNIST, Labelled, load_mnist
from .root import data_root
from .text import Text, load_text

__all__ = ["MNIST", "Digits", "Labelled", "Text", "data_root", "load_digits", "load_mnist", "load_text"]
