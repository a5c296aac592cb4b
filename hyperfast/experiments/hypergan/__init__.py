"""HyperGAN: networks of weights that a generative adversarial network makes of noise."""
