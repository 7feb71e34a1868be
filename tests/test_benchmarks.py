"""The benchmarks' contestants against their oracle, on every workload at a tiny size: a check of answers, not of time.
JAX always takes part; PyTorch and what is built on it where they are installed."""
import subprocess
import sys
from importlib.util import find_spec
from math import comb
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import floor, oracle, ours, plots, race, report, tuning, workloads
from benchmarks.growth import find_workload

PEERS = ['jax_peers', *['torch_peers']*(find_spec('torch') is not None)]


def distinct():
    "Every tiny problem once: several rows have the same."
    seen = {}
    for row in workloads.TABLE: seen.setdefault((row.tiny.func, str(row.tiny.args), str(row.tiny.keywords)), row)
    return seen.values()


@pytest.fixture
def quick_compiler():
    "JAX's compiler is most of what these tests would take."
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.parametrize('row', distinct(), ids=lambda row: row.name)
def test_answers(row, monkeypatch, quick_compiler):
    monkeypatch.setattr(tuning, 'BATCHES', (32,))
    problem = row.problem(tiny=True)
    reference = oracle.reference(problem)
    for module in [ours, *[pytest.importorskip(f'benchmarks.{peer}') for peer in PEERS]]:
        for name, make in module.CONTESTANTS[problem.quantity].items():
            if getattr(make, 'fits', lambda _: True)(problem):
                error = oracle.error(problem, reference, make(problem)())
                assert error < 1e-10, f'{name} is wrong by {error:.1e}'


def test_every_full_problem_has_the_size_that_its_row_says():
    p = {row.name: row.problem().p for row in workloads.TABLE}
    assert p['mlp-1k'] == 65*12 + 13*10 + 11*10
    assert p['cnn-8x8'] == 1360 and p['mlp-3k'] == 3122 and abs(p['mlp-7k'] - 7000) < 100
    assert abs(p['product-100k'] - 1e5) < 1e3


@pytest.mark.parametrize('quantity', ['hessian', 'gauss-newton', 'eigenvalues', 'product'])
def test_the_oracle_sees_one_wrong_entry(quantity):
    problem = workloads.mlp([3, 10], 5, quantity)
    reference, answer = oracle.reference(problem), next(iter(ours.CONTESTANTS[quantity].values()))(problem)()
    assert oracle.error(problem, reference, answer) < 1e-10
    answer.flat[2] += 1e-4
    assert oracle.error(problem, reference, answer) > oracle.TOLERANCE


def test_floor_by_hand():
    "Two dense layers are neighbours: one product between them, and a quarter of the work for each by itself."
    problem = workloads.mlp([5, 10], 7)
    pair = 5*10*65*6
    assert floor.multiply_adds(problem) == 7*(comb(6, 2)*comb(66, 2) + comb(11, 2)*comb(7, 2) + pair)
    three = floor.products(workloads.mlp([5, 4, 10], 7))
    assert three.count((5*10, 1, 65*5)) == 1 and three.count((10*65, 1, 5*5)) == 1    # M and E, not neighbours


def test_the_command(tmp_path):
    "The whole way: processes, rounds, files."
    run = [sys.executable, '-m', 'benchmarks', '--quick', '--only', 'mlp-1k:tiny', '--against', 'jax.hessian', 'floor']
    subprocess.run([*run, '--out', tmp_path], cwd=Path(race.__file__).parent.parent, check=True, capture_output=True)
    text = (tmp_path/'results.md').read_text(encoding='utf-8')
    assert 'mlp-1k:tiny' in text and 'jax.hessian' in text and (tmp_path/'results.json').exists()


def test_a_peer_that_fails_or_is_wrong_is_named_and_not_timed():
    row = {'name': 'r', 'quantity': 'hessian', 'p': 1, 'N': 1, 'target': '', 'contestants': {
        'hessian_nb': {'first': 1., 'seconds': race.spread([1., 2., 3.]), 'busy': race.spread([1.]), 'memory': 1e6},
        'jax.hessian': {'failed': 'no memory'}, 'jax columns': {'correct': False, 'error': .5}}}
    assert 'no memory' in report.details(row) and 'wrong' in report.details(row)
    assert report.best(row) == (None, None) and '2000' in report.summary([row])


def test_growth_is_drawn_for_who_ran():
    def row(size, **seconds):
        entries = {n: {'seconds': race.spread([s]), 'memory': 5e6*(n != 'floor')} for n, s in seconds.items()}
        return {'size': size, 'contestants': {**entries, 'jax.hessian': {'failed': 'no memory'}}}
    fig = plots.draw({'samples N': [row(1, hessian_nb=.1, floor=.05), row(2, hessian_nb=.2)]})
    time, memory = fig.axes
    assert [len(line.get_xdata()) for line in time.lines] == [2, 1]
    assert [len(line.get_xdata()) for line in memory.lines] == [2]     # none where a peak is not above what was held


def test_unknown_names_are_refused():
    with pytest.raises((KeyError, ValueError)): find_workload('nothing')
    assert np.isclose(find_workload('samples N: 64').problem().N, 64)
