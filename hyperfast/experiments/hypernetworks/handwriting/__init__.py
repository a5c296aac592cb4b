"""Handwriting, point by point, by recurrences with a mixture density (section 4.5, appendix A.3.5)."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="predict and write the pen strokes of IAM-OnDB with HyperLSTM and its baselines (Ha et al., section 4.5)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
)
