"""What the tests on random networks share: a test as a generator of relative errors, and how errors are measured.

    @on_networks(60)
    def test_something(net, theta, X, Y):
        yield error(ours(net, theta, X, Y), oracle.theirs(net, theta, X, Y))

runs on 60 networks of different structure. Every error must stay below TOLERANCE, and nine of ten below TYPICAL."""
import numpy as np
from hypothesis import assume, reject
from numpy.linalg import norm

from support.random_networks import networks, on_different

TOLERANCE, TYPICAL, SUM = 1e-10, 1e-13, 1e-12
TINY = 1e-3   # values of up to 100 leave 1e-14 behind: below this scale an error is compared with this one
KINKED = {'ReLU', 'LeakyReLU', 'Abs', 'HardTanh', 'Maximum', 'Piecewise', 'MaxPool'}


def on_networks(n):
    "A test that runs check(net, theta, X, Y), which yields relative errors, on n random networks."
    def test(check):
        def run():
            def one(net, theta, X, Y):
                assume(moderate(net.forward(theta, X)))
                try: return worst(check, net, theta, X, Y)
                except ValueError as e:
                    if 'not finite' in str(e): reject()    # autograd's own tanh, say, overflows before its value does
                    raise
            errors = np.array(on_different(n, networks(), one))
            assert np.mean(errors <= TYPICAL) >= 0.9, np.sort(errors)
        run.__doc__, run.check = check.__doc__, check
        return run
    return test

def worst(check, *problem):
    error = np.max([*check(*problem)])   # unlike Python's max it keeps a NaN
    assert error <= TOLERANCE
    return error

def moderate(f):
    "Whether the values stay so small that sin z, say, has digits left."
    return all(abs(u).max() < 100 for u in f.values())

def known(true):
    "What an oracle says, where it says something: autograd's own derivative of tanh overflows before its value does."
    answers = true.values() if isinstance(true, dict) else true if isinstance(true, tuple) else [true]
    assume(all(np.isfinite(a).all() for a in answers if isinstance(a, np.ndarray)))
    return true

def error(found, true, scale=0.): return norm(np.asarray(found) - true)/max(norm(true), scale, TINY)

def part(terms, key, p): return np.asarray(terms[key]) if key in terms else np.zeros((p, p))

def direction(theta): return np.random.default_rng(theta.size).normal(size=theta.size)

def smooth(net, f):
    "Whether no node with a kink stands on a value that is 0 or ±1 exactly or that occurs twice."
    met = [u.ravel() for node in net.nodes.values() if type(node.rule).__name__ in KINKED
           for u in np.concatenate([f[s].reshape(len(f[s]), -1) for s in node.parents], axis=1)]
    return all(np.unique(u).size == u.size and not np.isin(u, [-1, 0, 1]).any() for u in met)
