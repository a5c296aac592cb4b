"""The same functions in plain PyTorch, written to be read, and make_inputs() for tests and benchmarks."""
