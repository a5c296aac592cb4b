"""Super-resolution at any scale: a hypernetwork generates the function of each patch of a picture."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="pictures as functions of continuous coordinates, at any scale (Klocek et al., section 3.2)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
)
