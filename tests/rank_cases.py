"""Every experiment's training in two steps, on tiny data and tiny networks."""

from dataclasses import replace
from unittest.mock import patch

import torch
from made_up import digits

from hyperfast.data import Handwriting, Labelled, Parts, Text
from hyperfast.data.drawn_faces import draw_faces
from hyperfast.data.faces import Faces
from hyperfast.experiments.diverse_networks.mnfg import train as mnfg
from hyperfast.experiments.diverse_networks.mnist import train as mnist
from hyperfast.experiments.diverse_networks.toy import train as toy
from hyperfast.experiments.functional_images.faces import model as face_model
from hyperfast.experiments.functional_images.faces import train as faces
from hyperfast.experiments.functional_images.shapes import train as shapes
from hyperfast.experiments.functional_images.super_resolution import train as super_resolution
from hyperfast.experiments.functional_images.super_resolution.patches import Batch, Patches
from hyperfast.experiments.hypergan import mnist as hypergan_mnist
from hyperfast.experiments.hypergan import train as hypergan
from hyperfast.experiments.hypergan.config import Baseline
from hyperfast.experiments.hypergan.mnist.config import Config as HyperGANConfig
from hyperfast.experiments.hypergan.regression import train as regression
from hyperfast.experiments.hypernetworks.char_lm import train as char_lm
from hyperfast.experiments.hypernetworks.coordinates.train import CLASSIFICATION as COORDINATES
from hyperfast.experiments.hypernetworks.handwriting import train as handwriting
from hyperfast.experiments.hypernetworks.mnist.train import CLASSIFICATION as CONVOLUTION
from hyperfast.experiments.hypernetworks.wrn.train import CLASSIFICATION as WRN
from hyperfast.experiments.training import generator_at

CPU = torch.device("cpu")
EVERY_STEP = {"log_every": 1, "checkpoint_every": 100}
VALIDATED = {**EVERY_STEP, "validate_every": 2}


def some_digits(count, seed):
    images, labels = digits(count, seed)
    return Labelled(torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def some_parts(images, classes=10):
    labels = torch.arange(60) % classes
    made = [Labelled(torch.rand(n, *images, generator=generator_at(7, n)), labels[:n]) for n in (40, 10, 10)]
    return Parts(*made, "made up")


def train_mnist(out):
    config = mnist.Config(
        networks=4, images=4, steps=2, learning_rate=1e-6, accuracy_weight=10.0, validation_networks=4, **VALIDATED
    )  # fmt: skip
    mnist.train(config, some_digits(40, 1), some_digits(10, 2), out, CPU)


def train_mnfg(out):
    config = mnfg.Config(
        networks=4, images=8, epochs=1, learning_rate=3e-3, validation_networks=3, **VALIDATED
    )  # fmt: skip
    mnfg.train(config, some_digits(16, 1), some_digits(10, 2), out, CPU)


def train_toy(out):
    toy.train(toy.Config(points=6, steps=2, **EVERY_STEP), out, CPU)


GAN = {
    "noise": 8, "code": 8, "hidden": 16, "networks": 4, "steps": 2, "pretraining_codes": 20, "pretraining_steps": 2,
    "weight_decay": 0.0, **EVERY_STEP,
}  # fmt: skip


def train_hypergan(out, **settings):
    config = HyperGANConfig(
        **GAN | settings, images_a_network=4, validate_every=2, validation_networks=3,
        baseline=Baseline(epochs=1, images=20, networks=4, q_hidden=4, r_hidden=4, members=6, members_at_once=4),
    )  # fmt: skip
    hypergan.train(hypergan_mnist.TASK, config, some_parts((1, 28, 28)), out, CPU)


def train_regression(out):
    regression.train(regression.Config(**GAN, units=10), out, CPU)


def train_char_lm(out, dropout=0.0):
    drawn = torch.randint(0, 9, (220,), generator=generator_at(0, 0), dtype=torch.uint8)
    config = char_lm.Config(
        units=12, hyper_units=6, embedding=2, batch=4, length=10, steps=4, input_dropout=dropout,
        recurrent_dropout=dropout, output_dropout=dropout, **EVERY_STEP, validate_every=4,
    )  # fmt: skip
    char_lm.train(config, Text(drawn[:180], drawn[180:200], drawn[200:], b"abcdefghi"), out, CPU)


def train_handwriting(out):
    draws = generator_at(1, 1)
    lines = tuple(torch.randn(n, 3, generator=draws) for n in (9, 23, 14, 30, 11, 17))
    lines = tuple(torch.cat([line[:, :2], (line[:, 2:] > 0).float()], 1) for line in lines)
    config = handwriting.Config(
        units=12, hyper_units=6, embedding=2, mixtures=3, min_length=5, batch=4, steps=2, learning_rate=1e-2, clip=0.5,
        recurrent_dropout=0.0, output_dropout=0.0, **VALIDATED,
    )  # fmt: skip
    handwriting.train(config, Handwriting(lines, lines[:2], lines[2:]), out, CPU)


def train_classifier(out, task, images, **settings):
    preset = task.presets["small"]
    config = replace(preset, batch=8, padding=1, steps=2, **VALIDATED, **settings)
    task.train(config, some_parts(images), out, CPU)


def doubled(build):
    """build(config, device) with a model in float64: of functional_images' deep hypernetworks two steps round too much."""

    def build_doubled(config, device):
        *net, model, optimizer = build(config, device)
        return *net, model.double(), optimizer

    return build_doubled


def train_shapes(out):
    config = shapes.Config(
        data="embedded", points=20, sigma=0.05, width=4, branch_width=8, batch=4, steps=2, learning_rate=0.01, **VALIDATED
    )  # fmt: skip
    pictures = torch.rand(40, 1, 8, 8, generator=generator_at(2, 2), dtype=torch.float64)
    parts = shapes.Pictures(pictures[:20], pictures[20:30], pictures[30:])
    circle, pixels = shapes.circle, shapes.pixels
    with patch.multiple(
        shapes, build=doubled(shapes.build), circle=lambda turns: circle(turns.double()),
        pixels=lambda side, device: pixels(side, device).double(),
    ):  # fmt: skip
        shapes.train(config, parts, out, CPU)


def train_super_resolution(out, **settings):
    config = super_resolution.Config(
        width=4, branch_width=8, patch=4, points=12, scales=(2, 3), batch=4, steps=2, held_out=1, learning_rate=0.01,
        **VALIDATED, **settings,
    )  # fmt: skip
    pictures = [torch.randint(0, 256, (3, 30, 24), generator=generator_at(3, i), dtype=torch.uint8) for i in range(3)]
    draw, pair_of = Patches.draw, super_resolution.pair_of

    def pair_doubled(*of):
        pair = pair_of(*of)
        return replace(pair, low=pair.low.double(), high=pair.high.double())

    def draw_doubled(patches, draws):
        return Batch(*(value.double() for value in vars(draw(patches, draws)).values()))

    with (
        patch.multiple(super_resolution, build=doubled(super_resolution.build), pair_of=pair_doubled),
        patch.object(Patches, "draw", draw_doubled),
    ):
        super_resolution.train(config, pictures, out, CPU)


def train_faces(out):
    config = faces.Config(
        data="faces", side=8, crop=30, held_out=2, points=20, norm="shared", width=4, branch_width=8, batch=4, steps=2,
        mirrored=True, learning_rate=0.01, **VALIDATED,
    )  # fmt: skip
    drawn = Faces(draw_faces(10, 8, 0), draw_faces(2, 8, 1), draw_faces(2, 8, 2), "drawn")
    in_unit, centres = faces.in_unit, face_model.centres
    in_unit_doubled = lambda pictures, device: in_unit(pictures, device).double()
    with (
        patch.multiple(faces, build=doubled(faces.build), in_unit=in_unit_doubled),
        patch.object(face_model, "centres", lambda pixels, side: centres(pixels, side).double()),
    ):
        faces.train(config, drawn, out, CPU)


LOOPS = [mnist, mnfg, toy, hypergan, regression, char_lm, handwriting, shapes, faces, super_resolution]
CASES = {
    "diverse_networks/mnist": train_mnist,
    "diverse_networks/mnfg": train_mnfg,
    "diverse_networks/toy": train_toy,
    "hypergan/mnist": train_hypergan,
    "hypergan/mnist, own images": lambda out: train_hypergan(out, own_images=True, padding=2, flip=True),
    "hypergan/mnist, mnfg": lambda out: train_hypergan(out, method="mnfg"),
    "hypergan/mnist, ensemble": lambda out: train_hypergan(out, method="ensemble"),
    "hypergan/regression": train_regression,
    "hypernetworks/char_lm": train_char_lm,
    "hypernetworks/handwriting": train_handwriting,
    "hypernetworks/mnist": lambda out: train_classifier(out, CONVOLUTION, (1, 28, 28)),
    "hypernetworks/coordinates": lambda out: train_classifier(out, COORDINATES, (1, 28, 28)),
    "hypernetworks/wrn": lambda out: train_classifier(out, WRN, (3, 8, 8), rates=(0.1,), until=()),
    "functional_images/faces": train_faces,
    "functional_images/shapes": train_shapes,
    "functional_images/super_resolution": lambda out: train_super_resolution(out, norm="shared", missing=0.4),
    "functional_images/super_resolution, residual": lambda out: train_super_resolution(out, predicts="residual"),
}
# hypergan's CIFAR experiments are hypergan/mnist with other images and another target network.
SAME_CODE = {"hypergan/cifar5", "hypergan/cifar10"}
