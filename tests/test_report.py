"""Samples made ready, the network of the report, and its numbers against witnesses that share no code with it."""
from dataclasses import replace
from functools import cache

import autograd
import numpy as np
from support import oracle
import pytest

from hessian_nb import report
from hessian_nb.data import digits
from hessian_nb.hessian import BlockMatrix
from hessian_nb.report import Findings, build, compute, prepare

Y = np.arange(90) % 3


def random(*shape, seed=0): return np.random.default_rng(seed).standard_normal(shape)


@cache
def findings() -> Findings: return compute(prepare(*digits(), 'the digits'), steps=60, most=60)


# --- samples

@pytest.mark.parametrize('shape, becomes', [
    ((5,), (5,)), ((1,), (1,)), ((24,), (24,)), ((200,), (24,)), ((1, 12, 9), (1, 12, 9)), ((3, 20, 31), (3, 20, 31)),
    ((1, 4, 70), (1, 4, 70)), ((1, 3, 3), (9,)), ((16, 4, 4), (24,)), ((1, 3, 4, 5), (24,))])
def test_images_stay_images_and_vectors_stay_short(shape, becomes):
    s = prepare(random(90, *shape), Y)
    assert s.X.shape == (72, *becomes) and s.X_test.shape == (18, *becomes) and s.shape == (90, *shape)


def test_no_sample_is_lost_and_each_keeps_its_label():
    X, labels = random(90, 5), np.array([7, 3, 40])[Y]
    s = prepare(X, labels, 'name', rng=2)
    assert s.labels.tolist() == [3, 7, 40] and s.name == 'name'
    scaled, classes = np.concatenate([s.X, s.X_test]), np.concatenate([s.Y, s.Y_test])
    order = np.argsort(scaled[:, 0])
    assert np.array_equal(s.labels[classes[order]], labels[np.argsort(X[:, 0])])


def test_training_samples_have_mean_zero_and_variance_one():
    vectors, images = prepare(random(90, 5)*[1, 10, 1e-3, 1e9, 3] + 7, Y).X, prepare(random(90, 2, 6, 6) + 5, Y).X
    assert np.allclose(vectors.mean(0), 0, atol=1e-12) and np.allclose(vectors.std(0), 1)
    assert abs(images.mean()) < 1e-12 and abs(images.std() - 1) < 1e-12
    assert np.ptp(images.mean((0, 2, 3))) > 1e-6                       # one shift for all channels


def test_leading_principal_components():
    "The training samples in 24 components keep the largest 24 singular values; one scale for all."
    X = random(90, 200) @ np.diag(np.linspace(1, 3, 200))
    s = prepare(X, Y)
    training = X[np.random.default_rng(0).permutation(90)[18:]]
    singular = np.linalg.svd((training - training.mean(0))/training.std(0), compute_uv=False)[:24]
    ours = np.linalg.svd(s.X, compute_uv=False)
    assert np.allclose(ours, singular*np.sqrt(72)/singular[0], rtol=1e-8)


def test_test_samples_do_not_reach_the_training():
    "Neither the shift, nor the scale, nor the components know the samples set aside."
    X = random(50, 40)
    before = prepare(X, Y[:50])
    order = np.random.default_rng(0).permutation(50)
    X[order[:10]] *= 1000
    after = prepare(X, Y[:50])
    assert (before.X == after.X).all() and not np.allclose(before.X_test, after.X_test)
    assert not np.allclose(before.X, prepare(X, Y[:50], rng=1).X)


@pytest.mark.parametrize('shape', [(4,), (1, 6, 6), (200,)])
def test_what_never_varies_stays(shape):
    s = prepare(np.ones((90, *shape)), Y)
    assert np.isfinite(s.X).all() and not s.X.any() and not s.X_test.any()


def test_a_constant_feature_beside_others():
    X = random(90, 3)
    X[:, 1] = .1                                                       # whose mean is not exactly 0.1
    s = prepare(X, Y)
    assert abs(s.X[:, 1]).max() < 1e-15 and np.allclose(s.X.std(0)[[0, 2]], 1)


@pytest.mark.parametrize('shape', [(5,), (1, 6, 6), (40,)])
@pytest.mark.parametrize('size', [1e149, 1e-148])
def test_the_unit_does_not_matter(shape, size):
    X = random(90, *shape)
    assert np.allclose(prepare(size*X, Y).X, prepare(X, Y).X, atol=1e-8)


@pytest.mark.parametrize('shape', [(5,), (1, 6, 6), (40,)])
@pytest.mark.parametrize('size', [1e200, 1e155, 1e153, 1e-153, 1e-165, 1e-200, 1e-310])
def test_sizes_that_squares_cannot_hold_are_refused(shape, size):
    "Beyond 10^154 a square overflows, below 10^-162 it underflows: all samples would become alike."
    with pytest.raises(ValueError, match='scale it first$'): prepare(size*random(90, *shape), Y)


def test_one_feature_of_a_hopeless_size_is_enough():
    with pytest.raises(ValueError, match='X varies by only [1-9]e-1(69|70), too little'):
        prepare(random(90, 3)*[1, 1e-170, 1], Y)
    with pytest.raises(ValueError, match=r'X has numbers up to [1-9]e\+(199|200), too large'):
        prepare(random(90, 3)*[1, 1e200, 1], Y)


@pytest.mark.parametrize('X, labels, text', [
    (random(9, 2), Y[:9], 'give at least 10'),
    (random(90, 2), 0*Y, 'every sample has the label 0: give at least two classes'),
    (random(200, 2), np.arange(200), 'give at most 100'),
    (random(90, 2), Y[:-1], '90 samples in X but 89 labels in Y'),
    (np.where(random(90, 2) > 2, np.nan, 1), Y, 'values that are not finite'),
    (np.full((90, 1), 1e308), Y, 'scale it first')])
def test_samples_are_refused(X, labels, text):
    with pytest.raises(ValueError, match=text): prepare(X, labels)


def test_room_for_the_scaled_samples(monkeypatch):
    X = random(90, 5)
    monkeypatch.setattr(report, 'free_memory', lambda: 2*X.nbytes - 1)
    with pytest.raises(MemoryError, match='give fewer samples'): prepare(X, Y)
    monkeypatch.setattr(report, 'free_memory', lambda: 2*X.nbytes)
    prepare(X, Y)


# --- the network

def test_network_has_what_the_report_is_about():
    net = build((1, 8, 8), 10)
    assert [v.name for v in net.nodes.values() if v.theta == 'b'] == ['b', 'c']
    assert net.nodes['s'].parents == ('c', 'a') and 300 <= net.size <= 800
    assert type(net.nodes['h'].rule).__name__ == 'Conv'


def test_large_data_keep_small_networks():
    for shape in [(3, 32, 32), (1, 28, 28), (8, 500, 40), (1, 4, 4), (24,)]:
        net = build(shape, 10)
        assert net.size < 900 and np.prod(net.nodes['s'].shape) <= 256, shape


# --- the numbers

def test_the_split_is_exact_and_certified():
    f = findings()
    assert 0 < f.error() < 1e-14 and 0 < f.certificate < 1e-12
    assert sum(key[1] == 'gauss-newton' for key in f.terms) == 1
    assert abs(f.down.total() - f.values[0]) < 1e-12 and abs(f.up.total() - f.values[-1]) < 1e-12
    assert f.signs(f.gauss_newton)[0] == 0 < f.signs(f.values)[0]


def test_loss_gradient_and_curvature_against_the_oracle():
    "The mean over the first 60 training samples; curvature by a product with the oracle's gradient, differentiated."
    f = findings()
    X, classes = f.samples.X[:60], f.samples.Y[:60]
    def loss(theta): return oracle.loss(f.net, theta, X, classes)
    slope = autograd.grad(loss)
    assert f.used == 60 and abs(f.loss - loss(f.theta)) < 1e-13
    assert abs(f.gradient_norm - np.linalg.norm(slope(f.theta))) < 1e-13
    v = f.vectors[:, 0]
    assert np.allclose(autograd.grad(lambda theta: slope(theta) @ v)(f.theta), f.values[0]*v, atol=1e-10)
    assert np.allclose(f.H.dense() @ f.vectors, f.vectors*f.values, atol=1e-12)


def test_spectrum_of_gauss_newton():
    s = prepare(random(40, 3) + Y[:40, None], Y[:40])
    f = compute(s, steps=20, most=6)
    G = oracle.gauss_newton(f.net, f.theta, s.X[:6], s.Y[:6])
    assert np.allclose(f.gauss_newton, np.linalg.eigvalsh(G), atol=1e-13)
    assert np.allclose(f.rest().dense(), f.H.dense() - G, atol=1e-13)


def test_accuracies_are_those_of_training_and_test():
    f = findings()
    for share, X, classes in ((f.accuracy, f.samples.X, f.samples.Y),
                              (f.test_accuracy, f.samples.X_test, f.samples.Y_test)):
        assert share == (f.net.predict(f.theta, X).argmax(1) == classes).mean()
    assert f.accuracy != f.test_accuracy


def test_findings_of_known_matrices():
    "Error, shares, kinds and signs of a split that is made by hand."
    places = {'h': slice(0, 1), 'z': slice(1, 2)}
    def matrix(a, b): return BlockMatrix(np.diag([a, b]), places)
    terms = {('u', 'pure'): matrix(-4., 0.), ('h', 'pure'): matrix(1., 0.), ('z', 'gauss-newton'): matrix(3., 3.)}
    f = replace(findings(), H=matrix(0., 4.), terms=terms)
    assert f.error() == 1/4 and f.share(terms['u', 'pure']) == 1
    assert np.array_equal(f.rest().dense(), [[-3, 0], [0, 1]])
    assert {kind: T.dense().tolist() for kind, T in f.by_kind().items()} == \
        {'gauss-newton': [[3, 0], [0, 3]], 'pure': [[-3, 0], [0, 0]]}
    f = replace(f, values=np.array([-2., -1e-12, 1e-12, 0, 1e-11, 3]))
    assert f.signs(f.values) == (1, 3, 2) and f.rounded(f.values).tolist() == [-2, 0, 0, 0, 1e-11, 3]


def test_no_curvature_leaves_no_nan():
    f = findings()
    zero = BlockMatrix(0*f.H.array, f.H.places)
    empty = replace(f, H=zero, terms={key: zero for key in f.terms}, values=0*f.values)
    assert empty.error() == empty.share(zero) == 0 and empty.signs(empty.values) == (0, len(f.values), 0)


def test_the_seed_decides():
    s = prepare(random(90, 4) + Y[:, None], Y)
    first, again, other = (compute(s, steps=30, rng=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.theta, again.theta) and np.array_equal(first.values, again.values)
    assert not np.allclose(first.theta, other.theta) and first.used == 72
