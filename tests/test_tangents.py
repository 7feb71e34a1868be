"""Tangents that stay row by row: as if their zeros were written out. That products are right: test_random_graphs."""
from itertools import product

import numpy as np
import pytest
from support.cases import channels, data_for

from hessian_nb.graph import Graph, backward
from hessian_nb.hessian import hessian_vector
from hessian_nb.node import Rule
from hessian_nb.rules import CrossEntropy, Dense
from hessian_nb.tangents import Tangent, inner


def test_a_tangent_by_rows_says_what_the_written_one_says():
    "Through every rule of the network, bent, coupled and met: as if its zeros were written out."
    net = channels()
    theta, X, Y = data_for(net, 5, 4)
    local = backward(net.linearize(theta, net.data(X, Y, loss=True)))
    at, whole = {a.name: a for a in local}, Tangent.whole
    J = Tangent.of(at['h'])
    assert J.rows == 4 and J.array.shape == (19, 144, 1, 5) and whole(J).shape == (76, 144, 1, 5)
    moved = {'h': J}
    for name, parent, slot, kept in [('a', 'h', 0, 4), ('b', 'a', 0, 1), ('m', 'h', 1, 4), ('s', 'm', 0, 4),
                                     ('e', 's', 0, 1), ('t', 's', 0, 1)]:
        moved[name] = moved[parent].tangent(at[name], slot)
        written = Tangent(whole(moved[parent])).tangent(at[name], slot)
        assert moved[name].rows == kept and np.allclose(whole(moved[name]), written.array, rtol=1e-13, atol=1e-13)
    for name, parent in ('b', 'a'), ('e', 's'):
        written = Tangent(whole(moved[parent])).curve_theta(at[name], 0)
        assert np.allclose(moved[parent].curve_theta(at[name], 0), written, rtol=1e-13, atol=1e-13)
    bent, rng = J.curve(at['a'], 0, 0), np.random.default_rng(0)
    assert bent.rows == 4 and np.allclose(whole(bent), Tangent(whole(J)).curve(at['a'], 0, 0).array)
    several = [J, bent, *(Tangent(rng.standard_normal((3, 144, 1, 5)), rows) for rows in (1, 2))]
    for A, B in product(several, several):
        assert np.allclose(inner(A, B), np.einsum('aexn,bexn->ab', whole(A), whole(B)))


class Scaled(Rule):
    "A rule whose closed form forgets to add up over the samples."
    traced = False
    def infer(self, shapes): return shapes[0]
    def parameters(self, shapes): return {'a': shapes[0]}
    def value(self, x, theta): return theta['a'][..., None]*x[0]
    def pull(self, at, slot, A, total=False): return A*(at.x[0] if slot == 'θ' else at.theta['a'][..., None])[:, None]


def test_a_rule_that_does_not_add_up_over_the_samples_is_told():
    net = Graph()
    s = net.node('s', Scaled(), net.node('h', Dense(4), net.input('x', 3)))
    net.output(net.node('z', Dense(4), s), CrossEntropy())
    theta, X, Y = data_for(net, 5, 4)
    with pytest.raises(ValueError, match=r"node 's'.*total=True.*\(1, 4, 1, 5\)"):
        hessian_vector(net, theta, X, Y, theta)
