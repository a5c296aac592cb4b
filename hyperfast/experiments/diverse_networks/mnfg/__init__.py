"""Deutsch's comparison: multiplicative normalizing flows over the weights of the same networks."""

from ...experiment import Experiment
from ...inputs import read_inputs
from ..analysis.evaluate import FIGURES, evaluation
from . import train
from .config import NAME, PRESETS

EXPERIMENT = Experiment(
    name=NAME,
    summary="multiplicative normalizing flows over the same networks (Deutsch's comparison)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluation(train.load, train.load_config, "kl", "divergence from the prior, nats"),
    figures=FIGURES,
    load=train.load,
    read_inputs=read_inputs,
)
