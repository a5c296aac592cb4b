"""The settings of hypernetworks/handwriting; the defaults are table 5's best row, the HyperLSTM of 900 units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, check_at_least
from ..recurrence import RecurrenceConfig

NAME = "hypernetworks/handwriting"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_lines")


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a trained model, and what it writes."""

    lines: int | None = None
    """The first so many lines of the validation and of the test data; None: all."""
    samples: int = 12
    """Lines to write."""
    sample_length: int = 700
    """Points of each."""
    bias: float = 0.0
    """Of the samples: 0 draws from the density, more draws from nearer to its modes."""
    seed: int = 1
    """Of the samples."""
    beside: tuple[str, ...] = ()
    """Folders of other trainings whose losses are drawn into the same figure."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", lines=1, samples=1, sample_length=2)


@dataclass(frozen=True)
class Config(RecurrenceConfig):
    """A model of handwriting: the pen's offsets, a recurrence, a mixture density (section 4.5, appendix A.3.5)."""

    lines: Literal["iam_ondb", "embedded"] = "iam_ondb"
    """IAM-OnDB, or the outlines of scikit-learn's digits."""
    split: Literal["graves", "official"] = "graves"
    """Of IAM-OnDB: Graves (2013) trains on all lines but those of testset_v; or as the database's makers have it."""
    min_length: int = 300
    """Lines of fewer points are left out."""
    scale: float = 0.1
    """A line that is trained on is scaled by a factor from 1 - scale to 1 + scale, drawn anew each time."""
    mixtures: int = 20
    """Gaussians of the density."""
    cell: Literal["lstm", "layer_norm_lstm", "hyper_lstm"] = "hyper_lstm"
    units: int = 900
    layer_norm: bool = False
    recurrent_dropout: float = 0.05
    output_dropout: float = 0.05
    batch: int = 32
    """Lines of a step."""
    learning_rate: float = 1e-4
    """Of Adam."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    steps: int = 30_000
    """Training steps: about 90 passes over IAM-OnDB; the paper does not say how many."""
    validate_every: int = 320
    """Steps between validations: about a pass."""
    validation_lines: int | None = 320
    """The first so many lines of the validation data; None: all."""
    checkpoint_every: int = 100
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, min_length=2)  # a point and the next
        check_at_least(self, mixtures=1, batch=1, steps=1, validate_every=1)
        if not 0 <= self.scale < 1:
            raise ValueError(f"config.scale must be from 0 to below 1; got {self.scale}")


_PAPER = Config()
_LSTM = replace(_PAPER, cell="lstm")
_PLAIN = replace(_LSTM, scale=0.0, recurrent_dropout=0.0, output_dropout=0.0)

PRESETS = {
    "paper": _PAPER,
    # Table 5; "plain": without dropout and augmentation, as Graves.
    "plain_lstm": _PLAIN,
    "plain_lstm_three_layers": replace(_PLAIN, units=400, layers=3),
    "lstm": _LSTM,
    "lstm_1000": replace(_LSTM, units=1_000),
    "lstm_three_layers": replace(_LSTM, units=400, layers=3),
    "lstm_two_layers": replace(_LSTM, units=650, layers=2),
    "layer_norm_lstm": replace(_PAPER, cell="layer_norm_lstm"),
    "layer_norm_lstm_1000": replace(_PAPER, cell="layer_norm_lstm", units=1_000),
    "layer_norm_hyper_lstm": replace(_PAPER, layer_norm=True),
    # Shows in two minutes that all works, on the outlines of digits.
    "small": replace(
        _PAPER, lines="embedded", units=128, hyper_units=32, batch=16, learning_rate=2e-3, steps=800,
        validate_every=100, evaluation=Evaluation(samples=6, sample_length=400),
    ),
}  # fmt: skip
