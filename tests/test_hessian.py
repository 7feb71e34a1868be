"""The four doors beyond correctness on random graphs, and a Hessian that is interrupted and resumed."""
import threading
from pathlib import Path

import autograd.numpy as anp
import numpy as np
import pytest
from autograd.extend import defvjp, primitive
from support.cases import close, convolutional, data_for, forced

from hessian_nb import node
from hessian_nb.graph import Graph
from hessian_nb.hessian import Point, attribute, curvature, decompose, hessian, hessian_vector, input_hessian
from hessian_nb.node import Rule
from hessian_nb.push import all_terms
from hessian_nb.rules import CrossEntropy, Dense, SquaredError, Tanh

HERE = Path(__file__).parent


@pytest.fixture
def case():
    net = convolutional()
    return net, *data_for(net, 23, 4)


def test_reduction(case):
    N = len(case[2])
    assert close(hessian(*case, reduction='sum').dense(), N*hessian(*case).dense())
    v = np.random.default_rng(1).standard_normal(case[0].size)
    assert np.isclose(attribute(*case, v, reduction='sum').total(), N*attribute(*case, v).total(), rtol=1e-13)
    assert close(hessian_vector(*case, v, reduction='sum'), N*hessian_vector(*case, v))


def test_attribution_per_sample_is_that_of_each_sample_alone(case):
    net, theta, X, Y = case
    v = np.random.default_rng(1).standard_normal(net.size)
    together = attribute(net, theta, X, Y, v)
    for i in (0, 7, 22):
        alone = attribute(net, theta, X[i:i+1], Y[i:i+1], v)
        for key in together: assert np.isclose(together.per_sample[key][i], alone[key], rtol=1e-10, atol=1e-14)


def test_nodes_beside_the_way_get_zero_blocks():
    net = Graph()
    x = net.input('x', 3)
    net.node('aside', Dense(2), x)
    net.output(net.node('z', Dense(2), x), SquaredError())
    theta, X = net.init(), np.ones((4, 3))
    H = hessian(net, theta, X, np.zeros((4, 2)))
    assert not H['aside', 'z'].any() and not H['aside', 'aside'].any() and H['z', 'z'].any()
    K = input_hessian(net, theta, X, np.zeros((4, 2)))
    assert K['aside', 'z'].shape == (4, 2, 2) and not K['aside', 'x'].any()
    assert not any(node == 'aside' for node, _ in decompose(net, theta, X, np.zeros((4, 2))))


def test_a_network_without_parameters_has_an_empty_hessian():
    net = Graph()
    net.output(net.node('a', Tanh(), net.input('x', 2)), SquaredError())
    assert hessian(net, net.init(), np.ones((3, 2)), np.zeros((3, 2))).shape == (0, 0)


def test_a_certificate_fails_on_a_wrong_matrix(case):
    H = hessian(*case)
    assert H.certify() < 1e-13
    H['q', 'h'][:] *= 1 + 1e-6
    assert H.certify() > 1e-9


class Swish(Rule):
    "A rule of a user's own that states its value and nothing else."
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return x[0]/(1 + anp.exp(-x[0]))


def test_autograd_never_runs_in_threads(monkeypatch):
    "Autograd keeps one stack of traces for all threads; a rule that needs it takes the work of its network to one."
    alone, seen, make_vjp = Graph(), set(), node.make_vjp
    a = alone.node('a', Swish(), alone.node('h', Dense(4), alone.input('x', 5)))
    alone.output(alone.node('z', Dense(3), a), CrossEntropy())
    monkeypatch.setattr(node, 'make_vjp', lambda *a: seen.add(threading.get_ident()) or make_vjp(*a))
    theta, X, Y = data_for(alone, 60, 3)
    H = hessian(alone, theta, X, Y)
    H.array = curvature(Point(alone, theta, X, Y), all_terms, plan=forced(alone, chunk=5)).dense()
    assert H.certify() < 1e-12 and len(seen) == 1 and alone.traced and not convolutional().traced


def test_a_traced_loss_goes_to_no_threads():
    net = Graph()
    net.output(net.node('h', Dense(2), net.input('x', 2)), lambda z, y: anp.sum(anp.cosh(z - y)))
    assert net.traced


def test_attribute_takes_the_two_reductions_only(case):
    for reduction in ('max', 'median', 'men'):
        with pytest.raises(ValueError, match="expected 'mean' or 'sum'"): attribute(*case, np.ones(case[0].size),
                                                                                    reduction=reduction)
    with pytest.raises(ValueError, match="expected 'mean' or 'sum'"): decompose(*case, reduction='summ')


def test_a_number_is_pulled_to_by_one_pullback():
    "The gradient needs no second derivative of a function, and that of one number neither."
    f = primitive(np.sin)
    defvjp(f, lambda out, u: lambda g: g*np.cos(u) if isinstance(g, np.ndarray) else 1/0)
    net = Graph()
    number = net.parameter('k', ())
    net.output(net.node('f', lambda u, t: f(u*t), net.input('x', 2), theta=number), lambda z: anp.sum(z))
    x, theta = np.ones((4, 2)), net.init()
    assert np.isclose(net.gradient(theta, x)[0], 2*np.cos(theta[0]))
