"""Deutsch's toy problem: a hypernetwork draws a curve through the peaks of a mixture of Gaussians in the plane."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="generate a curve of points through a mixture of Gaussians (Deutsch, section 4.1)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
    load=train.load,
)
