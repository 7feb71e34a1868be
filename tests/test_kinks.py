"""Kinks: counted where the loss has them, told once, and no zero or tie is taken for one."""
import warnings

import numpy as np
import pytest
from support.cases import data_for, kinked

from hessian_nb.graph import Graph, backward
from hessian_nb.hessian import attribute, decompose, hessian, hessian_vector, input_hessian
from hessian_nb.kinks import KinkWarning, real_kinks
from hessian_nb.rules import (Abs, Conv, CrossEntropy, Dense, HardTanh, LeakyReLU, Maximum, MaxPool, ReLU, SquaredError,
                              Tanh)


def test_kinks_are_told_once_and_as_asked():
    case = kinked()
    v = np.ones(case[0].size)
    def along(*a, **k): return attribute(*a, v, **k)
    def product(*a, **k): return hessian_vector(*a, v, **k)
    for call in (hessian, decompose, along, product, input_hessian):
        with pytest.warns(KinkWarning, match=r"10 entries .* 'a' \(ReLU\(\)\) 10") as caught: call(*case)
        assert len(caught) == 1 and caught[0].filename == __file__      # told where the user called
        with pytest.raises(ValueError, match='exactly on a kink'): call(*case, kinks='raise')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            call(*case, kinks='ignore')
    with pytest.raises(ValueError, match="expected 'warn', 'raise' or 'ignore'"): hessian(*case, kinks='no')


def test_structural_zeros_are_no_kinks():
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=2, bias=False), net.input('x', (1, 4, 4))))
    m = net.node('m', MaxPool(2, stride=1), a)
    net.output(net.node('z', Dense(3), m), CrossEntropy())
    theta, X, Y = data_for(net, 5, 3)
    X[:, :, :3, :3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hessian(net, theta, X, Y)


def counted(net, theta, X, Y):
    data = net.data(X, Y, loss=True)
    local = backward(net.linearize(theta, data))
    return {name: int(hit.sum()) for name, hit in real_kinks(net, theta, data, local).items() if hit.any()}


def test_a_tie_of_one_function_is_no_kink():
    "Four blank pixels under a max-pool hold the same number, whatever the bias."
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=3, padding=1), net.input('x', (1, 8, 8))))
    net.output(net.node('z', Dense(3), net.node('p', MaxPool(2), a)), CrossEntropy())
    theta, X, Y = data_for(net, 3, 3)
    net.view(theta)['h.b'][:] = .3
    assert counted(net, theta, 0*X, Y) == {}
    net.view(theta)['h.b'][:] = 0.
    assert counted(net, theta, 0*X, Y) == {'a': 3*2*64}


def test_a_kink_that_the_loss_cannot_see_is_none():
    net = Graph()
    r = net.node('r', ReLU(), net.node('h', Dense(3), net.input('x', 2)))
    net.output(net.node('z', Dense(2), net.node('s', HardTanh(), net.node('k', Dense(3), r))), SquaredError())
    theta, X, Y = net.init(0), np.zeros((4, 2)), np.zeros((4, 2))
    net.view(theta)['h.b'][:] = 0
    assert counted(net, theta, X, Y) == {'r': 12}
    net.view(theta)['k.b'][:] = 5.       # the hard tanh is saturated
    assert counted(net, theta, X, Y) == {}


def test_a_zero_delta_hides_no_kink():
    "w·relu(w) has δ = 0 at its kink, and is no smoother for that."
    from hessian_nb.rules import Multiply
    net = Graph()
    w = net.node('w', Dense(1, bias=False), net.input('x', 1))
    net.output(net.node('m', Multiply(), w, net.node('r', ReLU(), w)), SquaredError())
    assert counted(net, np.zeros(1), np.ones((1, 1)), np.zeros((1, 1))) == {'r': 1}


def test_a_parent_that_repeats_does_not_compete_with_itself():
    net = Graph()
    h = net.node('h', Dense(3), net.input('x', 2))
    net.output(net.node('m', Maximum(), h, h), SquaredError())
    assert counted(net, net.init(0), np.ones((2, 2)), np.zeros((2, 3))) == {}
    same = net.node('same', Dense(3), 'x', theta='h')
    net.output(net.node('n', Maximum(), h, same), SquaredError())
    assert counted(net, net.init(0), np.ones((2, 2)), np.zeros((2, 3))) == {}


@pytest.mark.parametrize('rule, at, slope', [(ReLU(), 0., 0.), (LeakyReLU(.2), 0., .2), (Abs(), 0., -1.), (HardTanh(),
                                                                                                           1., 0.),
                                             (HardTanh(), -1., 0.)])
def test_slopes_at_a_kink(rule, at, slope):
    net = Graph()
    net.output(net.node('r', rule, net.node('h', Dense(1, bias=False), net.input('x', 1))), SquaredError())
    X, Y = np.ones((1, 1)), np.full((1, 1), 3.)
    assert counted(net, np.array([at]), X, Y) == {'r': 1}
    gradient = net.gradient(np.array([at]), X, Y)
    assert np.isclose(gradient[0], (net.predict(np.array([at]), X)[0, 0] - 3)*slope)


def test_of_equal_entries_the_first_counts():
    net = Graph()
    h = net.node('h', Dense(4, bias=False), net.input('x', 4))
    net.output(net.node('m', Maximum(), h, net.node('g', Tanh(), h)), SquaredError())
    theta, X, Y = np.zeros(16), np.ones((1, 4)), np.ones((1, 4))
    slopes = net.gradient(theta, X, Y).reshape(4, 4)
    assert np.allclose(slopes, -1)        # those of the first parent
