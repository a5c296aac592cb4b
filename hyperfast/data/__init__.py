"""Readers of the data sets, and the data that every installation carries."""

from .augment import augmented
from .cifar import CIFAR10, load_cifar10, load_cifar10_subset
from .digits import Digits, load_digits
from .labelled import Labelled, Parts
from .mnist import MNIST, load_mnist
from .notmnist import load_notmnist, load_photo_patches
from .pictures import load_pictures
from .root import data_root
from .strokes import Handwriting, load_handwriting, strokes_of
from .text import Text, load_text

__all__ = [
    "CIFAR10",
    "MNIST",
    "Digits",
    "Handwriting",
    "Labelled",
    "Parts",
    "Text",
    "augmented",
    "data_root",
    "load_cifar10",
    "load_cifar10_subset",
    "load_digits",
    "load_handwriting",
    "load_mnist",
    "load_notmnist",
    "load_photo_patches",
    "load_pictures",
    "load_text",
    "strokes_of",
]
