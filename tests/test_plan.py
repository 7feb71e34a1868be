"""The plan: what it chooses, what it counts, what it refuses, and the memory that is really taken."""
import time
import tracemalloc

import autograd.numpy as anp
import numpy as np
import pytest
from support.cases import close, data_for, dense
from threadpoolctl import threadpool_limits

from hessian_nb import plan as room
from hessian_nb.graph import Graph
from hessian_nb.hessian import attribute, decompose, hessian, hessian_vector, input_hessian
from hessian_nb.plan import Plan, plan
from hessian_nb.rules import AvgPool, Conv, CrossEntropy, Dense, LayerNorm, Tanh


def test_the_plan_pushes_small_maps_and_carries_the_weights_of_large_ones():
    small, large = dense(8, 6, 3), Graph()
    v = large.node('a', Tanh(), large.node('h', Conv(4, kernel=3), large.input('x', (1, 28, 28))))
    large.output(large.node('z', Dense(10), large.node('m', AvgPool(13), v)), CrossEntropy())
    assert plan(small, 100).carried == [] and plan(small, 100).chunk == 100
    assert plan(large, 100).carried == ['h'] and plan(large, 100).pushed == ['z']
    theta, X, Y = data_for(large, 3, 10)
    assert hessian(large, theta, X, Y).certify() < 1e-13


def test_a_large_matrix_is_refused_before_it_is_made():
    net = dense(64, 500, 130, 10)
    theta, X, Y = data_for(net, 1000, 10)
    v = np.random.default_rng(0).standard_normal(net.size)
    tracemalloc.start()
    with pytest.raises(MemoryError, match=r'98,940 × 98,940 entries.*attribute.*hessian_vector.*max_bytes'):
        hessian(net, theta, X, Y)
    with pytest.raises(MemoryError): decompose(net, theta, X, Y)
    a, Hv = attribute(net, theta, X, Y, v), hessian_vector(net, theta, X, Y, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6 < 8*net.size**2       # nothing of size p × p was there at any time
    assert np.isclose(a.total(), v @ Hv, rtol=1e-12)


def test_what_is_needed_is_enough_and_one_byte_less_is_not():
    net = dense(6, 5, 3)
    theta, X, Y = data_for(net, 7, 3)
    need = {hessian: 2*8*net.size**2, decompose: 2*8*net.size**2,
            input_hessian: 8*7*sum(v.size for v in net.nodes.values())**2}
    for call, bytes in need.items():
        call(net, theta, X, Y, max_bytes=bytes)
        with pytest.raises(MemoryError, match='max_bytes'): call(net, theta, X, Y, max_bytes=bytes - 1)
    for nonsense in ('1GB', True, -1):
        with pytest.raises(TypeError, match='max_bytes'): hessian(net, theta, X, Y, max_bytes=nonsense)


def test_half_of_the_free_memory_may_be_taken(monkeypatch):
    monkeypatch.setattr(room, 'free_memory', lambda: 1000)
    assert room.allowed_bytes() == 500


def test_planning_does_not_explode_with_depth():
    "Options are tried on a grid, not one for each parameter."
    counts = {}
    for depth in (10, 40):
        net, tried = Graph(), []
        v = net.input('x', (2, 6))
        for i in range(depth): v = net.node(f'n{i}', LayerNorm(), net.node(f'c{i}', Conv(2, kernel=3, padding=1), v))
        net.output(net.node('z', Dense(3), v), CrossEntropy())
        room.least(lambda i, tried=tried: tried.append(i) or i, 2*depth + 1, lambda i: (i - depth)**2)
        counts[depth] = len(tried)
        assert isinstance(plan(net, 50), Plan)
    assert counts[40] < 2*counts[10]


def test_the_cheapest_option_is_found():
    for last in range(12):
        for best in range(last + 1):
            assert room.least(lambda i: i, last, lambda i, best=best: abs(i - best)) == best


def test_attribution_costs_at_most_two_products():
    "In processor time on one core, which other processes do not disturb."
    net = dense(64, 500, 130, 10)
    theta, X, Y = data_for(net, 1000, 10)
    v = np.random.default_rng(0).standard_normal(net.size)
    def seconds(f):
        start = time.process_time()
        f(net, theta, X, Y, v)
        return time.process_time() - start
    with threadpool_limits(1): pairs = [(seconds(attribute), seconds(hessian_vector)) for _ in range(7)]
    assert np.median([a/h for a, h in pairs]) < 2


def test_many_samples_keep_the_memory_small():
    net = dense(20, 16, 8, 5)
    theta, X, Y = data_for(net, 40000, 5)
    net.data(X, Y, loss=True)
    tracemalloc.start()
    H = hessian(net, theta, X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2*8*net.size**2 + 300e6
    assert close(H.dense(), np.mean([hessian(net, theta, X[i::8], Y[i::8]).dense() for i in range(8)], axis=0), 1e-12)


def test_a_function_with_a_parameter_keeps_the_memory_small():
    "Its own block is summed over the samples at once: (p_v, p_v) numbers for each of them would be 820 MB here."
    net = Graph()
    k = net.parameter('k', (20, 16))
    h = net.node('m', lambda u, k: anp.sin(anp.dot(u, k)), net.input('x', 20), theta=k, batched=True)
    net.output(net.node('z', Dense(3), h), CrossEntropy())
    theta, X, Y = data_for(net, 1000, 3)
    tracemalloc.start()
    H = hessian(net, theta, X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6 and H.certify(quiet=True) < 1e-13
