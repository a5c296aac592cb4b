"""A Task as an experiment of the command line."""

from __future__ import annotations

from functools import partial

from ..experiment import Experiment
from ..inputs import read_inputs
from . import evaluate, train
from .task import Task


def experiment(task: Task) -> Experiment:
    """For the registry."""
    return Experiment(
        name=task.name,
        summary=task.summary,
        presets=task.presets,
        train=partial(train.run, task),
        evaluation=lambda path: train.load_config(task, path).evaluation,
        evaluate=partial(evaluate.run, task),
        figures=evaluate.figures_of(task),
        load=partial(train.load, task),
        read_inputs=lambda path: task.inputs(read_inputs(path, task.shape)),
    )
