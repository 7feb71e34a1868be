"""The curvature of random networks against independent oracles: oracle.py, by autograd and by jax.

The points are drawn from continuous distributions, so that no kink is met but where two parents of a maximum are one
and the same function: kinks='raise' would say it.
"""
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from numpy.linalg import norm
from support import oracle
from support.checks import SUM, direction, error, known, on_networks, part, smooth, worst
from support.random_networks import STEPS, Description, build, live, modulated, networks, structure

from hessian_nb.graph import Graph
from hessian_nb.hessian import attribute, decompose, hessian, hessian_vector, input_hessian
from hessian_nb.rules import Dense, Square, SquaredError

pytestmark = [pytest.mark.filterwarnings('ignore:Output seems independent of input'),
              pytest.mark.filterwarnings('ignore:.*exactly on a kink')]


@on_networks(320)
def test_hessian(net, theta, X, Y):
    "The Hessian, its Gauss–Newton part, the sum of all terms, and the curvature along a direction."
    true, v, gauss_newton = known(oracle.hessian(net, theta, X, Y)), direction(theta), (net.output_node, 'gauss-newton')
    kinks = 'raise' if smooth(net, net.forward(theta, X)) else 'ignore'
    H, terms = hessian(net, theta, X, Y, kinks=kinks).dense(), decompose(net, theta, X, Y, kinks=kinks)
    along = attribute(net, theta, X, Y, v, kinks=kinks)
    size = sum(map(abs, along.values()))
    assert error(sum(along.values()), v @ H @ v, size) <= SUM
    yield error(sum(along.values()), v @ true @ v, size)
    yield error(H, true)
    yield error(terms.total(), true)
    yield error(hessian_vector(net, theta, X, Y, v, kinks=kinks), true @ v, norm(true)*norm(v))
    yield error(net.gradient(theta, X, Y), oracle.gradient(net, theta, X, Y))
    yield error(part(terms, gauss_newton, theta.size), oracle.gauss_newton(net, theta, X, Y), norm(true))

@on_networks(100)
def test_terms(net, theta, X, Y):
    "Every term by node and kind, as a matrix and along a direction, and their sums by node and by kind."
    true, v = known(oracle.node_terms(net, theta, X, Y)), direction(theta)
    terms, along = decompose(net, theta, X, Y), attribute(net, theta, X, Y, v)
    scale = max(map(norm, true.values()))
    assert {*along} == {*terms} <= {*true}
    for key in true: yield error(part(terms, key, theta.size), true[key], scale)
    for key in along: yield error(along[key], v @ true[key] @ v, scale*(v @ v))
    for i, sums in enumerate([terms.by_node(), terms.by_kind()]):
        for name in sums: yield error(sums[name], sum(term for key, term in true.items() if key[i] == name), scale)

@on_networks(60)
def test_sharing(net, theta, X, Y):
    "The blocks by node before sharing ties them, and that they sum to the blocks by parameter."
    true, users = known(oracle.untied_hessian(net, theta, X, Y)), oracle.users(net)
    tied, untied = hessian(net, theta, X, Y), hessian(net, theta, X, Y, untied=True)
    scale = max(map(norm, true.values()))
    for v, w in true: yield error(untied[v, w], true[v, w], scale)
    for q in net.parameters:
        for r in net.parameters:
            blocks = [untied[v, w] for v in users[q] for w in users[r]]
            yield error(tied[q, r], sum(blocks, np.zeros(tied[q, r].shape)), scale)

@on_networks(60)
def test_input_hessian(net, theta, X, Y):
    "Every block of the input Hessian, where the oracle's functions are differentiable in the nodes' values."
    assume(smooth(net, net.forward(theta, X)))
    (true, places), K = known(oracle.input_hessian(net, theta, X, Y)), input_hessian(net, theta, X, Y)
    for v, i in places.items():
        for w, j in places.items(): yield error(K[v, w], true[:, i][:, :, j], norm(true))

@on_networks(25)
def test_jax(net, theta, X, Y):
    "The Hessian by another program: jax.hessian."
    yield error(hessian(net, theta, X, Y), oracle.jax_hessian(net, theta, X, Y))

@pytest.mark.parametrize('kind', STEPS)
def test_every_step(kind):
    "Each way of growing a network, in all its variants, between layers with parameters."
    seen = set()
    for (first, inputs), option in product([('dense', (0,)), ('conv', (3,)), ('conv', (2, 1))], range(8)):
        steps = [(first, (0, 0, 0), 5), (kind, (0, 1, 0), option), ('sine', (0, 0, 0), 0)]
        net, *problem = build(Description(inputs, steps, 0, 'squared', 2, option))
        if repr(net.nodes) not in seen: worst(test_terms.check, net, *problem)
        seen.add(repr(net.nodes))

@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_matrix_of_three_nodes(shape):
    "One matrix used three times, as a layer's weights or in a function, in every order."
    rng = np.random.default_rng(0)
    for layers in product([True, False], repeat=3):
        net = Graph()
        v, k = net.input('x', shape[1:]), net.parameter('k', shape)
        for i, layer in enumerate(layers):
            if v.shape != shape[1:]: v = net.node(f'to{i}', Dense(shape[1]), v)
            v = net.node(f'v{i}', Dense(shape[0], bias=False) if layer else modulated, v, theta=k)
        net.output(v, loss=SquaredError())
        theta = rng.normal(size=sum(q.size for q in net.parameters.values()))
        X, Y = rng.normal(size=(3, *shape[1:])), rng.normal(size=(3, *v.shape))
        worst(test_terms.check, net, theta, X, Y)

def test_output_without_parameters():
    "No parameter reaches the output: every block is zero, and there is nothing to split."
    net = Graph()
    x = net.input('x', (2,))
    net.node('dead', Dense(3), x)
    net.output(net.node('z', Square(), x), loss=SquaredError())
    problem = net, np.ones(9), np.ones((4, 2)), np.zeros((4, 2))
    assert not hessian(*problem).dense().any() and not np.asarray(decompose(*problem).total()).any()
    assert sum(attribute(*problem, np.ones(9)).values()) == 0

def features(net):
    "What a network shows in the part that reaches its output."
    nodes = [net.nodes[v] for v in live(net)]
    kinds = {type(node.rule).__name__ for node in nodes if node.rule is not None}
    users = {q: [type(node.rule).__name__ for node in nodes if node.theta == q] for q in net.parameters}
    depth = {}
    for v, node in net.nodes.items(): depth[v] = 1 + max([depth[s] for s in node.parents], default=-1)
    children = Counter(s for node in nodes for s in {*node.parents})
    return Counter({kind: 1 for kind in kinds} | {
        'several inputs': sum(node.rule is None for node in nodes) > 1, 'deep': depth[net.output_node] >= 8,
        'branches': max(children.values()) > 1, 'convolution and dense': {'Conv', 'Dense'} <= kinds,
        'shared': max(map(len, users.values())) > 1, 'shared across kinds': any(len({*u}) > 1 for u in users.values()),
        'repeated parent': any(len({*node.parents}) < len(node.parents) for node in nodes),
        'repeated among others': any(1 < len({*node.parents}) < len(node.parents) for node in nodes),
        'batched function': any(getattr(node.rule, 'batched', False) for node in nodes),
        'function of a parameter': any('Custom' in u for u in users.values()),
        'dead node': len(nodes) < len(net.nodes), 'dead parameter': [] in users.values()})

def test_networks_are_varied():
    "The strategy reaches every kind of node and every way of connecting them; the draws are always the same."
    seen = Counter()
    @settings(max_examples=2000, deadline=None, derandomize=True)
    @given(networks())
    def look(description): seen.update(features(structure(description)))
    look()
    assert not {feature: seen[feature] for feature in [*oracle.VALUES, *seen] if seen[feature] < 5}
