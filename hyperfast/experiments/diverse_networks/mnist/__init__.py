"""Deutsch's experiment on MNIST: a hypernetwork of 633,640 parameters generates networks of 20,018 weights."""

from ...experiment import Experiment
from ...inputs import read_inputs
from ..analysis.evaluate import FIGURES, evaluation
from . import train
from .config import NAME, PRESETS

EXPERIMENT = Experiment(
    name=NAME,
    summary="generate diverse convolutional networks for MNIST (Deutsch, section 4.2)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluation(train.load, train.load_config, "entropy", "entropy of the weights, nats"),
    figures=FIGURES,
    load=train.load,
    read_inputs=read_inputs,
)
