"""Language models of characters whose recurrence rescales its own weights (section 4.2, appendices A.3.3, A.3.4)."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS
from .figures import FIGURES

EXPERIMENT = Experiment(
    name=NAME,
    summary="predict characters of Penn Treebank or enwik8 with HyperLSTM and its baselines (Ha et al., section 4.2)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=FIGURES,
)
