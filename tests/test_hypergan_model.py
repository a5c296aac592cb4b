"""HyperGAN's parts: sizes, the weights' order, losses, and the step that trains them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hyperfast.experiments.hypergan import adversarial
from hyperfast.experiments.hypergan.config import GANConfig
from hyperfast.models import HyperGAN, targets
from hyperfast.models.hypergan import adversarial_loss, discriminator_loss, moment_distance
from hyperfast.nn import TargetNet

TINY = GANConfig(noise=5, code=4, hidden=6, networks=7)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def tiny(config=TINY):
    torch.manual_seed(0)
    net = TargetNet(targets.hypergan_regression(3))
    return net, HyperGAN(net, config.noise, config.code, (config.hidden, config.hidden))


def test_the_parameter_counts_are_the_papers():
    net = TargetNet(targets.hypergan_mnist())
    model = HyperGAN(net)
    assert net.num_weights == 31_520
    assert parameters(model.encoder) == 591_232
    assert [parameters(g) for g in model.generators] == [739_104, 13_461_504, 2_955_264]
    assert parameters(model.discriminator) == 329_217


def test_cifars_networks_have_five_generators():
    net = TargetNet(targets.hypergan_cifar())
    with torch.device("meta"):
        model = HyperGAN(net, code_size=256)
    assert net.num_weights == 57_520
    assert [g[-1].out_features for g in model.generators] == [432, 4_608, 18_432, 32_768, 1_280]
    assert model.encoder[-1].out_features == 5 * 256


def test_a_templates_options_change_neither_order_nor_the_papers_size():
    for template in (targets.hypergan_mnist, targets.hypergan_cifar):
        assert TargetNet(template(dropout=0.5)).num_weights == TargetNet(template()).num_weights
        shapes = [shape for _, shape, _ in TargetNet(template(bias=True)).layout]
        assert shapes[::2] == [shape for _, shape, _ in TargetNet(template()).layout]
        assert [len(shape) for shape in shapes[1::2]] == [1] * len(shapes[1::2])


def test_a_code_makes_its_layers_weights_and_then_its_bias():
    net, model = tiny()
    codes = torch.randn(2, 2, 4)
    weights = net.unflatten(model.generate(codes))
    first, second = (g(codes[:, k]) for k, g in enumerate(model.generators))
    torch.testing.assert_close(weights["0.weight"].flatten(1), first[:, :3])
    torch.testing.assert_close(weights["0.bias"], first[:, 3:])
    torch.testing.assert_close(weights["2.weight"].flatten(1), second[:, :3])
    torch.testing.assert_close(weights["2.bias"], second[:, 3:])
    z = torch.randn(2, 5)
    torch.testing.assert_close(model(z), model.generate(model.encoder(z).view(2, 2, 4)))


def test_networks_depend_on_seed_and_index_alone():
    _, model = tiny()
    sampler = model.sampler(4)
    whole = sampler(torch.arange(40))
    torch.testing.assert_close(sampler(torch.tensor([33, 2])), whole[[33, 2]])
    assert (model.sampler(5)(torch.arange(2)) - whole[:2]).abs().min() > 0
    noise = model.noise(4)(torch.arange(4_000))
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_losses_are_binary_cross_entropies_on_logits():
    _, model = tiny()
    codes, prior = torch.randn(7, 2, 4, requires_grad=True), torch.randn(7, 2, 4)
    real, fake = model.discriminator(prior.view(14, 4)), model.discriminator(codes.view(14, 4))
    told = F.binary_cross_entropy_with_logits
    expected = told(real, torch.ones_like(real)) + told(fake, torch.zeros_like(fake))
    found = discriminator_loss(model, codes, prior)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found, codes, allow_unused=True) == (None,)
    torch.testing.assert_close(adversarial_loss(model, codes), told(fake, torch.ones_like(fake)))


def test_moment_distance_is_that_of_each_code_by_itself():
    codes, prior = torch.randn(9, 2, 4).double(), torch.randn(9, 2, 4).double()
    expected = 0.0
    for k in range(2):
        q, p = codes[:, k] - codes[:, k].mean(0), prior[:, k] - prior[:, k].mean(0)
        expected += (codes[:, k].mean(0) - prior[:, k].mean(0)).square().sum() / 4 / 2
        expected += (q.T @ q / 8 - p.T @ p / 8).square().sum() / 16 / 2
    torch.testing.assert_close(moment_distance(codes, prior), expected)
    with pytest.raises(ValueError, match="a covariance needs two codes; got 1"):
        moment_distance(codes[:1], prior)


def test_pretraining_brings_the_codes_to_the_priors_moments():
    config = replace(TINY, hidden=32, pretraining_steps=400, pretraining_codes=200, encoder_learning_rate=3e-3)
    _, model = tiny(config)
    z = model.noise(9)(torch.arange(2_000))
    before = model.encode(z).flatten(1).std(0).mean()
    steps, distance = adversarial.pretrain(replace(config, pretraining_stop=0.0), model)
    codes = model.encode(z).flatten(1).detach()
    assert (steps, before < 0.5) == (400, True)
    assert distance < 0.1
    assert codes.std(0).mean() == pytest.approx(1, abs=0.15)
    assert adversarial.pretrain(replace(config, pretraining_stop=0.2), model)[0] == 0  # it is near enough already


def test_a_step_is_the_discriminators_and_then_the_others():
    """Written out with an optimizer for each part."""
    config = replace(
        TINY, adversarial_weight=3.0, weight_decay=0.01, learning_rate_decay=0.5, generator_learning_rate=2e-3
    )
    net, model = tiny(config)
    _, plain = tiny(config)
    optimizer = adversarial.optimizer_of(config, model)
    rates = {"encoder": 5e-4, "generators": 2e-3, "discriminator": 1e-4}
    optimizers = {
        name: torch.optim.Adam(getattr(plain, name).parameters(), rate, betas=(0.5, 0.9), weight_decay=0.01)
        for name, rate in rates.items()
    }
    x = torch.linspace(-1, 1, 5)[:, None]

    def loss_of(theta):
        return net(x, theta).square().mean(), {}

    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        found = adversarial.adversarial_step(config, model, optimizer, generator, step, loss_of)
        generator.manual_seed(step)
        z, prior = torch.randn(7, 5, generator=generator), torch.randn(7, 2, 4, generator=generator)
        for name, one in optimizers.items():
            one.param_groups[0]["lr"] = rates[name] * 0.5**step
            one.zero_grad()
        discriminator_loss(plain, plain.encode(z), prior).backward()
        optimizers["discriminator"].step()
        codes = plain.encode(z)
        loss = loss_of(plain.generate(codes))[0] + 3 * adversarial_loss(plain, codes)
        loss.backward()
        optimizers["encoder"].step()
        optimizers["generators"].step()
        assert float(found["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_settings_that_make_no_sense_are_refused():
    for name, value in (
        ("networks", 0),
        ("pretraining_codes", 1),
        ("adversarial_weight", -1.0),
        ("checkpoint_every", 0),
    ):
        with pytest.raises(ValueError, match=rf"config.{name} must be at least"):
            GANConfig(**{name: value})
