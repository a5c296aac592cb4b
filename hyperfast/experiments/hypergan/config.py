"""The settings that HyperGAN's experiments share; the defaults are the paper's, and where it is silent those of the authors' code."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

from ..settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least, check_positive

MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_networks", "validation_images")


@dataclass(frozen=True)
class GANConfig(LoopConfig):
    """loss = mean loss of the generated networks - adversarial_weight * mean log D(q): eq. 2, and the GAN of section 3."""

    noise: int = 256
    """Elements of the noise z."""
    code: int = 128
    """d, elements of a layer's code."""
    hidden: int = 512
    """Units of each of the two hidden layers of encoder, generators and discriminator."""
    networks: int = 32
    """Networks generated in a step."""
    adversarial_weight: float = 1.0
    """beta, of the loss that makes the codes look like the prior's. The paper does not say; its code has 1 to 1000."""
    steps: int = 187_500
    """Training steps in all. The paper does not say: 100 passes over 60,000 images in batches of 32."""
    encoder_learning_rate: float = 5e-4
    """Of Adam, for the encoder, at the first step."""
    generator_learning_rate: float = 1e-4
    """Of Adam, for the generators, at the first step."""
    discriminator_learning_rate: float = 1e-4
    """Of Adam, for the discriminator, at the first step."""
    learning_rate_decay: float = 1.0
    """Factor of the learning rates at each step."""
    adam_betas: tuple[float, float] = (0.5, 0.9)
    """Adam's decays of the mean gradient and of the mean square."""
    weight_decay: float = 1e-4
    """Adds so many times a parameter to its gradient."""
    pretraining_steps: int = 100
    """Steps, at most, in which the encoder learns the prior's mean and covariance before the training."""
    pretraining_codes: int = 1_000
    """Codes in each of them."""
    pretraining_stop: float = 0.1
    """Distance of the moments, a code's mean squared differences, below which the pretraining ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self, noise=1, code=1, hidden=1, networks=1, steps=0, adversarial_weight=0, weight_decay=0,
            pretraining_steps=0, pretraining_codes=2,
        )  # fmt: skip

    def learning_rates_at(self, step: int) -> dict[str, float]:
        """Of encoder, generators and discriminator."""
        rates = {
            "encoder": self.encoder_learning_rate,
            "generators": self.generator_learning_rate,
            "discriminator": self.discriminator_learning_rate,
        }
        return {name: rate * self.learning_rate_decay**step for name, rate in rates.items()}


@dataclass(frozen=True)
class Baseline:
    """What HyperGAN is compared with."""

    epochs: int = 20
    """Passes over the training images. The paper does not say; MNFG's authors take 100."""
    images: int = 100
    """Images in a step of a network; with mnfg, of all networks together."""
    learning_rate: float = 1e-3
    """Of Adam."""
    members: int = 10
    """Networks trained, each from initial weights of its own (method ensemble)."""
    members_at_once: int = 5
    """Networks trained together; a checkpoint is written after each such group."""
    dropout: float = 0.5
    """Probability of dropping what a linear layer reads (method dropout)."""
    networks: int = 10
    """Networks drawn in a step, which share its images out among themselves (method mnfg)."""
    q_hidden: int = 50
    """Hidden units of the posterior's flows (mnfg)."""
    r_hidden: int = 100
    """Hidden units of the auxiliary distribution's flows (mnfg)."""
    q_steps: int = 2
    """Steps of each of the posterior's flows (mnfg)."""
    r_steps: int = 2
    """Steps of each of the auxiliary distribution's flows (mnfg)."""
    largest_deviation: float = 0.5
    """Bound of the standard deviation of a weight, given z (mnfg)."""

    def __post_init__(self) -> None:
        check_at_least(
            self, "config.baseline", epochs=0, images=1, members=1, members_at_once=1, networks=1, q_hidden=1,
            r_hidden=1, q_steps=0, r_steps=0,
        )  # fmt: skip
        if not 0 < self.dropout < 1:
            raise ValueError(f"config.baseline.dropout must lie between 0 and 1; got {self.dropout}")
        if self.images % self.networks:
            raise ValueError(
                f"config.baseline.images must be a multiple of networks, {self.networks}; got {self.images}"
            )
        check_positive(self, "config.baseline", "largest_deviation")

    def steps(self, images: int) -> int:
        """In all, for that many training images."""
        return self.epochs * max(1, images // self.images)


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the generated networks; the defaults are the paper's where it says something."""

    ensemble_sizes: tuple[int, ...] = (1, 5, 10, 100)
    """Networks in an ensemble (table 4)."""
    networks: int = 1_000
    """Networks generated for table 4, in disjoint ensembles."""
    repeats: int = 10
    """Disjoint ensembles of each size, at most."""
    images: int | None = None
    """The first so many test images, and outliers; None: all."""
    norm_networks: int = 100
    """Networks whose layers' norms are told (table 3)."""
    outlier_networks: int = 100
    """Networks in the ensemble whose entropy is taken of inliers and outliers (figures 3 and 7)."""
    attack_images: int = 100
    """Test images that are attacked; the paper does not say."""
    attack_sizes: tuple[float, ...] = (0.01, 0.03, 0.08, 0.1, 0.3, 0.5, 1.0)
    """Largest changes of a pixel, of the range 0 to 1, rising."""
    pgd_steps: int = 40
    """Steps of projected gradient descent."""
    pgd_step_size: float = 0.01
    """Change of a pixel in each."""
    transfer_networks: int = 500
    """Other networks on which an attack on one network is tried (figure 4)."""
    attack_ensembles: tuple[int, ...] = (5, 10, 100, 1_000)
    """Networks in ensembles that are attacked; as many fresh ones judge (figure 5)."""
    false_positive_rate: float = 0.05
    """Share of clean images that the detector by entropy takes for attacked ones."""
    clean_images: int = 1_000
    """Clean test images, none of them attacked, that fix the detector's threshold."""
    filter_samples: int = 25
    """Networks whose filters are drawn (figure 6)."""
    atypical: int = 10
    """Images shown of each kind (figure 7)."""
    beside: tuple[str, ...] = ()
    """Folders of other evaluations, drawn into figures 3 and 5."""
    seed: int = 1
    """Of the networks' noise."""

    def __post_init__(self) -> None:
        check_at_least(
            self, "config.evaluation", ensemble_sizes=1, networks=1, repeats=1, images=1, norm_networks=2,
            outlier_networks=1, attack_images=1, pgd_steps=1, transfer_networks=1, attack_ensembles=1,
            clean_images=2, filter_samples=1, atypical=1,
        )  # fmt: skip
        sizes = self.attack_sizes
        if not sizes or sizes[0] < 0 or any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"config.evaluation.attack_sizes must rise from 0 or more; got {sizes}")
        check_positive(self, "config.evaluation", "pgd_step_size")
        if not 0 < self.false_positive_rate < 1:
            raise ValueError(
                f"config.evaluation.false_positive_rate must lie between 0 and 1; got {self.false_positive_rate}"
            )


SMALL_EVALUATION = Evaluation(
    networks=100, images=500, attack_images=10, attack_sizes=(0.03, 0.1, 0.3), pgd_steps=10, pgd_step_size=0.03,
    transfer_networks=50, attack_ensembles=(5, 10), clean_images=200,
)  # fmt: skip


@dataclass(frozen=True)
class ClassifierConfig(GANConfig):
    """Networks that classify images, by HyperGAN or by what it is compared with."""

    method: Literal["hypergan", "ensemble", "dropout", "mnfg"] = "hypergan"
    """HyperGAN; networks trained one by one; one network with dropout; or multiplicative normalizing flows."""
    images: str = ""
    """Name of the images."""
    subset: int | None = None
    """Only the first so many training images, always the same ones; None: all. The paper: all, and 5,000."""
    held_out: int = 5_000
    """So many training images are held out for validation."""
    images_a_network: int = 32
    """Images of each network in a step."""
    own_images: bool = False
    """Whether each network has other images in a step; the authors' code gives all of them the same."""
    padding: int = 0
    """Images that are trained on are padded by so many pixels on every side and cropped at random."""
    flip: bool = False
    """Whether half of the images that are trained on are mirrored."""
    validate_every: int = 1_000
    """Steps between validations."""
    validation_networks: int = 20
    """Networks generated in a validation, always of the same noise."""
    validation_images: int | None = 2_000
    """The first so many held-out images; None: all."""
    baseline: Baseline = field(default_factory=Baseline)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self, subset=1, held_out=1, images_a_network=1, padding=0, validate_every=1, validation_networks=1,
            validation_images=1,
        )  # fmt: skip


def plainly(config: GANConfig) -> dict[str, Any]:
    """Its fields by name, to make a config of another class of them."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
