"""Training, following and spectra against dense oracles, and runs that are killed and started again."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from support.oracle import forward, gauss_newton, hessian, loss, node_terms, samples, tied

from hessian_nb import spectra
from hessian_nb.hessian import attribute
from hessian_nb.push import terms
from hessian_nb.rules import Sigmoid
from hessian_nb.spectra import captured, class_gradients, follow, residual_network

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def case():
    "A network with 65 parameters, 12 samples, three classes."
    net, rng = residual_network((1, 4, 4), (2, 2), classes=3), np.random.default_rng(0)
    return net, net.init(1), rng.standard_normal((12, 1, 4, 4)), np.arange(12) % 3


@pytest.fixture(scope='module')
def dense(case): return hessian(*case)


def symmetric(n, seed=0):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return A + A.T


def test_follow_takes_no_products_of_another_network(case, tmp_path):
    "With as many parameters, at the same θ and on the same data."
    (net, theta, *data), other = case, residual_network((1, 4, 4), (2, 2), classes=3, activation=Sigmoid)
    follow(net, [theta], *data, checkpoint=tmp_path/'j')
    again = follow(other, [theta], *data, checkpoint=tmp_path/'j')
    assert np.array_equal(again['values'], follow(other, [theta], *data)['values'])


# Killed from outside

LANCZOS = '''
import sys, time
import numpy as np
from scipy.sparse.linalg import aslinearoperator, eigsh
from hessian_nb.run import Journal
A = np.random.default_rng(0).standard_normal((200, 200))
A, op = A + A.T, aslinearoperator(A + A.T)
def product(v):
    print('computed', flush=True)
    time.sleep(.02)
    return A @ v
op._matvec, op._matmat = product, product
watched = Journal(sys.argv[1]).watch(op, {'A': A})
np.save(sys.argv[2], eigsh(watched, 3, which='LA', v0=np.ones(200), tol=1e-10)[0])
'''

TRAINING = '''
import sys, time
import numpy as np
from hessian_nb.optimizers import train
from hessian_nb.spectra import residual_network
net, rng = residual_network((1, 4, 4), (2, 2), classes=3), np.random.default_rng(0)
gradient = net.gradient
def slow(*args):
    print('computed', flush=True)
    time.sleep(.01)
    return gradient(*args)
net.gradient = slow
np.save(sys.argv[2], train(net, net.init(1), rng.standard_normal((12, 1, 4, 4)), np.arange(12) % 3, 200,
                           snapshots=[7, 90, 200], batch=4, checkpoint=sys.argv[1], every=16))
'''

# What was started in the background may ignore interrupts, and its children with it.
HEARS = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)'


def start(program, *args):
    env = dict(os.environ, PYTHONPATH=str(ROOT), OPENBLAS_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', HEARS + program, *map(str, args)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def killed(program, how, after, *args):
    "Start it, end it after some lines, and return how many there were."
    with start(program, *args) as run:
        for _ in range(after): assert run.stdout.readline() == 'computed\n'
        run.send_signal(how)
        rest = run.stdout.read().splitlines()
    assert run.returncode != 0
    return after + len(rest)


def finished(program, *args):
    with start(program, *args) as run: lines = run.stdout.read().splitlines()
    assert run.returncode == 0
    return len(lines)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize('program, lost', [(LANCZOS, 1), (TRAINING, 17)])
def test_a_killed_run_goes_on(program, lost, how, tmp_path):
    work = finished(program, tmp_path/'whole', tmp_path/'whole.npy')
    spent = killed(program, how, work//3, tmp_path/'run', tmp_path/'run.npy')
    spent += killed(program, how, work//4, tmp_path/'run', tmp_path/'run.npy')
    assert not (tmp_path/'run.npy').exists()
    spent += finished(program, tmp_path/'run', tmp_path/'run.npy')
    assert np.array_equal(np.load(tmp_path/'run.npy'), np.load(tmp_path/'whole.npy'))
    assert work <= spent <= work + 2*lost                              # two stops


# Following

def test_follow_against_the_dense_hessian_and_its_terms(case, dense):
    net, theta, X, Y = case
    found, values = follow(net, [theta, 0*theta + .3], X, Y), np.linalg.eigvalsh(dense)
    assert np.allclose(found['values'][0], values[[0, -1]], rtol=1e-6, atol=1e-8)
    oracle = node_terms(net, theta, X, Y)
    for v, parts in zip(found['vectors'][0], found['parts'][0]):
        assert np.allclose(parts, [v @ oracle[t] @ v for t in terms(net)], rtol=1e-9, atol=1e-12)
    assert np.isclose(found['loss'][1], loss(net, 0*theta + .3, X, Y), rtol=1e-12)
    outputs = [forward(net, tied(net, theta), x)['z'].argmax() == y for x, y in samples(net, X, Y)]
    assert found['accuracy'][0] == np.mean(outputs)


# Classes

def test_class_gradients_are_the_means_of_the_gradients(case):
    net, theta, X, Y = case
    X, Y = X[:10], Y[:10]                                              # classes of different sizes
    out = np.zeros((3, 3, net.size))
    for x, y in samples(net, X, Y):
        def output(t, x=x): return forward(net, tied(net, t), x)['z']
        p = np.exp(output(theta))/np.exp(output(theta)).sum()
        for other in range(3):
            def as_if(t, other=other): return anp.log(anp.sum(anp.exp(output(t)))) - output(t)[other]
            out[y, other] += p[other]*autograd.grad(as_if)(theta)/10
    assert np.allclose(class_gradients(net, theta, X, Y), out, rtol=1e-10, atol=1e-14)


def test_captured():
    e = np.eye(4)
    V = np.stack([e[0], (e[0] + e[3])/np.sqrt(2), e[3], (e[1] + e[2])/np.sqrt(2)], 1)
    span = np.stack([e[0] + e[1], e[0] - e[1], 3*e[0]], 1)              # the plane of the first two
    assert np.allclose(captured(V, span), [1, .5, 0, .5], rtol=1e-12, atol=1e-15)


def test_classes_share_a_curvature(case, dense):
    net, theta, X, Y = case
    v = np.linalg.eigh(dense)[1][:, -1]
    parts = spectra.by_class(attribute(net, theta, X, Y, v), Y)
    for c in range(3):
        alone = v @ hessian(net, theta, X[Y == c], Y[Y == c]) @ v*np.mean(Y == c)
        assert np.isclose(parts[c], alone, rtol=1e-10)


# The spectrum, and what is stored

def test_spectrum_against_dense_matrices(case, dense):
    net, theta, X, Y = case
    found, G = spectra.spectrum(*case, k=4, tol=1e-12, probes=3, steps=30), gauss_newton(*case)
    values, vectors = np.linalg.eigh(dense)
    top = found['vectors']
    assert np.allclose(found['values'], values[:-5:-1], rtol=1e-9)
    assert np.allclose(np.abs(np.sum(top*vectors[:, :-5:-1], 0)), 1, rtol=1e-8)
    assert np.allclose(found['kinds'][:, 0], np.sum(top*(G @ top), 0), rtol=1e-8)
    assert np.allclose(found['kinds'].sum(1), found['values'], rtol=1e-9)
    for c in range(3):
        H = hessian(net, theta, X[Y == c], Y[Y == c])*np.mean(Y == c)
        assert np.allclose(found['classes'][:, c], np.sum(top*(H @ top), 0), rtol=1e-7, atol=1e-10)
    for name, A in ('H', dense), ('G', G):
        nodes, weights, exact = found[f'{name}.nodes'], found[f'{name}.weights'], np.linalg.eigvalsh(A)
        assert nodes.shape == weights.shape == (3, 30)
        assert np.allclose(nodes.max(1), exact[-1], rtol=1e-6) and np.allclose(weights.sum(1), 1, rtol=1e-12)
        assert nodes.min() > exact[0] - 1e-9


def test_spectrum_measures_what_the_mean_gradients_span(case):
    found, means = spectra.spectrum(*case, k=4, tol=1e-12, steps=5), class_gradients(*case)
    for part, span in zip(found['captured'], (means[range(3), range(3)], means.reshape(9, -1))):
        rest = found['vectors'] - span.T @ np.linalg.lstsq(span.T, found['vectors'], rcond=1e-10)[0]
        assert np.allclose(part, 1 - np.sum(rest**2, 0), rtol=1e-7, atol=1e-9)


def test_settled_nodes_count_once():
    nodes = np.array([[0., 1, 3, 6, 9], [0., 1.2, 3, 6.001, 9]])       # three nodes on which both probes agree
    weights = np.array([[.5, .1, .1, .2, .1], [.2, .2, .3, .2, .1]])
    found, k = spectra.settled(nodes, weights, 20)
    assert k == 3 and np.allclose(found[:, 2:], 1/20) and np.allclose(found.sum(1), 1)
    assert np.allclose(found[:, 0]/found[:, 1], [5, 1])                # the others keep their proportions
    assert spectra.settled(nodes[:, :1], weights[:, :1], 20)[1] == 1


def test_stored_results_say_how_they_were_made():
    files = sorted((ROOT/'nbs'/'results').iterdir())
    assert files and all(f.suffix == '.npz' for f in files) and sum(f.stat().st_size for f in files) < 300_000
    for settings in (spectra.results(f)['settings'] for f in files):
        assert {'data', 'N', 'p', 'steps', 'batch', 'rate', 'seed', 'versions'} <= settings.keys()
