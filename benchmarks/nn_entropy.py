"""The entropy of N long vectors against torch.cdist, chunked products, and libraries of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

import hyperfast as hf
from hyperfast.reference.nn_entropy import entropy_of, make_inputs, nn_entropy

from .case import Case
from .peers import installed

FEATURES = 20_018  # weights of Deutsch's MNIST target network
ROWS_AT_ONCE = 256
PYKEOPS_ROWS = 200  # on a CPU: its formula goes pair by pair: 5 s a call there, minutes beyond


def cases(device: str = "cpu") -> list[Case]:
    return [_case(rows, device) for rows in (32, 200, 1000, 10_000 if device == "cuda" else 5000)]


def _case(rows: int, device: str) -> Case:
    peers = {name: run for name, run in PEERS.items() if name == "pykeops" or device == "cpu"}
    if rows > PYKEOPS_ROWS and device == "cpu":
        peers.pop("pykeops", None)
    return Case(
        family="nn_entropy",
        name=f"N={rows}",
        shape={"N": rows, "D": FEATURES, "peers": ", ".join(peers), "peers not installed": ", ".join(MISSING)},
        inputs=lambda device: (make_inputs(rows, FEATURES, device=device),),
        ours=hf.ops.nn_entropy,
        # All differences in float64 take minutes there; products in float64 tell these rows apart as well.
        reference=nn_entropy if rows <= 200 else careful,
        baselines={"eager": eager, "careful": careful, **peers},
        flops=rows * (rows - 1) * FEATURES,  # each pair once, two for each feature
        bytes=4 * rows * FEATURES,
        gradient_of=(0,),
        flops_with_backward=rows * (rows + 3) * FEATURES,  # and each pair's difference, scaled, for both of its rows
        long=rows > 1000,
    )


# ---- baselines: theta [N,D] -> the entropy -----------------------------------------------------------


def eager(theta: Tensor) -> Tensor:
    """The usual code: all distances, differentiated as a whole."""
    distances = torch.cdist(theta, theta)
    distances = distances + torch.diag(torch.full((len(theta),), torch.inf, dtype=theta.dtype, device=theta.device))
    nearest = distances.topk(1, largest=False).values.squeeze(1)
    return entropy_of(nearest, theta.shape[1], None, 1e-8)


def careful(theta: Tensor) -> Tensor:
    """Neighbours from products in chunks, without gradient; distances of the winners from differences."""
    with torch.no_grad():
        squares = theta.square().sum(1)
        index = []
        for begin in range(0, len(theta), ROWS_AT_ONCE):
            own = theta[begin : begin + ROWS_AT_ONCE]
            distances = torch.addmm(squares, own, theta.T, alpha=-2)
            rows = torch.arange(len(own), device=theta.device)
            distances[rows, rows + begin] = torch.inf
            index.append(distances.argmin(1))
    return _from_pairs(theta, torch.cat(index))


def _from_pairs(theta: Tensor, index: Tensor) -> Tensor:
    return entropy_of((theta - theta[index]).norm(dim=1), theta.shape[1], None, 1e-8)


def _pykeops(theta: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    rows = theta.detach()
    distances = ((LazyTensor(rows[:, None]) - LazyTensor(rows[None])) ** 2).sum(-1)
    return _from_pairs(theta, distances.argKmin(2, dim=1)[:, 1])


def _sklearn(theta: Tensor) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    rows = theta.detach().numpy()
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows).kneighbors(return_distance=False)
    return _from_pairs(theta, torch.from_numpy(index[:, 0]).to(theta.device))


def _faiss(theta: Tensor) -> Tensor:
    import faiss

    search = faiss.IndexFlatL2(theta.shape[1])
    rows = theta.detach().float().numpy()
    search.add(rows)
    index = torch.from_numpy(search.search(rows, 2)[1])
    itself = index[:, 0] == torch.arange(len(theta))
    return _from_pairs(theta, torch.where(itself, index[:, 1], index[:, 0]))


PEERS, MISSING = installed(
    {"pykeops": ("pykeops", _pykeops), "scikit-learn": ("sklearn", _sklearn), "faiss": ("faiss", _faiss)}
)
