"""Results are ordinary objects: arithmetic, SciPy, pickles, tables."""
import csv
import pickle

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator, eigsh
from support.cases import close, convolutional, data_for

from hessian_nb.hessian import attribute, decompose, hessian


@pytest.fixture
def case():
    net = convolutional()
    return net, *data_for(net, 23, 4)


def test_blocks_are_views_and_the_matrix_is_an_array(case):
    H = hessian(*case)
    assert np.shares_memory(H['h.W', 'z'], H.dense()) and np.asarray(H) is H.dense()
    assert H['h', 'z'].shape == (30, 24) and H['h.W', 'z.b'].shape == (27, 4)
    assert np.array_equal(H['h', 'z'], H['z', 'h'].T) and (H - H).dense().any() == 0
    assert H.names == ['h', 'b', 'q', 'z'] and hessian(*case, untied=True).names == ['h', 'b', 'c', 'q', 'z']


def test_a_matrix_calculates_like_an_array(case):
    H = hessian(*case)
    A = H.dense()
    I = np.eye(len(H))
    for found, true in [(2*H, 2*A), (H*2, 2*A), (H/4, A/4), (-H, -A), (H + I, A + I), (I + H, A + I), (I - H, I - A),
                        (H - H/2, A/2), (H.T, A.T)]:
        assert type(found) is type(H) and np.array_equal(found.dense(), true)
    assert len(H) == len(A) and H.dtype == float and H.ndim == 2 and H.shape == A.shape
    v = np.random.default_rng(0).standard_normal(len(A))
    assert np.allclose(v @ H, v @ A) and np.allclose(aslinearoperator(H) @ v, A @ v)
    assert np.allclose(eigsh(H, k=1, which='LA')[0], np.linalg.eigvalsh(A)[-1])
    for factor in (A, v):
        with pytest.raises(TypeError, match='scale by a number'): H*factor


def test_results_pickle(case):
    net, theta, X, Y = case
    H, D, a = hessian(*case), decompose(*case), attribute(*case, np.ones(net.size))
    again = pickle.loads(pickle.dumps((H, D, a)))
    assert again[0].certify(quiet=True) < 1e-13 and dict(again[2]) == dict(a)
    assert close(again[1].total().dense(), H.dense())


def test_an_attribution_as_a_table(case, tmp_path):
    a = attribute(*case, np.random.default_rng(0).standard_normal(case[0].size))
    table = a.table()
    assert {len(column) for column in table.values()} == {len(a)} and np.isclose(sum(table['share']), 1)
    a.to_csv(tmp_path/'a.csv')
    with open(tmp_path/'a.csv', newline='') as file: rows = list(csv.DictReader(file))
    assert [(r['node'], r['kind']) for r in rows] == list(a) and [float(r['value']) for r in rows] == list(a.values())
    assert np.isclose(a.cancellation(), sum(map(abs, a.values()))/abs(sum(a.values()))) and 'cancel' in repr(a)
    assert '<table' in a._repr_html_()
    ax = a.plot()
    assert ax.get_title().startswith('vᵀHv')
    plt.close(ax.figure)


def test_sums_of_terms_that_are_there_push_nothing_again(case, monkeypatch):
    from hessian_nb import hessian as room
    D = decompose(*case)
    total, calls, curvature = D.total(), [], room.curvature
    monkeypatch.setattr(room, 'curvature', lambda *a, **k: calls.append(1) or curvature(*a, **k))
    parts = D.by_node(), D.by_kind()
    assert not calls and all(close(sum(M.dense() for M in part.values()), total.dense()) for part in parts)
