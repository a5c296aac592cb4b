"""Deutsch, "Generating neural networks with neural networks": hypernetworks trained for accuracy and diversity."""
