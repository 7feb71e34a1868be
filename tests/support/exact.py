"""Exact curvature of polynomial networks, found forward and in rational arithmetic: no δ, no rounding, no tolerance.

A `Taylor` number knows its value, gradient and Hessian. The Hessian comes from carrying θ through the network as such
numbers; its terms come from expanding each node in its own arguments alone and composing the expansions.
"""
from collections import defaultdict
from fractions import Fraction
from itertools import product

import numpy as np
from support.oracle import forward, kind, loss_value, ranges, samples, tied, value, views


def number(c): return int(c) if c == int(c) else Fraction(c)

class Taylor:
    "A number to second order: value, gradient (p,) and Hessian (p, p), or 0, all exact."
    def __init__(self, value, gradient, hessian): self.value, self.gradient, self.hessian = value, gradient, hessian

    def __add__(self, other):
        if not isinstance(other, Taylor): return Taylor(self.value + number(other), self.gradient, self.hessian)
        return Taylor(self.value + other.value, self.gradient + other.gradient, self.hessian + other.hessian)

    def __mul__(self, other):
        if not isinstance(other, Taylor):
            return Taylor(*[part*number(other) for part in (self.value, self.gradient, self.hessian)])
        cross = np.multiply.outer(self.gradient, other.gradient)
        return Taylor(self.value*other.value, self.gradient*other.value + self.value*other.gradient,
                      self.hessian*other.value + self.value*other.hessian + cross + cross.T)

    def __sub__(self, other): return self + other*-1
    __radd__, __rmul__ = __add__, __mul__


def integers(array):
    "The same whole numbers, as Python's."
    assert np.array_equal(array, np.trunc(array))
    return np.asarray(array).astype(int).astype(object)

def variables(values):
    "Independent Taylor numbers with these values."
    return np.array([Taylor(v, e, 0) for v, e in zip(values, integers(np.eye(len(values))))], object)

def zero(n): return Taylor(0, integers(np.zeros(n)), integers(np.zeros((n, n))))

def derivatives(numbers, n):
    "Gradients (d, n) and Hessians (d, n, n) of an array of Taylor numbers; some may be constants."
    numbers = [zero(n) + u for u in np.ravel(numbers)]
    return np.array([u.gradient for u in numbers], object), np.array([u.hessian for u in numbers], object)

def exact_samples(net, X, Y):
    return [({v: integers(u) for v, u in x.items()}, integers(y)) for x, y in samples(net, X, Y)]


def loss(net, theta, X, Y):
    "The sum of the samples' losses, as one Taylor number in θ."
    slots, batch = tied(net, variables(integers(theta))), exact_samples(net, X, Y)
    losses = [loss_value(net, forward(net, slots, x, np)[net.output_node], y, np) for x, y in batch]
    return sum(losses, zero(theta.size))

def magnitude(net, theta, X, Y):
    "What no partial sum exceeds, in whatever order the loss, its gradient and its Hessian are evaluated."
    X = {v: abs(x) for v, x in X.items()} if isinstance(X, dict) else abs(X)
    top = loss(net, abs(theta), X, -abs(Y))
    return max(top.value, top.gradient.max(), top.hessian.max())

def hessian(net, theta, X, Y):
    "The Hessian of the sum of the losses, (p, p) exact numbers."
    return loss(net, theta, X, Y).hessian

def terms(net, theta, X, Y):
    "Every term of it, {(node, kind): (p, p) exact numbers}."
    total = defaultdict(int)
    for x, y in exact_samples(net, X, Y):
        for key, term in sample_terms(net, integers(theta), x, y).items(): total[key] = total[key] + term
    return total

def sample_terms(net, theta, x, y):
    "The terms of one sample: each node's own curvature is handed on to the output, and weighted there by the loss."
    slots, rows, I = tied(net, theta), tied(net, np.arange(theta.size)), integers(np.eye(theta.size))
    f, J, H = forward(net, slots, x, np), {}, {}
    for v, node in net.nodes.items():
        arguments = dict(enumerate(f[s] for s in node.parents)) | slots.get(v, {})
        into = [J[s] for s in node.parents] + [I[rows[v][s].reshape(-1)] for s in slots.get(v, {})]
        if node.rule is None: J[v], H[v] = integers(np.zeros((f[v].size, theta.size))), {}
        else: J[v], H[v] = composed(v, node, arguments, dict(zip(arguments, into)), H)
    out = net.output_node
    z = variables(f[out].reshape(-1))
    (g,), (A,) = derivatives([loss_value(net, z.reshape(f[out].shape), y, np)], z.size)
    return {(out, 'gauss-newton'): J[out].T @ A @ J[out]} | {key: np.tensordot(g, h, 1) for key, h in H[out].items()}

def composed(v, node, arguments, J, H):
    "A node's total Jacobian (d, p), and its values' Hessians (d, p, p) by the term that they come from."
    named, parents = {s: u.shape for s, u in arguments.items()}, dict(enumerate(node.parents))
    q, place = variables(np.concatenate([u.reshape(-1) for u in arguments.values()])), ranges(named)
    cut = views(q, named)
    own = {s: cut[s] for s in named if s not in parents}
    D, T = derivatives(value(node, [cut[s] for s in parents], own, np), q.size)
    terms = defaultdict(int)
    for s, parent in parents.items():
        for key, h in H[parent].items(): terms[key] = terms[key] + np.tensordot(D[:, place[s]], h, 1)
    for s, t in product(named, named):
        seeds = T[:, place[s]][:, :, place[t]]
        if seeds.any(): terms[v, kind(parents.get(s), parents.get(t))] += np.array([J[s].T @ c @ J[t] for c in seeds])
    return sum(D[:, place[s]] @ J[s] for s in named), terms
