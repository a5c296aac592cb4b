"""The settings of hypernetworks/char_lm; the defaults are table 3's Layer Norm HyperLSTM of 1000 units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, check_at_least
from ..recurrence import RecurrenceConfig

NAME = "hypernetworks/char_lm"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "epochs", "validation_characters")


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a trained model."""

    characters: int | None = None
    """The first so many characters of the validation and of the test text; None: all."""
    sample_length: int = 600
    """Characters to generate."""
    temperatures: tuple[float, ...] = (0.5, 0.8, 1.0)
    """Of the samples: logits are divided by it."""
    shown: int = 120
    """Characters of a sample under the picture of weight changes."""
    histogram_characters: int = 2_000
    """Characters of the validation text whose cells make the histograms."""
    seed: int = 1
    """Of the samples."""
    beside: tuple[str, ...] = ()
    """Folders of other trainings whose losses are drawn into the same figure."""


@dataclass(frozen=True)
class Config(RecurrenceConfig):
    """A language model of characters: one-hot symbols, a recurrence, a softmax (section 4.2, appendices A.3.3, A.3.4)."""

    text: Literal["ptb", "enwik8", "embedded"] = "ptb"
    """Penn Treebank's characters, enwik8's bytes, or the text that comes with Python."""
    units: int = 1_000
    layer_norm: bool = True
    input_dropout: float = 0.1
    """Probability of dropping an input."""
    recurrent_dropout: float = 0.1
    output_dropout: float = 0.1
    batch: int = 128
    """Parts of the text that are read side by side."""
    length: int = 100
    """Characters of truncated backpropagation; the state goes on."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    epochs: int = 60
    """Passes over the training text; the paper does not say how many."""
    steps: int | None = None
    """Training steps in all; None: those of `epochs`."""
    validate_every: int = 390
    """Steps between validations: about an epoch of Penn Treebank."""
    validation_characters: int | None = 100_000
    """The first so many characters of the validation text, as one stream; None: all."""
    checkpoint_every: int = 100
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, batch=1, length=1, epochs=1, validate_every=1)
        if self.cell == "hyper_rnn" and self.layers > 1:
            raise ValueError(f"config.layers must be 1 with hyper_rnn; got {self.layers}")


_PAPER = Config()
_PTB_LSTM = replace(_PAPER, cell="lstm")
_ENWIK8 = replace(
    _PAPER, text="enwik8", units=1_800, hyper_units=256, embedding=64, length=250, input_dropout=0.0, output_dropout=0.0
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    # Table 3, Penn Treebank.
    "ptb_lstm_1000": _PTB_LSTM,
    "ptb_lstm_1250": replace(_PTB_LSTM, units=1_250),
    "ptb_lstm_two_layers": replace(_PTB_LSTM, layers=2),
    "ptb_layer_norm_lstm": replace(_PAPER, cell="layer_norm_lstm"),
    "ptb_hyper_lstm": replace(_PAPER, layer_norm=False),
    "ptb_hyper_lstm_large_embedding": replace(
        _PAPER, embedding=16, input_dropout=0.15, recurrent_dropout=0.15, output_dropout=0.15
    ),
    "ptb_hyper_lstm_two_layers": replace(
        _PAPER, embedding=16, layers=2, input_dropout=0.2, recurrent_dropout=0.2, output_dropout=0.2
    ),
    "ptb_hyper_rnn": replace(_PAPER, cell="hyper_rnn", recurrent_dropout=0.0),
    # Table 4, enwik8.
    "enwik8_lstm": replace(_ENWIK8, cell="lstm"),
    "enwik8_layer_norm_lstm": replace(_ENWIK8, cell="layer_norm_lstm"),
    "enwik8_hyper_lstm": replace(_ENWIK8, layer_norm=False),
    "enwik8_layer_norm_hyper_lstm": _ENWIK8,
    "enwik8_layer_norm_hyper_lstm_2048": replace(_ENWIK8, units=2_048, hyper_units=512, length=300),
    # Shows in two minutes that all works, on the text that comes with Python.
    "small": replace(
        _PAPER, text="embedded", units=128, hyper_units=32, batch=32, length=50, steps=400, validate_every=100,
        validation_characters=5_000, evaluation=Evaluation(characters=5_000, sample_length=300),
    ),
}  # fmt: skip
