"""Faces as functions of coordinates: a hypernetwork generates a network for each, and networks between them."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="faces as functions of continuous coordinates, and paths between them (Klocek et al., section 3.3)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
)
