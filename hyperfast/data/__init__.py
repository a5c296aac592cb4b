"""Readers of the data sets, and the data that every installation carries."""

from .digits import Digits, load_digits
from .mnist import MNIST, Labelled, load_mnist
from .root import data_root
from .strokes import Handwriting, load_handwriting, strokes_of
from .text import Text, load_text

__all__ = [
    "MNIST",
    "Digits",
    "Handwriting",
    "Labelled",
    "Text",
    "data_root",
    "load_digits",
    "load_handwriting",
    "load_mnist",
    "load_text",
    "strokes_of",
]
