"""The floor: the multiply-adds of the method, as bare matrix products of the same sizes.

Counted from the network alone. For two dense layers that is ∂²ℒ/∂θ_v∂θ_w = Σ_n M ⊗ φ_v φ_w + Σ_n E ⊗ δ_w φ_v, with
M = ∂δ_w/∂z_v and E = ∂φ_w/∂z_v (free while it is diagonal), one product each; for a layer with itself a quarter of it,
since it is symmetric in outputs and in inputs. For convolutions it is their tangents, on the way forward and where they
meet. Uses of one parameter are counted pair by pair, though as one row many need less. What is left out: activations,
everything elementwise, layout.
"""
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import prod
from time import perf_counter
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from hessian_nb.rules import Add, Conv, CrossEntropy, Dense, Tanh


class Layer(NamedTuple):
    "One use of a parameter: outputs o at P positions, k inputs (with the 1 of the bias)."
    name: str
    o: int
    P: int
    k: int

    @property
    def p(self): return self.o*self.k

    @property
    def d(self): return self.o*self.P


def layers(net):
    "The parametric layers in order, or None if the network holds something that is not counted here."
    found = []
    for node in net.nodes.values():
        if isinstance(node.rule, (Dense, Conv)):
            o = node.shape[0]
            found.append(Layer(node.name, o, prod(node.shape[1:]), prod(node.slots['W'][1:]) + ('b' in node.slots)))
        elif node.rule is not None and not isinstance(node.rule, (Tanh, Add)): return None
    return found if isinstance(net.loss_rule, CrossEntropy) else None


def between(net, v, w, names) -> bool:
    "Whether a path from v to w leads through another layer: then ∂φ_w/∂z_v is full."
    def below(start):
        seen = {start}
        for node in net.nodes.values():
            if seen.intersection(node.parents): seen.add(node.name)
        return seen
    return any(u in below(v) and w in below(u) for u in names if u not in (v, w))


def pair(v, w, full):
    "Products (m, inner a sample, n) for an earlier layer v and a later one w; `full`: whether E counts."
    return [(v.d*w.d, 1, v.k*w.k)] + [(w.d*v.k, 1, v.d*w.k)]*full


def own(v): return [(v.d*(v.d + 1)//2, 1, v.k*(v.k + 1)//2)]


def carried(found, whole):
    """Convolutions under one dense layer: tangents of all their weights go forward, 1/channels of them in the next
    layer, and meet where it bends: `whole` in the activations too, else at the loss alone."""
    *convolutions, last = found
    shapes = own(last)
    for i, v in enumerate(convolutions):
        for j, w in enumerate(found[i + 1:], i + 1):
            height = v.k if j == i + 1 else v.p
            shapes += [(w.o*w.k, w.P, height)] + [(height*w.k, w.P, w.o)]*whole         # through w; with θ_w
        shapes += [(v.p*last.o, 1, last.k)]
        for j, u in enumerate(convolutions[i:], i):
            shapes += [(v.p, last.o, u.p//2 if i == j else u.p)]                        # at the loss
            if not whole: continue
            shapes += [(v.k if i == j else v.p, u.d, u.k//2 if i == j else u.k)]        # where u's own are still apart
            shapes += [(v.p, w.d, u.p//2 if i == j else u.p) for w in convolutions[j + 1:]]
    return shapes


def products(problem):
    "Shapes (m, inner a sample, n) of all products, or None."
    found = layers(problem.net)
    if found is None or problem.quantity not in ('hessian', 'gauss-newton', 'product'): return None
    if problem.quantity == 'product': return vector_products(found)
    names, whole = [v.name for v in found], problem.quantity == 'hessian'
    if any(v.P > 1 for v in found): return carried(found, whole)
    shapes = [shape for v in found for shape in own(v)]
    for v, w in combinations(found, 2):
        shapes += pair(v, w, whole and between(problem.net, v.name, w.name, names))
    return shapes


def vector_products(found):
    "One Hessian-vector product: values, δ, two tangents, two adjoints and two gradients a layer; three for the first."
    return [(v.o, v.P, v.k) for i, v in enumerate(found) for _ in range(8 if i else 3)]


def multiply_adds(problem): return problem.N*sum(map(prod, products(problem)))


def bare(shapes, N):
    "Runs the products for N samples, each operand made beforehand."
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((m, inner*N)), rng.standard_normal((n, inner*N))) for m, inner, n in shapes]
    def run():
        for A, B in pairs: A @ B.T
    return run


def floor(problem, threads):
    "The faster of BLAS's own threads and one half of the samples for each of our threads."
    shapes = products(problem)
    whole, share = bare(shapes, problem.N), bare(shapes, -(-problem.N//threads))
    pool = ThreadPoolExecutor(threads)
    def split():
        with threadpool_limits(1, 'blas'): list(pool.map(lambda _: share(), range(threads)))
    return min([whole, split] if problem.N >= threads else [whole], key=seconds)


def seconds(run, times=3):
    run()
    start = perf_counter()
    for _ in range(times): run()
    return perf_counter() - start
