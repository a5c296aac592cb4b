"""HyperGAN's training, whatever the generated networks learn: pretraining, discriminator, encoder and generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...models import HyperGAN
from ...models.hypergan import adversarial_loss, discriminator_loss, moment_distance
from .. import ranks
from ..training import generator_at
from .config import GANConfig

METRICS = ("loss", "adversarial_loss", "discriminator_loss", "code_std", "learning_rate")
_PRETRAINING = 1 << 32  # steps of the draws of the pretraining: none of the training's


def optimizer_of(config: GANConfig, model: HyperGAN) -> torch.optim.Adam:
    """One Adam with a group each for encoder, generators and discriminator, so that one checkpoint has it all."""
    groups = [
        {"params": list(getattr(model, name).parameters()), "lr": rate}
        for name, rate in config.learning_rates_at(0).items()
    ]
    return torch.optim.Adam(groups, betas=config.adam_betas, weight_decay=config.weight_decay, fused=True)


def pretrain(config: GANConfig, model: HyperGAN) -> tuple[int, float]:
    """The encoder's codes get the mean and covariance of N(0, I), see moment_distance; (steps taken, last distance).

    Its Adam has no weight decay: that of the training outweighs these gradients, and the codes would shrink.
    """
    like = next(model.parameters())
    optimizer = torch.optim.Adam(
        model.encoder.parameters(), config.encoder_learning_rate, betas=config.adam_betas, fused=True
    )
    distance = float("inf")
    for step in range(config.pretraining_steps):
        draws = generator_at(config.seed, _PRETRAINING + step)
        z = torch.randn(config.pretraining_codes, model.noise_size, generator=draws).to(like)
        prior = torch.randn(config.pretraining_codes, model.layers, model.code_size, generator=draws).to(like)
        loss = moment_distance(model.encode(z), prior)
        distance = loss.item()
        if distance < config.pretraining_stop:
            return step, distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return config.pretraining_steps, distance


def adversarial_step(
    config: GANConfig,
    model: HyperGAN,
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
    step: int,
    loss_of: Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]],
) -> dict[str, Tensor | float]:
    """First the discriminator learns to tell codes from the prior's; then encoder and generators learn to lower

        loss_of(theta [networks,P]) - adversarial_weight * mean log D(q),

    with the new D. Metrics as scalar tensors: METRICS, and what loss_of returns beside the loss.
    """
    like = next(model.parameters())
    z = torch.randn(config.networks, model.noise_size, generator=draws).to(like)
    prior = torch.randn(config.networks, model.layers, model.code_size, generator=draws).to(like)
    z, prior = ranks.own(z), ranks.own(prior)
    rates = config.learning_rates_at(step)
    for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate
    codes = model.encode(z)
    of_discriminator = discriminator_loss(model, codes, prior)
    _descend(optimizer, list(model.discriminator.parameters()), of_discriminator)
    fooling = adversarial_loss(model, codes)
    task_loss, more = loss_of(model.generate(codes))
    loss = task_loss + config.adversarial_weight * fooling
    _descend(optimizer, [*model.encoder.parameters(), *model.generators.parameters()], loss)
    code_std = ranks.gathered(codes.detach()).std()
    values = (loss.detach(), fooling.detach(), of_discriminator.detach(), code_std, rates["generators"])
    return {**dict(zip(METRICS, values, strict=True)), **more}


def _descend(optimizer: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> None:
    """A step of these parameters alone: Adam leaves those without a gradient as they are."""
    optimizer.zero_grad(set_to_none=True)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    ranks.average_gradients(parameters)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
