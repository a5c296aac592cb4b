"""Digits as distributions in the plane: a hypernetwork generates, for each, a map of the unit circle onto it."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="generate maps of a circle onto the strokes of digits (Klocek et al., section 3.4)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
)
