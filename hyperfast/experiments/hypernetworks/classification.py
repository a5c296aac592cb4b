"""What the paper's image classifiers share: steps on augmented batches, early stopping, the error, what figures compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Labelled, Parts, augmented, load_pictures
from .. import checkpoint, ranks
from ..experiment import Experiment
from ..loop import BEST, CHECKPOINT, Training, report
from ..loop import run as run_loop
from ..settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least
from ..tables import write_json
from ..training import EpochBatches, descend_unclipped, generator_at, seeded
from .figures import loss_curves

METRICS = ("loss", "error", "learning_rate")
VALIDATION = ("loss", "error")
MAY_DIFFER = LOOP_MAY_DIFFER
_IMAGES_AT_ONCE = 500


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a trained model."""

    beside: tuple[str, ...] = ()
    """Folders of other trainings, drawn into the same figures."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(LoopConfig):
    """What every classifier's config has; those of the experiments derive from it and give the paper's defaults.

    They also have learning_rate_at(step).
    """

    images: str
    """Those that are trained on; the names that an experiment takes are some of load_pictures'."""
    held_out: int = 5_000
    """So many training images are held out for validation."""
    padding: int
    """Images that are trained on are padded by so many pixels on every side and cropped at random."""
    batch: int
    """Images of a step."""
    steps: int
    """Training steps."""
    validate_every: int
    """Steps between validations."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, held_out=1, batch=1, steps=1, validate_every=1)
        check_at_least(self, padding=0)


@dataclass(frozen=True)
class Net:
    """A trained model, for a figure that compares it with others."""

    name: str
    """The training's folder."""
    config: Any
    model: Any


def cross_entropy(config: Any, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, logits)"""
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


@dataclass(frozen=True)
class Classification:
    """An image classifier as an experiment. Its config is a ClassifierConfig; Any stands where it is the experiment's own."""

    name: str
    summary: str
    presets: dict[str, Any]
    model: Callable[[Any], Any]
    """Config -> the model, float32 images [N,C,H,W] -> logits [N,10]."""
    kernels: str
    """Name of the figure ..."""
    draw: Callable[[Sequence[Net], str, Path], Path]
    """... that shows the weights of trained nets: (nets, title of the images, folder) -> file."""
    optimizer: Callable[[Any, Any], torch.optim.Optimizer] = lambda config, model: torch.optim.Adam(
        model.parameters(), config.learning_rate_at(0)
    )
    objective: Callable[[Any, Any, Tensor, Tensor], tuple[Tensor, Tensor]] = cross_entropy
    """(config, model, float32 images, labels) -> (loss, logits)."""
    flip: bool = False
    """Whether half of the images that are trained on are mirrored."""

    def build(self, config: Any, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, initialised by config.seed (the same on every device), and its optimizer."""
        with seeded(config.seed):
            model = self.model(config).to(device)
        return model, self.optimizer(config, model)

    def train_step(
        self, config: Any, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Labelled, step: int
    ) -> dict[str, Tensor | float]:
        """One step on a batch, augmented; metrics as scalar tensors."""
        images = augmented(batch.images, config.padding, self.flip, generator_at(config.seed, step))
        images, labels = ranks.own(images), ranks.own(batch.labels)
        loss, logits = self.objective(config, model, as_floats(images), labels)
        rate = config.learning_rate_at(step)
        descend_unclipped(model, optimizer, loss, rate)
        error = (logits.detach().argmax(1) != labels).float().mean()
        return dict(zip(METRICS, (loss.detach(), error, rate), strict=True))

    def train(
        self,
        config: Any,
        parts: Parts,
        out: Path,
        device: torch.device,
        resume: bool = False,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> int:
        """Trains to config.steps, see loop.run; the step reached. best.safetensors has the lowest validation error."""
        model, optimizer = self.build(config, device)
        training, validation = parts.training.to(device), parts.validation.to(device)
        batches = EpochBatches(len(training), config.batch, config.seed)
        return run_loop(
            Training(
                self.name, config, MAY_DIFFER, config.steps, model, optimizer, shares="batch",
                step=lambda step: self.train_step(config, model, optimizer, training[batches(step).to(device)], step),
                validate=lambda: dict(zip(VALIDATION, measured(model, validation), strict=True)),
                metrics=METRICS, validation=VALIDATION,
                shows="loss {loss:.3f}, {error:.2%} wrong",
                tells=f"validation loss {{loss:.4f}}, error {{error:.2%}}, {parts.title}",
                best_by="error",
            ),
            out, resume, after_step,
        )  # fmt: skip

    def load_config(self, path: Path) -> Any:
        """The config of a checkpoint."""
        return checkpoint.load_config(type(self.presets["paper"]), path, self.name)

    def load(self, path: Path, device: torch.device) -> tuple[nn.Module, Any, int]:
        """The model of a checkpoint in eval mode, its config and its step."""
        kind = type(self.presets["paper"])
        return checkpoint.load_model(kind, path, self.name, lambda config: self.build(config, device))

    def run(self, config: Any, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
        """`hyperfast train`."""
        parts = load_pictures(config.images, data_root, config.held_out)
        report(self.name, self.train(config, parts, out, device, resume), config.steps, out)

    def evaluate(
        self,
        settings: Evaluation,
        path: Path,
        out: Path,
        data_root: Path | None,
        device: torch.device,
        figures: tuple[str, ...],
    ) -> None:
        """`hyperfast evaluate`: evaluation.json, figures."""
        model, config, step = self.load(path, device)
        parts = load_pictures(config.images, data_root, config.held_out)
        about: dict[str, Any] = {
            "checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config),
            "images": parts.title, "parameters": sum(p.numel() for p in model.parameters()),
        }  # fmt: skip
        for name in ("validation", "test"):
            part = getattr(parts, name).to(device)
            about[f"{name}_loss"], about[f"{name}_error"] = measured(model, part)
            print(f"step {step}: {name} error {about[f'{name}_error']:.2%} of {len(part)} images, {parts.title}")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "evaluation.json", about)
        others = [Path(folder) for folder in settings.beside]
        nets = [Net(path.parent.name, config, model), *(self._net(folder, device) for folder in others)]
        if any(net.config.images != config.images for net in nets):
            found = ", ".join(f"{net.name}: {net.config.images}" for net in nets)
            raise ValueError(f"evaluation.beside must name trainings on the same images; got {found}")
        for name in figures:
            if name == "loss":
                label = f"error, {parts.title}"
                written = loss_curves([path.parent, *others], "error", label, out / "loss.png")
            else:
                written = self.draw(nets, parts.title, out)
            print(f"{name}: {written}")

    def _net(self, folder: Path, device: torch.device) -> Net:
        """The best model of a training, or its last where none was validated."""
        path = next((folder / name for name in (BEST, CHECKPOINT) if (folder / name).exists()), folder / CHECKPOINT)
        model, config, _ = self.load(path, device)
        return Net(folder.name, config, model)

    def experiment(self) -> Experiment:
        """For the registry."""
        return Experiment(
            name=self.name, summary=self.summary, presets=self.presets, train=self.run,
            evaluation=lambda path: self.load_config(path).evaluation,
            evaluate=self.evaluate, figures=("loss", self.kernels),
        )  # fmt: skip


def as_floats(images: Tensor) -> Tensor:
    """float32 in [0, 1] of images that may be uint8."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@torch.no_grad()
def measured(model: nn.Module, data: Labelled) -> tuple[float, float]:
    """(cross-entropy in nats, share of wrong labels) on all of `data`, in eval mode; the mode is as before afterwards."""
    training, total, wrong = model.training, 0.0, 0
    model.eval()
    for begin in range(0, len(data), _IMAGES_AT_ONCE):
        some = data[begin : begin + _IMAGES_AT_ONCE]
        logits = model(as_floats(some.images))
        total += F.cross_entropy(logits, some.labels, reduction="sum").item()
        wrong += int((logits.argmax(1) != some.labels).sum())
    model.train(training)
    return total / len(data), wrong / len(data)
