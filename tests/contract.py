"""What every differentiable op must survive, written once; a family's test file derives a class per op.

Numbers in names and comments are rows of the reliability list in CONTRIBUTING.md.
"""

import concurrent.futures

import pytest
import torch
import torch._dynamo.testing
from accuracy import assert_accurate
from conftest import devices
from torch import Tensor

import hyperfast as hf
from hyperfast import backends, native

KERNELS = {"cpu": "cpp", "cuda": "triton"}
LOW = [torch.bfloat16, torch.float16]


class OpContract:
    """Derive, and define `inputs` and `call`; every floating input is differentiated."""

    def inputs(self, size: str = "small", dtype=torch.float32, seed: int = 0) -> list[Tensor]:
        """Fresh inputs; size "small" for finite differences, "medium" past several blocks."""
        raise NotImplementedError

    def call(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError

    raw_op_calls: tuple = ()

    # ---- helpers --------------------------------------------------------------------------------

    def run(self, backend: str, inputs: list[Tensor], gy_seed: int = 7) -> list[Tensor]:
        """[output, a gradient for every input]."""
        inputs = [t.detach().requires_grad_() for t in inputs]
        with hf.backend(backend):
            y = self.call(*inputs)
        generator = torch.Generator().manual_seed(gy_seed)
        gy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
        return [y.detach(), *torch.autograd.grad(y, inputs, gy)]

    def assert_matches_reference(self, backend: str, inputs: list[Tensor]) -> None:
        ours, eager = self.run(backend, inputs), self.run("reference", inputs)
        exact = self.run("reference", [t.double() for t in inputs])
        for i, (o, e, x) in enumerate(zip(ours, eager, exact, strict=True)):
            assert_accurate(o, e, x, "output" if i == 0 else f"gradient {i - 1}")

    def kernel(self) -> str:
        return "triton" if backends.INTERPRETING else "cpp"

    # ---- gradients ------------------------------------------------------------------------------

    @pytest.mark.parametrize("backend", ["cpp", "reference"])
    def test_01_02_gradcheck_and_gradgradcheck(self, backend):
        inputs = [t.requires_grad_() for t in self.inputs(dtype=torch.float64)]
        with hf.backend(backend):
            assert torch.autograd.gradcheck(self.call, inputs)
            assert torch.autograd.gradgradcheck(self.call, inputs, fast_mode=True)

    def test_needs_input_grad_is_honoured(self):
        for wanted in range(len(self.inputs())):
            inputs = [t.requires_grad_(i == wanted) for i, t in enumerate(self.inputs())]
            self.call(*inputs).sum().backward()
            assert [t.grad is not None for t in inputs] == [i == wanted for i in range(len(inputs))]

    def test_03_opcheck(self):
        for op, arguments in self.raw_op_calls_for(torch.float32):
            torch.library.opcheck(op, arguments)
        for op, arguments in self.raw_op_calls_for(torch.bfloat16):
            torch.library.opcheck(op, arguments)

    def raw_op_calls_for(self, dtype):
        raise NotImplementedError

    # ---- accuracy -------------------------------------------------------------------------------

    @pytest.mark.parametrize("device", devices())
    @pytest.mark.parametrize("dtype", [torch.float32, *LOW])
    def test_04_05_accuracy(self, dtype, device):
        inputs = [t.to(device) for t in self.inputs("medium", dtype)]
        self.assert_matches_reference(KERNELS[device], inputs)

    def test_float64(self):
        inputs = self.inputs("medium", torch.float64)
        for ours, exact in zip(self.run("cpp", inputs), self.run("reference", inputs), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("isa", native.isas())
    def test_24_every_instruction_set(self, isa):
        native.force_isa(isa)
        try:
            assert native.current_isa() == isa
            self.assert_matches_reference("cpp", self.inputs("medium"))
            self.assert_matches_reference("cpp", self.inputs("medium", torch.bfloat16))
        finally:
            native.force_isa("auto")

    @pytest.mark.interpreter
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_26_interpreter(self, dtype):
        self.assert_matches_reference("triton", self.inputs("medium", dtype))

    # ---- memory ---------------------------------------------------------------------------------

    def layouts(self, t: Tensor) -> dict[str, Tensor]:
        """The same values in other places of memory."""
        flat = torch.cat([t.new_zeros(1), t.reshape(-1)])
        sliced = torch.stack([t, torch.full_like(t, torch.nan)], -1)
        return {
            "transposed": t.transpose(-1, -2).contiguous().transpose(-1, -2),
            "first dimensions transposed": t.transpose(0, -2).contiguous().transpose(0, -2),
            "step-2 slice": sliced[..., 0],
            "off by one element": flat[1:].view(t.shape),
            "odd strides of size-1 dimensions": t.unsqueeze(0).expand(3, *t.shape)[1:2].squeeze(0),
        }

    def test_09_10_layouts(self):
        inputs = self.inputs("medium")
        expected = self.run(self.kernel(), inputs)
        for i, t in enumerate(inputs):
            for name, other in self.layouts(t).items():
                got = self.run(self.kernel(), [*inputs[:i], other, *inputs[i + 1 :]])
                for a, b in zip(got, expected, strict=True):
                    assert torch.equal(a, b), f"input {i}, {name}"

    def test_09_expanded(self):
        """Stride 0: the first network's values for all of them."""
        inputs = self.inputs("medium")
        same = [t[:1].expand_as(t) for t in inputs]
        got, expected = self.run("cpp", same), self.run("cpp", [t.contiguous() for t in same])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_09_noncontiguous_grad_output(self):
        inputs = [t.requires_grad_() for t in self.inputs("medium")]
        y = self.call(*inputs)
        gy = torch.randn_like(y)
        expected = torch.autograd.grad(y, inputs, gy, retain_graph=True)
        for name, other in self.layouts(gy).items():
            got = torch.autograd.grad(y, inputs, other, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name
        expanded = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
        ones = torch.autograd.grad(y, inputs, torch.ones_like(y))
        assert all(torch.equal(a, b) for a, b in zip(expanded, ones, strict=True))

    def test_12_uninitialised_memory(self):
        assert torch.empty(3).isnan().all(), "the suite must see uninitialised memory as NaN"
        assert all(not t.isnan().any() for t in self.run("cpp", self.inputs("medium")))

    def test_23_memory_does_not_grow(self, long_run):
        inputs = self.inputs("medium")
        for _ in range(20):
            self.run("cpp", inputs)
        before = resident()
        for _ in range(1000 if long_run else 150):
            self.run("cpp", inputs)
        assert resident() - before < 8 << 20

    # ---- determinism ----------------------------------------------------------------------------

    def test_14_deterministic(self, long_run):
        inputs = self.inputs("medium")
        expected = self.run("cpp", inputs)
        threads = torch.get_num_threads()
        try:
            for turn in range(250 if long_run else 50):
                torch.set_num_threads(1 + turn % 4)
                assert all(torch.equal(a, b) for a, b in zip(self.run("cpp", inputs), expected, strict=True))
        finally:
            torch.set_num_threads(threads)

    def test_19_sixteen_threads(self):
        inputs = self.inputs("medium")
        expected = self.run("cpp", inputs)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            runs = list(pool.map(lambda _: self.run("cpp", inputs), range(64)))
        assert all(torch.equal(a, b) for run in runs for a, b in zip(run, expected, strict=True))

    # ---- torch's transformations ----------------------------------------------------------------

    def test_16_compile(self):
        torch._dynamo.reset()
        graphs = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(self.call, fullgraph=True, backend=graphs)
        for seed, size in enumerate(("small", "medium")):
            inputs = self.inputs(size, seed=seed)
            ours = [t.clone().requires_grad_() for t in inputs]
            compiled(*ours).square().sum().backward()
            plain = [t.clone().requires_grad_() for t in inputs]
            self.call(*plain).square().sum().backward()
            assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, plain, strict=True))
        assert graphs.frame_count <= 2

    def test_16_compile_inductor(self):
        torch._dynamo.reset()
        inputs = [t.requires_grad_() for t in self.inputs("medium")]
        y = torch.compile(lambda *a: self.call(*a).sin(), fullgraph=True)(*inputs)
        torch.testing.assert_close(y, self.call(*inputs).sin())
        y.sum().backward()
        assert all(t.grad is not None for t in inputs)

    def test_16_export(self):
        class Module(torch.nn.Module):
            def forward(module, *inputs):
                return self.call(*inputs)

        inputs = self.inputs("medium")
        program = torch.export.export(Module(), tuple(inputs))
        assert torch.equal(program.module()(*inputs), self.call(*inputs))

    def test_16_meta_tensors(self):
        """Shapes and types without values, forward and backward."""
        inputs = [t.to("meta").requires_grad_() for t in self.inputs("medium")]
        y, expected = self.call(*inputs), self.call(*self.inputs("medium"))
        assert (y.device.type, y.shape, y.dtype) == ("meta", expected.shape, expected.dtype)
        for t, grad in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
            assert (grad.shape, grad.dtype) == (t.shape, t.dtype)

    @pytest.mark.parametrize("dtype", LOW)
    def test_17_autocast(self, dtype):
        inputs = [t.requires_grad_() for t in self.inputs("medium")]
        with torch.autocast("cpu", dtype=dtype):
            y = self.call(*inputs)
            with torch.autocast("cpu", enabled=False):
                plain = self.call(*inputs)
        assert y.dtype == dtype
        assert plain.dtype == torch.float32
        assert torch.equal(y, self.call(*(t.to(dtype) for t in inputs)))
        y.float().sum().backward()
        assert all(t.grad.dtype == torch.float32 for t in inputs)

    def test_18_vmap(self):
        inputs = self.inputs(dtype=torch.float64)
        for batched in range(len(inputs)):
            stacked = torch.stack([t + 0.1 * s for s, t in enumerate([inputs[batched]] * 3)], dim=1)
            dims = tuple(1 if i == batched else None for i in range(len(inputs)))

            def loss(*args):
                return self.call(*args).sin().sum()

            every = tuple(range(len(inputs)))
            arguments = [*inputs[:batched], stacked, *inputs[batched + 1 :]]
            out = torch.vmap(self.call, in_dims=dims)(*arguments)
            grads = torch.vmap(torch.func.grad(loss, argnums=every), in_dims=dims)(*arguments)
            for s in range(3):
                one = [*inputs[:batched], stacked[:, s], *inputs[batched + 1 :]]
                torch.testing.assert_close(out[s], self.call(*one))
                for ours, expected in zip(grads, torch.func.grad(loss, argnums=every)(*one), strict=True):
                    torch.testing.assert_close(ours[s], expected)

    # ---- on a GPU -------------------------------------------------------------------------------

    def on_cuda(self):
        """A function of nothing: [output, a gradient for every input] of inputs that stay where they are."""
        inputs = [t.cuda().requires_grad_() for t in self.inputs("medium")]

        def step() -> list[Tensor]:
            y = self.call(*inputs)
            return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]

        return step

    @pytest.mark.gpu
    def test_28_one_step(self):
        """What `make gpu` runs under compute-sanitizer."""
        assert all(t.isfinite().all() for t in self.on_cuda()())

    @pytest.mark.gpu
    def test_29_on_a_side_stream_and_in_a_graph(self):
        step, side = self.on_cuda(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = step()  # compiles, which a capture must not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        for _ in range(100):
            for t in found:
                t.fill_(torch.nan)
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
