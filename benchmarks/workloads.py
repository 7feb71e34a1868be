"""The table's rows: a network, data, and what is asked about them.

Each is made anew from its name in every process, always the same. `tiny` is the same row small enough for a test.
"""
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

import numpy as np

from hessian_nb.data import digits, mnist

from . import networks

QUANTITIES = 'hessian', 'gauss-newton', 'eigenvalues', 'product', 'attribution'
TOP = 10    # eigenvalues


@dataclass
class Problem:
    "One network at one point, with what it is measured on."
    net: object         # Graph
    forward: Callable   # the same network as a plain function (networks.py)
    X: np.ndarray       # (N, *shape)
    Y: np.ndarray       # (N,) labels
    quantity: str       # one of QUANTITIES
    layers: tuple = ()  # for peers that take a torch.nn.Sequential only: what it is made of

    @cached_property
    def theta(self): return self.net.init(rng=0)

    @cached_property
    def v(self): return np.random.default_rng(1).standard_normal(self.p)

    @property
    def p(self): return self.net.size

    @property
    def N(self): return len(self.X)

    def slices(self) -> dict:
        "Name -> (where it lies in θ, its shape): how every framework reads the same flat θ."
        table, at = {}, 0
        for parameter in self.net.parameters.values():
            for slot, shape in parameter.slots.items():
                name, size = f'{parameter.name}.{slot}' if slot else parameter.name, prod(shape)
                table[name], at = (slice(at, at + size), shape), at + size
        return table

    def named(self, theta):
        "The parts of θ by name, in whatever framework θ lives."
        return {name: theta[where].reshape(shape) for name, (where, shape) in self.slices().items()}


def samples(N, shape):
    "The first N digits in the shape that a network takes, from the start again when there are no more."
    X, Y = digits()
    return np.resize(X, (N, *X.shape[1:])).reshape(N, *shape), np.resize(Y, N)


def large_images(N):
    "N images 28×28: MNIST where HESSIAN_NB_DATA says where it lies, else digits, enlarged."
    if os.environ.get('HESSIAN_NB_DATA'): return mnist(n=N)
    X, Y = samples(N, (1, 8, 8))
    return np.pad(X.repeat(3, 2).repeat(3, 3), [(0, 0), (0, 0), (2, 2), (2, 2)]), Y


def mlp(sizes, N, quantity='hessian'):
    X, Y = samples(N, (64,))
    return Problem(*networks.mlp([64, *sizes]), X, Y % sizes[-1], quantity, ('mlp', (64, *sizes)))


def wide_output(hidden, K, N):
    "More classes than digits: the labels are drawn."
    X, _ = samples(N, (64,))
    Y = np.random.default_rng(2).integers(K, size=N)
    return Problem(*networks.mlp([64, hidden, K]), X, Y, 'hessian', ('mlp', (64, hidden, K)))


def cnn(layers, N, quantity='hessian', images=None):
    X, Y = (images or partial(samples, shape=(1, 8, 8)))(N)
    return Problem(*networks.cnn(X.shape[1:], layers), X, Y, quantity, ('cnn', X.shape[1:], tuple(layers)))


def shared(width, uses, skip, N): return Problem(*networks.shared(64, width, uses, skip), *samples(N, (64,)), 'hessian')


def custom(width, inner, batched, N):
    return Problem(*networks.custom(64, width, inner, batched), *samples(N, (64,)), 'hessian')


def attention(hidden, blocks, N):
    return Problem(*networks.attention(8, 8, hidden, blocks), *samples(N, (8, 8)), 'hessian')


@dataclass
class Workload:
    name: str
    full: Callable       # () -> Problem
    tiny: Callable       # () -> Problem, for the tests
    target: str = ''     # what we want to reach, as ratios in one run

    def problem(self, tiny=False): return (self.tiny if tiny else self.full)()


SMALL = partial(mlp, [5, 4, 10], 12)
SMALL_CNN = partial(cnn, [(2, 2), (2, 2)], 6)

TABLE = [
    Workload('mlp-1k', partial(mlp, [12, 10, 10], 256), SMALL, '≥20× jax, ≥10× best peer'),
    Workload('mlp-3k', partial(mlp, [32, 24, 10], 1797), SMALL, '≥40× jax, ≥20× best peer, ≤1.5× floor'),
    Workload('mlp-7k', partial(mlp, [64, 38, 10], 1797), SMALL, '≤1.4× floor'),
    Workload('cnn-8x8', partial(cnn, [(6, 1), (6, 2)], 256), SMALL_CNN, '≥120× jax, ≥100× best peer'),
    Workload('tied-residual', partial(shared, 24, 3, True, 1797), partial(shared, 4, 2, True, 8),
             '≥40× jax, ≥18× best peer'),
    Workload('cnn-28x28', partial(cnn, [(6, 1), (4, 2), (4, 2)], 256, images=large_images), SMALL_CNN,
             '≥10× jax, ≥5× best peer'),
    Workload('gn-mlp-3k', partial(mlp, [32, 24, 10], 1797, 'gauss-newton'), partial(SMALL, 'gauss-newton'),
             '≥20× jax, ≥8× BackPACK'),
    Workload('gn-cnn-8x8', partial(cnn, [(6, 1), (6, 2)], 256, 'gauss-newton'), partial(SMALL_CNN, 'gauss-newton'),
             '≥20× jax, ≥8× BackPACK'),
    Workload('top10-gn', partial(mlp, [32, 24, 10], 1797, 'eigenvalues'), partial(SMALL, 'eigenvalues'),
             '≥12× curvlinops'),
    Workload('product-3k', partial(mlp, [32, 24, 10], 1797, 'product'), partial(SMALL, 'product'), '≥1.0× jax'),
    Workload('product-100k', partial(mlp, [256, 256, 64, 10], 1000, 'product'), partial(SMALL, 'product'),
             '≥1.3× jax'),
    Workload('attribution', partial(mlp, [32, 24, 10], 1797, 'attribution'), partial(SMALL, 'attribution'),
             '≤1.0× one Hessian-vector product'),
    Workload('custom-batched', partial(custom, 20, 16, True, 1000), partial(custom, 4, 3, True, 8)),
    Workload('custom-single', partial(custom, 20, 16, False, 64), partial(custom, 4, 3, False, 6)),
    Workload('deep-narrow', partial(mlp, [6]*50 + [10], 256), partial(mlp, [3]*6 + [10], 8)),
    Workload('wide-shallow', partial(mlp, [40, 10], 1797), partial(mlp, [5, 10], 8)),
    Workload('strong-sharing', partial(shared, 16, 20, False, 512), partial(shared, 3, 5, False, 8)),
    Workload('large-output', partial(wide_output, 3, 1000, 64), partial(wide_output, 2, 40, 6)),
    Workload('one-sample', partial(mlp, [32, 24, 10], 1), partial(mlp, [5, 4, 10], 1)),
    Workload('attention', partial(attention, 16, 2, 256), partial(attention, 5, 1, 4)),
]
BY_NAME = {w.name: w for w in TABLE}
