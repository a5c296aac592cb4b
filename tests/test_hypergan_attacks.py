"""Attacks on ensembles against plain loops over their members, with torch's own layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from made_up import digits
from torch.func import functional_call

from hyperfast.data import Labelled
from hyperfast.experiments import attacks as shared
from hyperfast.experiments.experiment import Trained
from hyperfast.experiments.hypergan import attacks
from hyperfast.experiments.hypergan.config import Evaluation
from hyperfast.experiments.hypergan.mnist import TASK
from hyperfast.models import targets
from hyperfast.nn import TargetNet

NET = TargetNet(targets.hypergan_mnist())
SETTINGS = Evaluation(attack_sizes=(0.05, 0.3), pgd_steps=3, pgd_step_size=0.04, false_positive_rate=0.25)


@pytest.fixture(scope="module")
def theta():
    return 2 * NET.init(9, torch.Generator().manual_seed(0))


def labelled(theta, count=10):
    """Images with the labels that the first networks give them, but for two."""
    pixels, _ = digits(count, 5)
    images = torch.from_numpy(pixels).unsqueeze(1).float() / 255
    labels = logits_of(theta, images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    return Labelled(images, labels)


def logits_of(theta, images):
    """Mean over the members, one after the other."""
    x = (images - 0.1307) / 0.3081
    template, total = targets.hypergan_mnist().to(images.dtype), 0.0
    for member in theta.to(images.dtype):
        weights = {name: value[0] for name, value in NET.unflatten(member[None]).items()}
        total = total + functional_call(template, weights, (x,))
    return total / len(theta)


def gradient_of(theta, images, labels):
    """The cross-entropy's in float64, divided by 1 - p_y."""
    x = images.double().requires_grad_()
    logits = logits_of(theta, x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
    others = 1 - logits.detach().softmax(1).gather(1, labels[:, None])
    return gradient / others[:, :, None, None]


@pytest.mark.parametrize("pairs", [7, 40, 4_096])
def test_gradients_are_those_of_the_loop_however_they_are_cut(theta, pairs, monkeypatch):
    monkeypatch.setattr(shared, "_PAIRS_AT_ONCE", pairs)
    data = labelled(theta)
    theta, images = theta.double(), data.images.double()
    found = shared.loss_gradient(NET, theta, TASK.inputs, images, data.labels)
    torch.testing.assert_close(found, gradient_of(theta, images, data.labels))
    torch.testing.assert_close(shared.mean_logits(NET, theta, TASK.inputs, images), logits_of(theta, images))


def test_attacks_do_not_vanish_where_the_softmax_has_saturated(theta):
    """Logits of a last layer times 1e4: the cross-entropy's gradient is exactly 0 in float32."""
    sure = theta[:1].clone()
    sure[:, -5_120:] *= 1e4
    data = labelled(sure)[2:]
    x = data.images.clone().requires_grad_()
    (vanished,) = torch.autograd.grad(F.cross_entropy(logits_of(sure, x), data.labels), x)
    assert not vanished.any()
    found = shared.loss_gradient(NET, sure, TASK.inputs, data.images, data.labels)
    assert found.flatten(1).any(1).all()
    moved = shared.pgd(
        lambda x: shared.loss_gradient(NET, sure, TASK.inputs, x, data.labels),
        data.images,
        torch.full((8,), 0.3),
        5,
        0.06,
    )
    assert (logits_of(sure, moved).argmax(1) != data.labels).any()


def plain_attack(method, theta, image, label, epsilon):
    """One image, step by step."""
    moved = image[None].clone()
    for _ in range(1 if method == "fgsm" else SETTINGS.pgd_steps):
        step = epsilon if method == "fgsm" else SETTINGS.pgd_step_size
        moved = moved + step * gradient_of(theta, moved, label[None]).sign().float()
        moved = image + (moved - image).clamp(-epsilon, epsilon)
        moved = moved.clamp(0, 1)
    return moved[0]


@pytest.mark.parametrize("members", [1, 4])
def test_attacks_are_those_written_out(theta, members):
    """Pixels whose gradient is nearly 0 may go either way."""
    data, trained = labelled(theta[:members]), Trained(NET, lambda i: theta[i], 0)
    found = attacks.attack(TASK, trained, members, data, SETTINGS)
    assert torch.equal(found.labels, data.labels[2:])  # the first two were wrong before
    for method in attacks.METHODS:
        assert found.images[method].shape == (2, 8, 1, 28, 28)
        for s, epsilon in enumerate(SETTINGS.attack_sizes):
            moved = found.images[method][s]
            assert ((moved >= 0) & (moved <= 1)).all()
            assert (moved - data.images[2:]).abs().max() <= epsilon + 1e-6
            for i in (0, 5):
                expected = plain_attack(method, theta[:members], data.images[2 + i], found.labels[i], epsilon)
                assert ((moved[i] - expected).abs() < 1e-5).double().mean() > 0.995
            wrong = logits_of(theta[:members], moved).argmax(1) != found.labels
            assert torch.equal(found.success[method][s], wrong)
    assert found.success["fgsm"][1].any()


class Ensemble(torch.nn.Module):
    """The members one after the other, with torch's own layers, in float64."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, images):
        return logits_of(self.theta, images.double())


@pytest.mark.parametrize("members", [1, 4])
def test_attacks_are_those_of_the_adversarial_robustness_toolbox(theta, members):
    """Signs of gradients of nearly 0 apart; its steps are float32, ours are taken in float64."""
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch  # ten seconds, and a GPU
    from art.estimators.classification import PyTorchClassifier  # machine that runs other tests need not have it

    theta = theta[:members].double()
    data = labelled(theta)
    images, labels = data.images[2:], data.labels[2:]
    target = PyTorchClassifier(
        Ensemble(theta), torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )

    def gradient(x):
        return shared.loss_gradient(NET, theta, TASK.inputs, x, labels)

    for epsilon in SETTINGS.attack_sizes:
        bound, steps, size = torch.full((8,), epsilon), SETTINGS.pgd_steps, SETTINGS.pgd_step_size
        theirs = {
            "fgsm": FastGradientMethod(target, eps=epsilon),
            "pgd": ProjectedGradientDescentPyTorch(target, eps=epsilon, eps_step=size, max_iter=steps, verbose=False),
        }
        ours = {
            "fgsm": shared.fgsm(gradient, images.double(), bound),
            "pgd": shared.pgd(gradient, images.double(), bound, steps, size),
        }
        for name, attack in theirs.items():
            expected = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
            assert ((ours[name] - expected).abs() < 1e-5).double().mean() > 0.999
            fooled = [logits_of(theta, moved.double()).argmax(1) != labels for moved in (ours[name], expected)]
            assert torch.equal(*fooled)
    assert fooled[0].any()


def test_judges_are_the_members_asked_for(theta):
    data, trained = labelled(theta[2:7]), Trained(NET, lambda i: theta[i], 0)
    found = attacks.judge(TASK, trained, 2, 5, data.images, data.labels)
    prob = torch.stack([logits_of(theta[m : m + 1], data.images).softmax(1) for m in range(2, 7)])
    mean = prob.mean(0)
    torch.testing.assert_close(found.entropy, -(mean * mean.log()).sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.disagreement, found.entropy + (prob * prob.log()).sum(2).mean(0), rtol=1e-3, atol=1e-5
    )
    assert torch.equal(found.wrong, mean.argmax(1) != data.labels)
    torch.testing.assert_close(found.fooled.double(), (prob.argmax(2) != data.labels).double().mean(0))


def test_detection_is_at_the_false_positive_rate(theta):
    data, trained = labelled(theta[:3]), Trained(NET, lambda i: theta[i], 0)
    attacked = attacks.attack(TASK, trained, 3, data, SETTINGS)
    clean = torch.linspace(0, 2, 101)
    rows = attacks.rows_of(TASK, trained, attacked, 3, 4, clean, SETTINGS)
    assert [(r["attack"], r["epsilon"]) for r in rows] == [("fgsm", 0.05), ("fgsm", 0.3), ("pgd", 0.05), ("pgd", 0.3)]
    for row, images, success in zip(
        rows, [*attacked.images["fgsm"], *attacked.images["pgd"]],
        [*attacked.success["fgsm"], *attacked.success["pgd"]], strict=True,
    ):  # fmt: skip
        entropy = attacks.judge(TASK, trained, 3, 4, images, attacked.labels).entropy
        seen = entropy > 1.5  # a quarter of the clean ones are above
        assert row["detected"] == pytest.approx(seen.double().mean().item())
        assert row["successful"] == int(success.sum())
        if success.any():
            assert row["detected_of_successful"] == pytest.approx(seen[success].double().mean().item())
        else:
            assert math.isnan(row["detected_of_successful"])
        pairs = (entropy[:, None] > clean).double() + 0.5 * (entropy[:, None] == clean)
        assert row["auroc"] == pytest.approx(pairs.mean().item())
        assert row["success"] == pytest.approx(success.double().mean().item())


def test_where_networks_are_right_about_nothing_there_is_nothing_to_attack(theta, tmp_path):
    data, trained = labelled(theta[:2]), Trained(NET, lambda i: theta[i], 0)
    wrong = Labelled(data.images, (logits_of(theta[:1], data.images).argmax(1) + 1) % 10)
    (written,) = attacks.transfer(TASK, trained, wrong, data.images, SETTINGS, tmp_path)
    assert written.name == "transfer.json"
    with pytest.raises(ValueError, match="there is only one network in the checkpoint"):
        attacks.transfer(TASK, Trained(NET, lambda i: theta[i], 0, members=1), data, data.images, SETTINGS, tmp_path)
