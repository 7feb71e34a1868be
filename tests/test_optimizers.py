"""Training against updates written out in the test, and runs that are stopped and started again."""
import autograd
import numpy as np
import pytest
from support.oracle import loss

from hessian_nb import optimizers
from hessian_nb.graph import Graph
from hessian_nb.optimizers import Adam, Momentum, accuracy, train
from hessian_nb.rules import CrossEntropy, Dense, Multiply, Sigmoid, SquaredError, Tanh

RULES = [Momentum(.7), Adam(.8, .95)]


def network(activation=Tanh):
    "Two dense layers, 31 parameters, three classes."
    net = Graph()
    hidden = net.node('a', activation(), net.node('h', Dense(4), net.input('x', (3,))))
    net.output(net.node('z', Dense(3), hidden), CrossEntropy())
    return net


@pytest.fixture(scope='module')
def case():
    "A network, a start, 12 samples and their classes."
    net = network()
    return net, net.init(1), np.random.default_rng(0).standard_normal((12, 3)), np.arange(12) % 3


def slopes(case, steps, batch, seed):
    "For each step, the function that gives the gradient of its batch, by autograd of the oracle's loss."
    net, _, X, Y = case
    for step in range(steps):
        pick = np.random.default_rng([seed, step]).integers(12, size=batch)
        yield autograd.grad(lambda theta, pick=pick: loss(net, theta, X[pick], Y[pick]))


# --- the two update rules

def test_momentum_with_a_falling_rate(case):
    kept = train(*case, 4, Momentum(.7), [0, 3, 4], batch=5, rate=.2, rng=3)
    course, velocity = [case[1]], 0
    for step, slope in enumerate(slopes(case, 4, 5, 3)):
        velocity = .7*velocity - .2*(1 - step/4)*slope(course[-1])
        course.append(course[-1] + velocity)
    assert kept.dtype == np.float64 and np.allclose(kept, [course[0], course[3], course[4]], rtol=1e-12, atol=1e-14)


def test_adam_with_a_falling_rate(case):
    "Algorithm 1 of Kingma and Ba, entry by entry in plain floats."
    kept = train(*case, 5, Adam(.8, .95), [0, 2, 5], batch=5, rate=.2, rng=3)
    theta = case[1].tolist()
    first, second = [0.]*len(theta), [0.]*len(theta)
    course = [list(theta)]
    for t, slope in enumerate(slopes(case, 5, 5, 3), 1):
        alpha = .2*(6 - t)/5
        for i, g in enumerate(slope(np.array(theta)).tolist()):
            first[i] = .8*first[i] + .2*g
            second[i] = .95*second[i] + .05*g*g
            theta[i] -= alpha*(first[i]/(1 - .8**t))/((second[i]/(1 - .95**t))**.5 + 1e-8)
        course.append(list(theta))
    assert np.allclose(kept, [course[0], course[2], course[5]], rtol=1e-10, atol=1e-12)


def test_momentum_is_the_default(case):
    assert np.array_equal(train(*case, 6, rate=.1), train(*case, 6, Momentum(.9), rate=.1))


def test_the_start_is_not_changed(case):
    net, theta, X, Y = case
    before = theta.copy()
    train(net, theta, X, Y, 3)
    assert np.array_equal(theta, before)


def test_training_learns(case):
    net, theta, X, Y = case
    for settings in ({'rate': .2}, {'update': Adam(), 'rate': .1}):
        end, = train(net, theta, X, Y, 200, batch=12, **settings)
        assert net.loss(end, X, Y) < .5*net.loss(theta, X, Y)


# --- samples and batches

def test_several_inputs_and_no_targets():
    "Two inputs by name, and a loss without targets."
    net = Graph()
    product = net.node('m', Multiply(), net.node('h', Dense(2), net.input('x', (3,))), net.input('w', (2,)))
    net.output(product, lambda z: (z**2).sum())
    rng = np.random.default_rng(0)
    X = {'x': rng.standard_normal((9, 3)), 'w': rng.standard_normal((9, 2))}
    theta = net.init(0)
    kept = train(net, theta, X, None, 1, batch=4, rate=.1, rng=6)
    pick = np.random.default_rng([6, 0]).integers(9, size=4)
    x, w = X['x'][pick], X['w'][pick]
    z = (x @ theta[:6].reshape(2, 3).T + theta[6:])*w
    weights = np.einsum('ni,nj->ij', 2*z*w/4, x)
    assert np.allclose(kept[0], theta - .1*np.concatenate([weights.ravel(), (2*z*w/4).sum(0)]), rtol=1e-12)


def test_rng_decides_about_the_batches(case):
    def end(rng): return train(*case, 5, batch=3, rng=rng)
    assert np.array_equal(end(4), end(np.int64(4))) and not np.array_equal(end(4), end(5))
    for make in (np.random.default_rng, np.random.SeedSequence):
        assert np.array_equal(end(make(4)), end(make(4))) and not np.array_equal(end(make(4)), end(make(5)))
    assert not np.array_equal(end(None), end(None))


def test_a_batch_does_not_depend_on_those_before(case):
    "The second half of a run, made from its middle by hand, uses the batches of the steps 3, 4 and 5."
    half, end = train(*case, 6, Momentum(0.), [3, 6], batch=3, rate=.2, rng=8)
    for step, slope in list(enumerate(slopes(case, 6, 3, 8)))[3:]: half = half - .2*(1 - step/6)*slope(half)
    assert np.allclose(half, end, rtol=1e-12)


def test_accuracy():
    net = Graph()
    net.output(net.node('z', Dense(2, bias=False), net.input('x', (2,))), CrossEntropy())
    X = np.array([[1., 0], [0, 1], [2, 1], [1, 3]])
    assert accuracy(net, np.array([1., 0, 0, 1]), X, [0, 1, 1, 1]) == .75


# --- snapshots, and runs that are stopped

def test_snapshots_in_any_order(case):
    whole = train(*case, 6, snapshots=range(7))
    assert np.array_equal(train(*case, 6, snapshots=[4, 0, 6]), whole[[4, 0, 6]])
    assert np.array_equal(train(*case, 6), whole[[6]]) and train(*case, 6, snapshots=[]).shape == (0, 31)
    assert np.array_equal(whole[0], case[1]) and np.array_equal(train(*case, 0), [case[1]])


@pytest.mark.parametrize('update', RULES)
def test_train_goes_on_from_its_checkpoint(case, update, tmp_path, monkeypatch):
    net, theta, X, Y = case
    settings = dict(steps=40, update=update, snapshots=[5, 25, 40], batch=4)
    whole = train(net, theta, X, Y, **settings)
    file, gradient, calls = tmp_path/'run.npz', net.gradient, []

    def counted(*args):
        calls.append(1)
        if len(calls) == 18: raise KeyboardInterrupt
        return gradient(*args)
    monkeypatch.setattr(net, 'gradient', counted)
    with pytest.raises(KeyboardInterrupt): train(net, theta, X, Y, **settings, checkpoint=file)
    assert np.array_equal(train(net, theta, X, Y, **settings, checkpoint=file), whole)
    assert len(calls) == 41                                            # 40, and the one that was interrupted
    train(net, theta, X, Y, **settings, checkpoint=file)
    assert len(calls) == 41


def test_the_file_is_written_on_the_way(case, tmp_path, monkeypatch):
    "What a process leaves that is killed: the state after the last whole `every` steps."
    saved = []
    monkeypatch.setattr(optimizers.Checkpoint, 'save_now', lambda file, **arrays: saved.append(arrays['step']))
    train(*case, 10, checkpoint=tmp_path/'run.npz', every=4)
    assert saved == [4, 8, 10]


@pytest.mark.parametrize('change', [{'rate': .06}, {'rng': 1}, {'snapshots': [4]}, {'steps': 11}, {'batch': 5},
                                    {'update': Momentum(.8)}, {'update': Adam()}])
def test_train_refuses_the_checkpoint_of_another_run(case, tmp_path, change):
    settings = dict(steps=10, snapshots=[5], batch=4, checkpoint=tmp_path/'run.npz')
    train(*case, **settings)
    with pytest.raises(ValueError, match="run.npz' belongs to another computation"):
        train(*case, **settings | change)
    net, theta, X, Y = case
    for changed in (net, theta + 1, X, Y), (net, theta, X + 1, Y), (net, theta, X, Y[::-1]), \
                   (network(Sigmoid), theta, X, Y):                    # with as many parameters
        with pytest.raises(ValueError, match='belongs to another computation'): train(*changed, **settings)


# --- what goes wrong

@pytest.mark.parametrize('settings, text', [
    (dict(snapshots=[5, 12]), 'snapshots has 12, which is no step of 0…10'),
    (dict(snapshots=[-1]), 'snapshots has -1'),
    (dict(snapshots=[2.5]), 'snapshots has 2.5'),
    (dict(snapshots=[3, 3]), 'names a step twice'),
    (dict(rng=None, checkpoint='run.npz'), 'give rng an integer')])
def test_settings_are_refused(case, settings, text):
    with pytest.raises(ValueError, match=text): train(*case, 10, **settings)


def test_samples_are_refused_before_the_first_step(case, monkeypatch):
    net, theta, X, Y = case
    monkeypatch.setattr(net, 'gradient', lambda *args: pytest.fail('a step was made'))
    wrong = Y.copy()
    wrong[7] = 3
    with pytest.raises(ValueError, match='label 3 of sample 7'): train(net, theta, X, wrong, 10)
    with pytest.raises(ValueError, match='theta has shape'): train(net, theta[1:], X, Y, 10)


@pytest.mark.filterwarnings('ignore:overflow')
def test_a_rate_that_is_too_large_is_said_with_its_step():
    "w ← w − ηw³ from 3 with η = 1: −24, 13800, −2.6e12, 1.8e37, −6e111, beyond the numbers."
    net = Graph()
    net.output(net.node('q', lambda x, w: x*w*w/2, net.input('x', (1,)), theta=net.parameter('w', 1)), SquaredError(1))
    ones, zeros = np.ones((1, 1)), np.zeros((1, 1))
    with pytest.raises(FloatingPointError, match='^step 5: .*give a smaller rate$'):
        train(net, [3.], ones, zeros, 1000, Momentum(0.), rate=1.)
    with pytest.raises(FloatingPointError, match='^step 0: 1 parameters are not finite any more'):
        train(net, [3.], ones, zeros, 1000, rate=1e308)
