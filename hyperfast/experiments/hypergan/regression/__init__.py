"""HyperGAN on a curve: networks of 301 weights through 20 noisy points of a cubic (section 4.3)."""

from ...experiment import Experiment
from . import evaluate, train
from .config import NAME, PRESETS

EXPERIMENT = Experiment(
    name=NAME,
    summary="generate curves through 20 noisy points of a cubic (HyperGAN, section 4.3)",
    presets=PRESETS,
    train=train.run,
    evaluation=lambda path: train.load_config(path).evaluation,
    evaluate=evaluate.run,
    figures=evaluate.FIGURES,
    load=train.load,
    read_inputs=train.read_inputs,
)
