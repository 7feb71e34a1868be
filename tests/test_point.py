"""A network at a point owns what it was made of, and does each thing once."""
import pickle

import numpy as np
import pytest
from support.cases import close, convolutional, data_for, dense

from hessian_nb.graph import Graph
from hessian_nb.hessian import Point, curvature, decompose, hessian
from hessian_nb.push import all_terms
from hessian_nb.rules import Dense, SquaredError


def test_later_changes_do_not_matter():
    "θ, X, Y and the graph's loss, changed after a lazy object was made."
    net = dense(6, 5, 3)
    theta, X, Y = data_for(net, 11, 3)
    H, D, point = hessian(net, theta, X, Y), decompose(net, theta, X, Y), Point(net, theta, X, Y)
    before, v = H.dense().copy(), np.ones((1, net.size))
    Hv = point.products(v)
    theta *= 3
    X += 1
    Y[:] = (Y + 1) % 3
    net.output('z', SquaredError())
    assert close(D.total().dense(), before) and np.array_equal(point.products(v), Hv)
    assert H.certify(quiet=True) < 1e-13 and close(curvature(point, all_terms).dense(), before)


@pytest.mark.parametrize('shape', [(), (1,), (3,)])
def test_inputs_of_any_shape_are_copied(shape):
    net = Graph()
    x = net.input('x', shape)
    net.output(net.node('h', Dense(2), x), lambda z, y: (z[0] - y)**2)
    X, Y = np.ones((1, *shape)), np.ones(1)
    point = Point(net, net.init(0), X, Y)
    first = point.products(np.ones((1, net.size)))
    X *= 5
    Y *= 7
    point._kept.clear()
    assert np.array_equal(point.products(np.ones((1, net.size))), first)


def test_a_point_is_linearised_and_planned_once(monkeypatch):
    net = convolutional()
    theta, X, Y = data_for(net, 23, 4)
    passes, linearize = [], Graph.linearize
    monkeypatch.setattr(Graph, 'linearize', lambda *a, **k: passes.append(1) or linearize(*a, **k))
    D = decompose(net, theta, X, Y)
    D.total(), D.by_node(), D.by_kind()
    assert len(passes) == 1


def test_an_interrupt_stops_the_work(monkeypatch):
    net = convolutional()
    theta, X, Y = data_for(net, 23, 4)
    begun, linearize = [], Graph.linearize

    def third_time(net, *args, **how):
        begun.append(1)
        if len(begun) == 3: raise KeyboardInterrupt
        return linearize(net, *args, **how)
    monkeypatch.setattr(Graph, 'linearize', third_time)
    with pytest.raises(KeyboardInterrupt): Point(net, theta, X, Y).each(lambda local: None, 1, 'work')
    assert len(begun) < 23


def test_a_point_travels_to_another_process():
    net = dense(6, 5, 3)
    point = Point(net, *data_for(net, 11, 3))
    point.products(np.ones((1, net.size)))
    again = pickle.loads(pickle.dumps(point))
    assert np.array_equal(curvature(again, all_terms).dense(), curvature(point, all_terms).dense())
