"""Long work: BLAS threads, turns, interrupts, fingerprints, checkpoints and journals, also when they are killed."""
import importlib
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from hessian_nb import run
from hessian_nb.run import (AUTOGRAD, Checkpoint, Journal, Near, Progress, definition, fingerprint, in_order, is_traced,
                            one_thread, threads, write_whole)
from scipy.sparse.linalg import LinearOperator, eigsh

ROOT = Path(__file__).resolve().parent.parent


def python(script, *args, **env):
    "A Python process that runs a script; what it prints can be read line by line."
    return subprocess.Popen([sys.executable, '-u', '-c', script, *map(str, args)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT), **env})


def printed(script, *args, **env):
    "What a script prints, which must not fail and not complain."
    process = python(script, *args, **env)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    return out


def in_time(f, seconds=20):
    "f() in a thread of its own, which must end in time: what waits for ever fails instead of hanging."
    found = []
    def call():
        try: found.append(f())
        except BaseException as problem: found.append(problem)
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), 'a deadlock'
    return found[0]


@contextmanager
def one_warning(match):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield
    assert [w.category for w in caught] == [RuntimeWarning] and match in str(caught[0].message), caught


# --- threads of BLAS

class Library:
    "Stands for a BLAS library."
    def __init__(self, num_threads): self.num_threads = num_threads
    def set_num_threads(self, k): self.num_threads = k


@pytest.fixture
def blas(monkeypatch):
    "The numbers of threads of two libraries, which have eight and four."
    libraries = [Library(8), Library(4)]
    monkeypatch.setattr(run, '_blas_libraries', lambda modules: libraries)
    monkeypatch.setattr(run, '_BLAS_LIMITS', run._BlasLimits())
    return lambda: [library.num_threads for library in libraries]


def test_the_usual_threads_come_back(blas):
    with threads(3):
        assert blas() == [3, 3]
        with threads(6): assert blas() == [3, 3]
        with one_thread(): assert blas() == [1, 1]
        assert blas() == [3, 3]
    assert blas() == [8, 4]
    with threads(100): assert blas() == [8, 4]
    with threads(6): assert blas() == [6, 4]
    with pytest.raises(KeyboardInterrupt), one_thread(): raise KeyboardInterrupt
    assert blas() == [8, 4]


@pytest.mark.parametrize('order', [*itertools.permutations(range(3))])
def test_overlapping_calls(blas, order):
    "Three calls that begin one after the other and end in any order."
    limits = [1, 2, 5]
    calls = [threads(k) for k in limits]
    for call in calls: call.__enter__()
    left = [*limits]
    for i in order:
        assert blas() == [min(8, *left), min(4, *left)]
        calls[i].__exit__(None, None, None)
        left.remove(limits[i])
        if not left: break
    assert blas() == [8, 4]


def test_many_users_at_once(blas):
    def user(seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            k = int(rng.integers(1, 4))
            with threads(k): assert max(blas()) <= k
    errors = [in_time(lambda: in_order(user, range(8), [1]*8, 'users')) for _ in range(2)]
    assert errors == [[None]*8]*2 and blas() == [8, 4]


def test_an_interrupt_while_the_limit_is_set(blas, monkeypatch):
    def interrupted(library, k):
        if k == 1: raise KeyboardInterrupt
        library.num_threads = k
    monkeypatch.setattr(Library, 'set_num_threads', interrupted)
    with pytest.raises(KeyboardInterrupt), one_thread(): raise AssertionError('the limit was not set')
    with threads(2): assert blas() == [2, 2]
    assert blas() == [8, 4]


def test_nothing_is_set_where_nothing_is_to_do(blas, monkeypatch):
    with one_thread():
        monkeypatch.setattr(Library, 'set_num_threads', lambda *_: pytest.fail('set again'))
        with one_thread(), threads(7): pass
        monkeypatch.undo()


def test_libraries_are_looked_for_once(monkeypatch):
    found, controller = [], run.ThreadpoolController
    monkeypatch.setattr(run, 'ThreadpoolController', lambda: found.append(1) or controller())
    run._blas_libraries.cache_clear()
    for _ in range(5):
        with one_thread(): pass
    assert len(found) == 1


REAL = '''
import sys
import numpy as np
from threadpoolctl import threadpool_info
from hessian_nb.run import in_order, one_thread
def now(): return [library['num_threads'] for library in threadpool_info() if library['user_api'] == 'blas']
with one_thread(): assert set(now()) == {1}
before, few = now(), len(now())
import scipy.linalg
assert len(now()) >= few and set(now()) == {2}, now()
with one_thread(): assert set(now()) == {1}, 'a library that came later is not seen'
seen = in_order(lambda i: now(), range(2), [1, 1], 'pieces')
assert set(now()) == {2}
print(seen[0], len(now()))
'''


def test_the_real_libraries():
    out = printed(REAL, OPENBLAS_NUM_THREADS='2', OMP_NUM_THREADS='2', MKL_NUM_THREADS='2')
    assert out.startswith('[1' if run.CORES == 2 else '[')


@pytest.mark.parametrize('cores, pieces, each', [(8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 50, 1), (3, 2, 1), (2, 9, 1)])
def test_pieces_share_the_cores(blas, monkeypatch, cores, pieces, each):
    monkeypatch.setattr(run, 'CORES', cores)
    assert in_order(lambda i: blas()[0], range(pieces), [1]*pieces, 'pieces') == [each]*pieces
    assert blas() == [8, 4]
    with pytest.raises(ZeroDivisionError): in_order(lambda i: 1/0, range(pieces), [1]*pieces, 'pieces')
    assert blas() == [8, 4]


# --- pages

PAGES = '''
import resource, sys
import numpy as np
from hessian_nb.run import in_order
def fetched(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work(i): return [np.ones(2**17 + 1) for _ in range(12)] and None
if sys.argv[1] == 'with': in_order(work, [0], [1], 'first')
work(0)
before = fetched()
for i in range(50): work(i)
print(fetched() - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='about the C library of Linux')
def test_pages_stay_with_the_process():
    without, kept = [int(printed(PAGES, how)) for how in ('without', 'with')]
    assert kept < 1000 < 100_000 < without


# --- autograd, one at a time

def rule(traced): return SimpleNamespace(traced=traced)


@pytest.mark.parametrize('loss, inner, expected', [(False, False, False), (True, False, True), (False, True, True)])
def test_a_traced_loss_counts_as_a_traced_node_does(loss, inner, expected):
    nodes = {name: SimpleNamespace(rule=r) for name, r in zip('xha', (None, rule(False), rule(inner)))}
    assert is_traced(SimpleNamespace(nodes=nodes, loss_rule=rule(loss))) == expected
    assert is_traced(SimpleNamespace(nodes=nodes, loss_rule=None)) == inner


def test_traced_work_stays_in_the_callers_thread(monkeypatch):
    monkeypatch.setattr(run, 'CORES', 4)
    def look(i): return threading.get_ident(), AUTOGRAD._is_owned()
    for count in 1, 5:
        seen = in_order(look, range(count), [1]*count, 'pieces', traced=True)
        assert seen == [(threading.get_ident(), True)]*count
    free = in_order(look, range(5), [1]*5, 'pieces')
    assert not any(owned for _, owned in free) and threading.get_ident() not in {thread for thread, _ in free}
    assert not AUTOGRAD._is_owned()
    with pytest.raises(ZeroDivisionError): in_order(lambda i: 1/0, range(3), [1]*3, 'pieces', traced=True)
    assert in_time(lambda: AUTOGRAD.acquire(timeout=1) and AUTOGRAD.release()) is None


def test_nested_derivatives_of_several_users():
    "d/dx x·∂(xy²)/∂y = 4xy, by eight users at once; without the lock some of them get the number of another's trace."
    def nested(x): return x*grad(lambda y: x*y**2)(2.)
    def piece(i): return [float(grad(nested)(float(i + k))) for k in range(4)]
    found = {}
    def user(name): found[name] = in_order(piece, range(10), [1]*10, 'pieces', traced=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        users = [threading.Thread(target=user, args=[name]) for name in range(8)]
        for thread in users: thread.start()
        for thread in users: thread.join()
    finally: sys.setswitchinterval(interval)
    assert found == {name: [[8.*(i + k) for k in range(4)] for i in range(10)] for name in range(8)}


# --- in order

@pytest.mark.parametrize('cores', [1, 2, 5])
def test_results_are_in_the_order_of_the_items(monkeypatch, cores):
    monkeypatch.setattr(run, 'CORES', cores)
    def late(i):
        time.sleep(.002*(9 - i))
        return i*i
    assert in_order(late, range(10), range(10), 'squares') == [i*i for i in range(10)]
    assert in_order(late, [], [], 'nothing') == []
    assert in_order(late, iter([3, 4]), [1, 1], 'two') == [9, 16]
    assert in_order(lambda i: threading.get_ident(), [7], [1], 'one') == [threading.get_ident()]
    with pytest.raises(ValueError, match='argument 2 is shorter'): in_order(late, range(3), [1, 1], 'wrong sizes')


@pytest.mark.parametrize('cores', [1, 3])
def test_the_first_error_is_raised_and_no_more_begins(monkeypatch, cores):
    monkeypatch.setattr(run, 'CORES', cores)
    begun, ended = set(), set()
    def piece(i):
        begun.add(i)
        if i == 4: raise KeyError('the first')
        if i == 5: raise IndexError('a later one')
        time.sleep(.02)
        ended.add(i)
    with pytest.raises(KeyError, match='the first'): in_order(piece, range(300), [1]*300, 'pieces')
    assert begun - {4, 5} == ended and len(begun) < 30


INTERRUPTED = '''
import os, signal, time
from hessian_nb import run
signal.signal(signal.SIGINT, signal.default_int_handler)
begun, ended = [], []
def piece(i):
    begun.append(i)
    if i == 3: os.kill(os.getpid(), signal.SIGINT)
    time.sleep(.05)
    ended.append(i)
try: run.in_order(piece, range(300), [1]*300, 'pieces')
except KeyboardInterrupt: print(len(begun), sorted(begun) == sorted(ended) or run.CORES == 1)
'''


def test_ctrl_c():
    "A real signal, to a process of its own: what has begun ends, nothing else begins, the main thread is interrupted."
    env = {**os.environ, 'PYTHONPATH': str(Path(run.__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, '-c', INTERRUPTED], env=env, capture_output=True, text=True, timeout=60)
    begun, whole = done.stdout.split()
    assert int(begun) < 20 and whole == 'True'


def test_a_piece_may_have_pieces_and_users_may_meet(monkeypatch):
    monkeypatch.setattr(run, 'CORES', 3)
    def outer(i): return sum(in_order(lambda j: 10*i + j, range(4), [1]*4, 'inner'))
    def user(_): return in_order(outer, range(5), [1]*5, 'outer')
    expected = [40*i + 6 for i in range(5)]
    assert in_time(lambda: in_order(user, range(4), [1]*4, 'users')) == [expected]*4


NO_THREADS = '''
import threading
def refuse(thread): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
from hessian_nb.run import CORES, in_order
S = []
def piece(i, turn):
    with turn.adding_to('S'): S.append(i)
    return i*i
print(CORES, in_order(piece, range(4), [1]*4, 'squares', in_turn=True), S)
'''


def test_where_no_thread_can_be_started(): assert printed(NO_THREADS) == '1 [0, 1, 4, 9] [0, 1, 2, 3]\n'


def test_a_bar_for_patient_work_only(monkeypatch):
    asked = []
    class Bar:
        def __init__(self, **how): asked.append(how)
        def update(self, n): asked.append(n)
        def close(self): asked.append('closed')
    monkeypatch.setattr(run, 'tqdm', Bar)
    now = [100.]
    monkeypatch.setattr(run.time, 'monotonic', lambda: now[0])
    assert in_order(lambda i: i, range(3), [5, 6, 7], 'quick') == [0, 1, 2] and asked == []
    monkeypatch.setattr(run, 'CORES', 1)
    def slow(i): now[0] += 1.5
    in_order(slow, range(3), [5, 6, 7], 'slow', unit=' rows')
    assert asked == [{'desc': 'slow', 'total': 18, 'unit': ' rows', 'leave': False, 'initial': 5}, 6, 7, 'closed']
    asked.clear()
    progress = Progress('resumed', 10, done=4)
    now[0] += 3
    progress.update(2)
    assert asked[0]['initial'] == 4 and asked[1:] == [2]


# --- turns

def race(cores, in_turn, seed, monkeypatch):
    "Bits of the sum of 40 numbers, added by pieces that take randomly long."
    monkeypatch.setattr(run, 'CORES', cores)
    rng = np.random.default_rng(seed)
    numbers, delays = np.random.default_rng(0).standard_normal((40, 7)), rng.uniform(0, .002, (40, 2))
    S, lock = {'a': np.zeros(7), 'b': np.zeros(7)}, threading.Lock()
    def piece(i, turn=None):
        for name, factor, delay in zip('ab', (1, np.pi), delays[i]):
            time.sleep(delay)
            with turn.adding_to(name) if in_turn else lock: S[name] += factor*numbers[i]
    in_time(lambda: in_order(piece, range(40), [1]*40, 'pieces', in_turn=in_turn))
    return b''.join(s.tobytes() for s in S.values())


def test_sums_in_turn_are_those_of_a_loop(monkeypatch):
    numbers = np.random.default_rng(0).standard_normal((40, 7))
    a, b = np.zeros(7), np.zeros(7)
    for x in numbers:
        a += x
        b += np.pi*x
    ordered = {race(cores, True, seed, monkeypatch) for cores in (1, 2, 3, 8) for seed in range(3)}
    assert ordered == {a.tobytes() + b.tobytes()}
    assert len({race(8, False, seed, monkeypatch) for seed in range(5)}) > 1      # the test can see a difference


def test_never_two_in_one_sum_but_two_in_two(monkeypatch):
    "Piece 1 adds to A while piece 0 is busy with B."
    monkeypatch.setattr(run, 'CORES', 3)
    inside, met = {'A': 0, 'B': 0}, threading.Event()
    def piece(i, turn):
        for name in 'AB':
            with turn.adding_to(name):
                inside[name] += 1
                assert inside[name] == 1
                if (i, name) == (1, 'A'): met.set()
                if (i, name) == (0, 'B'): assert met.wait(10)
                time.sleep(.002)
                inside[name] -= 1
    assert in_time(lambda: in_order(piece, range(12), [1]*12, 'pieces', in_turn=True)) == [None]*12


def test_pieces_that_add_nothing_do_not_open_the_order(monkeypatch):
    "Piece 1 is over at once, and piece 2 still waits for piece 0."
    monkeypatch.setattr(run, 'CORES', 3)
    order, one_is_over = [], threading.Event()
    def piece(i, turn):
        if i == 0:
            assert one_is_over.wait(10)
            time.sleep(.05)
        if i == 1: one_is_over.set()
        else:
            with turn.adding_to('S'): order.append(i)
    in_time(lambda: in_order(piece, range(3), [1]*3, 'pieces', in_turn=True))
    assert order == [0, 2]


@pytest.mark.parametrize('seed', range(6))
def test_each_sum_has_its_own_order(monkeypatch, seed):
    "Pieces add to some of five sums, in any order of the sums, and never two to one."
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(run, 'CORES', int(rng.integers(2, 9)))
    plans = [rng.permutation(5)[:rng.integers(0, 6)] for _ in range(40)]
    delays, order = rng.exponential(.001, (40, 5)), {name: [] for name in range(5)}
    inside = dict.fromkeys(range(5), 0)
    def piece(i, turn):
        for name, delay in zip(plans[i], delays[i]):
            time.sleep(delay)
            with turn.adding_to(name):
                inside[name] += 1
                assert inside[name] == 1
                order[name].append(i)
                time.sleep(delay/10)
                inside[name] -= 1
    assert in_time(lambda: in_order(piece, range(40), [1]*40, 'pieces', in_turn=True)) == [None]*40
    assert order == {name: [i for i in range(40) if name in plans[i]] for name in range(5)}


@pytest.mark.parametrize('cores', [1, 2, 3, 8])
@pytest.mark.parametrize('where', ['before', 'inside', 'after'])
def test_an_error_releases_those_that_wait(monkeypatch, cores, where):
    monkeypatch.setattr(run, 'CORES', cores)
    added = []
    def piece(i, turn):
        if (i, where) == (3, 'before'):
            time.sleep(.05)              # the others are waiting by now
            raise OverflowError('piece 3')
        with turn.adding_to('S'):
            if (i, where) == (3, 'inside'): raise OverflowError('piece 3')
            added.append(i)
        if (i, where) == (3, 'after'): raise OverflowError('piece 3')
        with turn.adding_to('T'): pass
    problem = in_time(lambda: in_order(piece, range(40), [1]*40, 'pieces', in_turn=True))
    assert isinstance(problem, OverflowError) and added == sorted(added) and len(added) < 40
    if where != 'after': assert added == [0, 1, 2]


def test_a_second_addition_is_refused():
    def piece(i, turn):
        with turn.adding_to('S'): pass
        with turn.adding_to('S'): pass
    with pytest.raises(RuntimeError, match="has added to 'S' before; add its own parts up first"):
        in_order(piece, range(3), [1]*3, 'pieces', in_turn=True)


# --- whole files

def test_the_name_stands_for_the_old_content_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    file, steps = tmp_path/'new'/'folder'/'file', []
    write_whole(file, lambda f: f.write(b'old'))
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda *a: steps.append(('sync', file.read_bytes())) or sync(*a))
    monkeypatch.setattr(os, 'replace', lambda *a: steps.append(('replace', file.read_bytes())) or replace(*a))
    def write(f):
        f.write(b'half')
        f.flush()
        steps.append(('write', file.read_bytes()))
        f.write(b' and half')
    write_whole(file, write)
    assert steps == [('write', b'old'), ('sync', b'old'), ('replace', b'old')]
    assert file.read_bytes() == b'half and half' and os.listdir(file.parent) == ['file']


@pytest.mark.parametrize('problem', [KeyboardInterrupt, OSError, ValueError])
def test_nothing_half_is_left(tmp_path, problem):
    (tmp_path/'file').write_text('old')
    def write(f):
        f.write(b'x'*100_000)
        raise problem
    with pytest.raises(problem): write_whole(tmp_path/'file', write)
    assert os.listdir(tmp_path) == ['file'] and (tmp_path/'file').read_text() == 'old'


def test_links_are_not_followed(tmp_path, monkeypatch):
    "Neither under the name itself nor, if somebody could guess it, under that of the file beside."
    victim = tmp_path/'victim'
    victim.write_text('a year of work')
    (tmp_path/'file').symlink_to(victim)
    write_whole(tmp_path/'file', lambda f: f.write(b'new'))
    assert not (tmp_path/'file').is_symlink() and (tmp_path/'file').read_bytes() == b'new'
    monkeypatch.setattr(run, 'uuid4', lambda: SimpleNamespace(hex='guessed'))
    (tmp_path/'.hessian_nb-guessed.part').symlink_to(victim)
    with pytest.raises(FileExistsError): write_whole(tmp_path/'file', lambda f: f.write(b'newer'))
    assert victim.read_text() == 'a year of work' and (tmp_path/'file').read_bytes() == b'new'


# --- fingerprints

def define(source, **given):
    "What the last definition in a source makes, as in a notebook's cell."
    names = {'np': np, 'anp': anp, '__name__': '__main__', **given}
    exec(source, names)
    return names['f']


def closed(held):
    def f(u): return u*held
    return f


class Slots:
    __slots__ = 'by', 'other'
    def __init__(self, by): self.by = by


CALLABLE = '''
class F:
    def __init__(self, by): self.by = by
    def __call__(self, u): return self.by{0}u
    def method(self, u): return self.by{0}u
    @staticmethod
    def static(u): return 2{0}u
    @classmethod
    def of_class(cls, u): return 2{0}u
    @property
    def twice(self): return 2{0}self.by
class Below(F): pass
class Reduced(F):
    def __reduce__(self): return int, ()
f = {1}
'''

HELPED = """
class F:
    @{0}
    def part(self): return {1}
    def __call__(self, u): return u*self.part
    def __reduce__(self): return F, ()
f = F()
"""

WRAPPED = """
import statistics
from functools import wraps
k = {1}
@wraps(statistics.mean)
def f(u): return k*u + {0}
"""

CHANGES = {     # what changes in a function between two runs: before, after
    'code': ('def f(u): return u + 2', 'def f(u): return u - 2'),
    'name': ('def f(u): return anp.sin(u)', 'def f(u): return anp.tanh(u)'),
    'imported name': ('from autograd.numpy import sin as g\ndef f(u): return g(u)',
                      'from autograd.numpy import tanh as g\ndef f(u): return g(u)'),
    'constant': ('def f(u): return u**2', 'def f(u): return u**3'),
    'constant of an inner function': ('def f(u): return (lambda v: 2*v)(u)', 'def f(u): return (lambda v: 3*v)(u)'),
    'global': ('k = 2.\ndef f(u): return k*u', 'k = 3.\ndef f(u): return k*u'),
    'global of an inner function': ('k = 2.\ndef f(u): return (lambda: k)()', 'k = 3.\ndef f(u): return (lambda: k)()'),
    'global function': ('def g(u): return 2*u\ndef f(u): return g(u)', 'def g(u): return 3*u\ndef f(u): return g(u)'),
    'global array': ('k = np.ones(9)\ndef f(u): return k*u', 'k = np.ones(9); k[4] = 2\ndef f(u): return k*u'),
    'default': ('def f(u, k=2): return k*u', 'def f(u, k=3): return k*u'),
    'keyword-only default': ('def f(u, *, k=2): return k*u', 'def f(u, *, k=3): return k*u'),
    'order of arguments': ('def f(u, k): return u**k', 'def f(k, u): return u**k'.replace('u**k', 'k**u')),
    'attribute': ('def f(u): return f.k\nf.k = 2', 'def f(u): return f.k\nf.k = 3'),
    'handler': ('def f(u):\n try: return u\n except ValueError: return 1',
                'def f(u):\n try: return u\n except TypeError: return 1'),
    'set': ('def f(u): return u in {"a", "b"}', 'def f(u): return u in {"a", "c"}'),
    '__call__': (CALLABLE.format('*', 'F(2)'), CALLABLE.format('+', 'F(2)')),
    '__call__ that pickle does not know of': (CALLABLE.format('*', 'Reduced(2)'), CALLABLE.format('+', 'Reduced(2)')),
    '__call__ of the class above': (CALLABLE.format('*', 'Below(2)'), CALLABLE.format('+', 'Below(2)')),
    'attribute of an object': (CALLABLE.format('*', 'F(2)'), CALLABLE.format('*', 'F(3)')),
    '__self__ of a method': (CALLABLE.format('*', 'F(2).method'), CALLABLE.format('*', 'F(3).method')),
    'code of a method': (CALLABLE.format('*', 'F(2).method'), CALLABLE.format('+', 'F(2).method')),
    'static method': (CALLABLE.format('*', 'F.static'), CALLABLE.format('+', 'F.static')),
    'class method': (CALLABLE.format('*', 'F.of_class'), CALLABLE.format('+', 'F.of_class')),
    'partial': ('from functools import partial\nf = partial(pow, exp=2)',
                'from functools import partial\nf = partial(pow, exp=3)'),
    'cached': ('from functools import lru_cache\n@lru_cache\ndef f(u): return 2*u',
               'from functools import lru_cache\n@lru_cache\ndef f(u): return 3*u'),
    'wrapped': ('f = np.vectorize(lambda u: 2*u)', 'f = np.vectorize(lambda u: 3*u)'),
    **{f'{kind} of its class': (HELPED.format(kind, 2), HELPED.format(kind, 3))
       for kind in ('property', 'staticmethod', 'classmethod')},
    'code under the name of a library': (WRAPPED.format(2, 1), WRAPPED.format(3, 1)),
    'global under the name of a library': (WRAPPED.format(2, 1), WRAPPED.format(2, 2)),
    'closure': (lambda: closed(2.), lambda: closed(3.)),
    'function in a closure': (lambda: closed(anp.sin), lambda: closed(anp.tanh)),
    'slots': (lambda: Slots(2), lambda: Slots(3)),
    'primitive': (lambda: anp.sin, lambda: anp.tanh)}


def make(definition): return define(definition) if isinstance(definition, str) else definition()


@pytest.mark.parametrize('change', CHANGES)
def test_each_change_of_a_function_shows(change):
    before, after = CHANGES[change]
    assert fingerprint(make(before)) == fingerprint(make(before)) != fingerprint(make(after))


def test_all_these_functions_are_different():
    definitions = {definition for pair in CHANGES.values() for definition in pair}
    assert len({fingerprint(make(definition)) for definition in definitions}) == len(definitions) > 50


def test_what_does_not_count():
    same = ['def f(u): return 2*u', '\n\n# another line\ndef f(u):\n    return 2*u', 'unused = 7\ndef f(u): return 2*u']
    assert len({fingerprint(define(source)) for source in same}) == 1
    unrelated = [define('def f(u): return u.T', T=T) for T in (1, 2)]      # an attribute is no global
    assert fingerprint({'a': 1, 'b': [2]}) == fingerprint({'b': [2], 'a': 1})
    assert len({fingerprint(f) for f in unrelated}) == 1


def test_a_module_of_the_users(tmp_path, monkeypatch):
    "A function that stands in the user's own module is opened, also when it is called through the module."
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    source = 'scale = {}\ndef gate(u): return scale*u{}\n'
    marks = []
    for scale, more in (2, ''), (3, ''), (2, ' + 1'), (2, ''):
        (tmp_path/'my_layers.py').write_text(source.format(scale, more))
        sys.modules.pop('my_layers', None)
        importlib.invalidate_caches()
        f = define('import my_layers\ndef f(u): return my_layers.gate(u)')
        marks.append(fingerprint(f))
    sys.modules.pop('my_layers', None)
    assert marks[0] == marks[3] and len(set(marks)) == 3


HASHES = '''
import sys
sys.path.insert(0, sys.argv[1])
from test_run import CHANGES, fingerprint, hostile, make
for pair in CHANGES.values(): print(*map(fingerprint, map(make, pair)))
for thing in hostile().values(): print(fingerprint(thing))
'''


def test_the_same_in_every_process():
    here = Path(__file__).parent
    first, second = [printed(HASHES, here, PYTHONHASHSEED=seed, PYTHONWARNINGS='ignore') for seed in ('1', '2')]
    assert first == second and first.count('\n') > 40


class Touchy:
    def __init__(self, by): self.by = by
    def __getattr__(self, name): raise RuntimeError(f'do not ask for {name}')


class Prickly:
    def __init__(self): object.__setattr__(self, 'by', 3)
    def __getattribute__(self, name): raise RuntimeError('do not ask')


class Linked:
    def __init__(self, next): self.next = next


class NoPickle:
    def __init__(self, by): self.by = by
    def __reduce_ex__(self, protocol): raise TypeError('not to be pickled')


def unset():
    def f(): return later
    return f
    later = 1


def hostile():
    "Things at which a walk may fail."
    loop, held, nest, link, objects = [1], {}, [], None, np.empty(2, object)
    loop.append(loop)
    held['self'] = held
    objects[:] = [objects, 1]
    for _ in range(600): nest = [nest]
    for _ in range(400): link = Linked(link)
    return {'list in itself': loop, 'dict in itself': held, 'array in itself': objects, 'nested 600 deep': nest,
            '400 linked objects': link, 'unset variable': unset(), '__getattr__ raises': Touchy(2),
            '__getattribute__ raises': Prickly(), 'no pickle': NoPickle(2), 'lock': threading.Lock(), 'module': sys,
            'generator': (i for i in 'ab'), 'enormous': 10**5000, 'surrogate': '\udcff', 'nan': float('nan'),
            'sets': {frozenset('ab'), frozenset('cd')}, 'mixed keys': {1: 2, 'a': 3},
            'dates': np.array(['2026'], 'M8[Y]'), 'records': np.zeros(2, [('a', 'f8'), ('b', 'i4')]),
            'no items': np.zeros((0, 3)), 'no size': np.zeros(3, 'U0'),
            'generators': np.random.default_rng(3), 'class': Linked, 'numpy number': np.float32(.1), 'ufunc': np.add}


@pytest.mark.parametrize('what', hostile())
def test_nothing_fails(what):
    assert fingerprint(hostile()[what]) == fingerprint(hostile()[what])


def test_hostile_things_are_told_apart():
    assert len({fingerprint(thing) for thing in hostile().values()}) == len(hostile())
    for kind in Touchy, NoPickle, Slots, Linked: assert fingerprint(kind(2)) != fingerprint(kind(3))


def test_arrays_of_all_layouts():
    X = np.arange(24.).reshape(2, 3, 4)
    assert fingerprint(X) == fingerprint(np.asfortranarray(X)) == fingerprint(X.copy()) == fingerprint(X[::1])
    different = [X, X[::-1], X.reshape(3, 2, 4), X.astype('f4'), X.view('i8'), X + 2**-50, X.tolist(), -X]
    assert len({fingerprint(x) for x in different}) == len(different)


# --- the table of checkpoints

def network(slope=.1, factor=.5, units=4, parent='a', shared='b', output='z', function='def f(u): return anp.sin(u)',
            loss='SquaredError', kind='Leaky'):
    "What `definition` asks of a network, and nothing else."
    def rule(kind, **settings):
        made = type(kind, (), {})()
        vars(made).update(settings)
        return made
    function = make(function)
    nodes = [('x', None, (), None, (3,)), ('h', rule('Dense', units=units), ('x',), 'h', (units,)),
             ('a', rule(kind, slope=slope), ('h',), None, (4,)), ('b', rule('Dense', units=4), (parent,), shared, (4,)),
             ('s', rule('Custom', function=function), ('b',), None, (4,)),
             ('z', rule('Dense', units=2), ('s',), 'z', (2,))]
    named = {name: SimpleNamespace(name=name, rule=r, parents=p, theta=t, shape=s) for name, r, p, t, s in nodes}
    parameters = dict.fromkeys(t for _, _, _, t, _ in nodes if t)
    return SimpleNamespace(nodes=named, parameters=parameters, output_node=output, loss_rule=rule(loss, factor=factor))


def belongs(X=0., Y=0., theta=0., untied=False, reduction='mean', chunk=50, **net):
    rng = np.random.default_rng(0)
    return lambda: {'X': {'x': rng.standard_normal((4, 3)) + X}, 'Y': np.arange(4.) + Y, 'θ': np.ones(7) + theta,
                    'untied': untied, 'reduction': reduction, 'chunk': chunk, **definition(network(**net))}


REFUSED = {     # what differs -> the parts that the refusal must name, all of them
    'X': ({'X': 1e-15}, 'X'), 'Y': ({'Y': 1}, 'Y'), 'θ': ({'theta': 1e-9}, 'θ'), 'untied': ({'untied': True}, 'untied'),
    'reduction': ({'reduction': 'sum'}, 'reduction'), 'chunk': ({'chunk': 51}, 'chunk'),
    'wiring': ({'parent': 'h'}, 'the wiring'), 'output': ({'output': 's'}, 'the wiring'),
    'sharing': ({'shared': 'h'}, 'the sharing and the order of the parameters'),
    'setting': ({'slope': .2}, "the slope of 'a'"), 'loss setting': ({'factor': 1.}, 'the factor of the loss'),
    'units': ({'units': 5}, "the shapes and the units of 'h'"),
    'kind of loss': ({'loss': 'Huber'}, 'the rule of the loss'),
    'kind of rule': ({'kind': 'Hard'}, "the rule of 'a'"), 'two': ({'X': 1, 'slope': 1}, "X and the slope of 'a'"),
    **{f'function: {name}': ({'function': after}, "the function of 's'", before)
       for name, (before, after) in CHANGES.items()}}


@pytest.mark.parametrize('change', REFUSED)
def test_a_checkpoint_is_taken_by_its_own_computation_only(tmp_path, change):
    changed, named, *before = REFUSED[change]
    mine = {'function': before[0]} if before else {}
    path, sums = tmp_path/'f.npz', {'done': 7, '[[0, 2], "own"]': np.arange(6.).reshape(2, 3)}
    Checkpoint(path, 'the Hessian', belongs(**mine)).save_now(**sums)
    found = Checkpoint(path, 'the Hessian', belongs(**mine)).load()
    assert found.keys() == sums.keys() and all(np.array_equal(found[k], sums[k]) for k in sums)
    content = path.read_bytes()
    with pytest.raises(ValueError) as refusal: Checkpoint(path, 'the Hessian', belongs(**{**mine, **changed})).load()
    assert str(refusal.value) == (f"the checkpoint '{path}' belongs to another computation, which differs in {named}; "
                                  'give another file name, or delete it to start anew')
    assert path.read_bytes() == content


def test_parts_that_only_one_of_them_has(tmp_path):
    path = tmp_path/'f.npz'
    Checkpoint(path, 'the trace', {'a': 1, 'b': 2}).save_now(done=1)
    for parts, named in ({'a': 1}, 'b'), ({'a': 1, 'b': 2, 'c': 3}, 'c'), ({'c': 1}, 'c, a and b'):
        with pytest.raises(ValueError, match=f'differs in {named};'): Checkpoint(path, 'the trace', parts).load()
    with pytest.raises(ValueError, match='another computation, of the trace and not of the diagonal;'):
        Checkpoint(path, 'the diagonal', {'a': 1, 'b': 2}).load()
    many = {f'p{i}': i for i in range(20)}
    with pytest.raises(ValueError, match='differs in p0, p1, p2, p3, p4, p5 and 16 more parts;'):
        Checkpoint(path, 'the trace', many).load()


def test_hostile_networks_have_checkpoints(tmp_path):
    for i, thing in enumerate(hostile().values()):
        net = network()
        net.nodes['s'].rule.function = thing
        Checkpoint(tmp_path/f'{i}', 'the Hessian', lambda net=net: definition(net)).save_now(done=i)
        assert Checkpoint(tmp_path/f'{i}', 'the Hessian', definition(net)).load() == {'done': i}


def test_without_a_path_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(run, 'fingerprint', lambda *_: pytest.fail('a fingerprint was taken'))
    file = Checkpoint(None, 'the Hessian', lambda: pytest.fail('the parts were made'))
    assert file.load() == {}
    for save in file.save, file.save_now: save(S=np.ones(3))
    file.remove()
    Checkpoint(None, 'the Hessian', {'X': Prickly()})
    op = Journal().watch(np.diag([1., 2.]), lambda: pytest.fail('the parts were made'))
    assert np.array_equal(op @ np.ones(2), [1., 2.])


def test_what_was_there_at_the_beginning_counts(tmp_path):
    "A state that changes in place, such as θ, does not change what the file belongs to."
    theta = np.zeros(3)
    file = Checkpoint(tmp_path/'f', 'the training', {'θ': theta})
    theta += 1
    file.save_now(step=1)
    assert Checkpoint(tmp_path/'f', 'the training', {'θ': np.zeros(3)}).load() == {'step': 1}


def test_numbers_that_are_near(tmp_path):
    path, probes = tmp_path/'f', np.array([1., -2e9, 3e-9])
    Checkpoint(path, 'the trace', {'operator': Near(probes)}).save_now(done=3)
    def load(part): return Checkpoint(path, 'the trace', {'operator': part}).load()
    for near in Near(probes), Near(probes*(1 + 5e-10)), Near(probes*(1 + 1e-3), rtol=1e-2):
        assert load(near) == {'done': 3}
    others = [Near(probes*(1 + 2e-9)), Near(probes[:2]), Near(np.append(probes, 0.)), Near(probes + [0, 0, 1e-15]),
              probes]
    for other in others:
        with pytest.raises(ValueError, match='differs in operator;'): load(other)
    Checkpoint(path, 'the trace', {'operator': 1}).save_now(done=3)
    with pytest.raises(ValueError, match='differs in operator;'): load(Near(probes))


# --- files that are none, or damaged

def small(path): return Checkpoint(path, 'the Hessian', {'X': np.arange(3.)})


FOREIGN, CHANGED = 'is no checkpoint of hessian_nb; give another file name', 'is not as it was written'
OTHERS = {
    'text': (lambda f: f.write(b'a year of work'), FOREIGN), 'pickle': (lambda f: f.write(b'\x80\x04N.'), FOREIGN),
    'two bytes': (lambda f: f.write(b'PK'), FOREIGN), 'npy': (lambda f: np.save(f, np.ones(3)), FOREIGN),
    'npz': (lambda f: np.savez(f, mark='of an older version'), FOREIGN),
    'bomb': (lambda f: np.savez_compressed(f, S=np.zeros(10**6)), CHANGED + ' (it would unpack to more'),
    'objects': (lambda f: np.savez(f, S=np.array([{}], object), **{run._HEADER: '{}'}), CHANGED + ' (Object arrays'),
    'later': (lambda f: np.savez(f, **{run._HEADER: json.dumps({'format': 2})}), 'was written by another version')}


@pytest.mark.parametrize('other', OTHERS)
def test_files_of_something_else(tmp_path, other):
    path, (write, says) = tmp_path/'f', OTHERS[other]
    with open(path, 'wb') as file: write(file)
    content = path.read_bytes()
    with pytest.raises(ValueError) as refusal: small(path).load()
    message = str(refusal.value)
    assert f"'{path}' {says}" in message and message.count('give another file name') == 1 and '\n' not in message
    assert ('delete' in message) == (' is no ' not in message)        # never advise to delete what is not ours
    assert path.read_bytes() == content


def test_every_kind_of_damage(tmp_path):
    "Whatever byte is changed or wherever the file is cut: it is refused in one sentence, or loads as it was."
    path = tmp_path/'f'
    small(path).save_now(S=np.arange(5.), done=3)
    whole, cut = path.read_bytes(), 0
    for i in range(1, len(whole), 3):
        path.write_bytes(whole[:i])
        with pytest.raises(ValueError, match='give another file name'): small(path).load()
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x11]) + whole[i + 1:])
        try: found = small(path).load()
        except ValueError as problem: cut += 'give another file name' in str(problem)
        else: assert found.keys() == {'S', 'done'} and np.array_equal(found['S'], np.arange(5.)) and found['done'] == 3
    assert cut > len(whole)/3/2


def test_an_empty_file_is_a_beginning(tmp_path):
    (tmp_path/'f').touch()
    assert small(tmp_path/'f').load() == {} == small(tmp_path/'none').load()
    small(tmp_path/'f').save_now(done=1)
    assert small(tmp_path/'f').load() == {'done': 1}


def test_what_is_no_file_keeps_its_own_message(tmp_path):
    with pytest.raises(IsADirectoryError): small(tmp_path).load()


def test_objects_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="'S' holds Python objects; a checkpoint keeps arrays of numbers and texts"):
        small(tmp_path/'f').save_now(done=1, S=[{}])
    assert os.listdir(tmp_path) == []


# --- saving

def test_how_often_is_saved(tmp_path, monkeypatch):
    now, cost = [50.], [0.]
    monkeypatch.setattr(run.time, 'monotonic', lambda: now[0])
    def write(path, write):
        saved.append(now[0])
        now[0] += cost[0]
    saved = []
    monkeypatch.setattr(run, 'write_whole', write)
    file = small(tmp_path/'f')
    def until(end):
        while now[0] < end:
            file.save(done=1)
            now[0] += .5
    until(60)
    assert saved == [53., 56., 59.]
    cost[0] = 1.
    until(63)
    saved.clear()
    until(93)
    assert saved == [72., 82., 92.]     # nine seconds after the end of a save that took one
    file.save_now(done=1)
    assert len(saved) == 4


def test_removing(tmp_path, monkeypatch):
    file = small(tmp_path/'f')
    file.remove()
    file.save_now(done=1)
    file.remove()
    assert os.listdir(tmp_path) == []
    file.save_now(done=1)
    def denied(*_, **__): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'unlink', denied)
    with one_warning('cannot be removed ([Errno 13] Permission denied); the work goes on without it'): file.remove()


@contextmanager
def unwritable_folder():
    "A folder that this process may read but not write, also where the tests run as root."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, 'folder')
        folder.mkdir()
        small(folder/'old').save_now(done=1)
        os.chmod(name, 0o755)
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0: os.seteuid(65534)
        try: yield folder
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


@pytest.mark.skipif(not hasattr(os, 'seteuid'), reason='no users of this kind here')
def test_a_folder_that_cannot_be_written():
    with unwritable_folder() as folder:
        for name in 'old', 'new':
            file = small(folder/name)
            with one_warning(f"the checkpoint '{folder/name}' cannot be written ([Errno 13] Permission denied"):
                for done in range(3): file.save_now(done=done)
        with one_warning('cannot be removed'): small(folder/'old').remove()
        with one_warning('cannot be written'): assert largest(OPERATOR, folder/'journal') == largest(OPERATOR)
        assert small(folder/'old').load() == {'done': 1}
        assert os.listdir(folder) == ['old']


LIMITED = '''
import os, resource, sys, warnings
import numpy as np
from hessian_nb.run import Checkpoint, Journal
folder = sys.argv[1]
file = Checkpoint(folder + '/f', 'sums', {})
file.save_now(S=np.arange(1000.))
journal = Journal(folder + '/j').watch(np.diag(np.arange(1000.)), {})
journal @ np.ones(1000)
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    limit(20_000)
    for i in range(3):
        file.save_now(S=np.arange(10_000.))
        products = [journal @ v for v in np.eye(1000)[:5]]
    assert np.array_equal(products, np.diag(np.arange(1000.))[:5])
    limit(resource.RLIM_INFINITY)
print(*sorted(str(w.message).replace(folder, '…') for w in caught), sep='\\n')
print(sorted(os.listdir(folder)), np.load(folder + '/f')['S'].size, os.path.getsize(folder + '/j') <= 20_000)
products = [journal @ v for v in np.eye(1000)[:5]]
again = Journal(folder + '/j')
print(len(again._places))
'''


def test_a_disk_that_is_full(tmp_path):
    "Every write beyond 20 kB fails, in the middle; then there is room again."
    assert printed(LIMITED, tmp_path) == (
        "the checkpoint '…/f' cannot be written ([Errno 27] File too large); the work goes on without it\n"
        "the journal of products '…/j' cannot be written ([Errno 27] File too large); the work goes on without it\n"
        "['f', 'j'] 1000 True\n6\n")


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 1 MB."
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', tmp_path], capture_output=True).returncode:
        pytest.skip('no disk can be mounted here; the limit of file sizes stands for a full one')
    yield tmp_path
    subprocess.run(['umount', tmp_path], check=True)


def test_a_small_disk(small_disk):
    file = small(small_disk/'f')
    file.save_now(S=np.arange(10_000.))
    with one_warning('cannot be written ([Errno 28] No space left on device); the work goes on without it'):
        for _ in range(3): file.save_now(S=np.arange(200_000.))
    assert file.load()['S'].size == 10_000 and os.listdir(small_disk) == ['f']
    (small_disk/'filler').write_bytes(b'x'*os.statvfs(small_disk).f_bavail*os.statvfs(small_disk).f_bsize)
    with one_warning('No space left on device'): assert largest(OPERATOR, small_disk/'journal') == largest(OPERATOR)
    (small_disk/'filler').unlink()
    assert largest(OPERATOR, small_disk/'journal') == largest(OPERATOR)
    file.save_now(S=np.arange(5.))
    assert file.load()['S'].size == 5


# --- stopped for real

LOOP = '''
import signal, sys, time
import numpy as np
from hessian_nb.run import Checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)    # which a job in the background may ignore

def total(path, patient=False, steps=60):
    "Σ i·(1, …, 1)/3, saved after each number."
    file = Checkpoint(path, 'the total', {'steps': steps})
    state = file.load()
    S, done = state.get('S', np.zeros(200_000)), int(state.get('done', 0))
    first = done
    for i in range(done, steps):
        S = S + i/3
        file.save_now(S=S, done=i + 1)
        if not patient: print(i + 1, flush=True)
    file.remove()
    return first, S
'''


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize('seed', range(3))
def test_stopped_while_saving(tmp_path, how, seed):
    "At a random moment, mostly in the middle of a write: the file is whole, and only the rest is computed."
    names = {}
    exec(LOOP.replace('signal.signal', '#'), names)
    path = tmp_path/'f.npz'
    process = python(LOOP + 'total(sys.argv[1])', path)
    for _ in range(3 + seed): process.stdout.readline()
    time.sleep(np.random.default_rng(seed).uniform(0, .01))
    process.send_signal(how)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    left = [name for name in os.listdir(tmp_path) if name != 'f.npz']
    if how == signal.SIGINT: assert left == []
    assert all(name.startswith('.hessian_nb-') for name in left) and len(left) <= 1
    first, S = names['total'](path, patient=True)
    said = [3 + seed, *map(int, out.split())][-1]
    assert said <= first <= said + 1 < 60
    expected = np.zeros(200_000)
    for i in range(60): expected = expected + i/3
    assert np.array_equal(S, expected) and not path.exists()


def test_three_processes_with_one_file(tmp_path):
    "Each gets its result; whatever is in the file at any moment is whole."
    script = LOOP + 'first, S = total(sys.argv[1], patient=True); print(S[0].hex())'
    processes = [python(script, tmp_path/'f.npz') for _ in range(3)]
    while any(process.poll() is None for process in processes):
        file = Checkpoint(tmp_path/'f.npz', 'the total', {'steps': 60})
        state = file.load()
        if state: assert state['S'].min() == state['S'].max() and 1 <= state['done'] <= 60
        time.sleep(.01)
    expected = 0.
    for i in range(60): expected += i/3
    for process in processes:
        out, err = process.communicate()
        assert (process.returncode, out, err) == (0, expected.hex() + '\n', '')
    assert os.listdir(tmp_path) == []


# --- the journal

DIAGONAL = np.arange(150.)**2
COMPUTED = []


def product(v):
    COMPUTED.append(1)
    return (DIAGONAL*v.T).T


OPERATOR = LinearOperator((150, 150), matvec=product, matmat=product, dtype=float)


def largest(op, path=None, belongs=None):
    "The largest eigenvalues by a Lanczos iteration, as texts of all their digits."
    journal = Journal(path)
    try: values = eigsh(journal.watch(op, {'A': 1} if belongs is None else belongs), 2, v0=np.ones(150),
                        return_eigenvectors=False)
    finally: journal.close()
    return [value.hex() for value in values]


def fragile(patience):
    left = iter(range(patience))
    def few(v):
        if next(left, None) is None: raise KeyboardInterrupt
        return product(v)
    return LinearOperator((150, 150), matvec=few, matmat=few, dtype=float)


def test_no_product_is_computed_twice(tmp_path):
    COMPUTED.clear()
    whole = largest(OPERATOR)
    products = len(COMPUTED)
    COMPUTED.clear()
    for patience in 5, 9:
        with pytest.raises(KeyboardInterrupt): largest(fragile(patience), tmp_path/'j')
    assert largest(OPERATOR, tmp_path/'j') == whole and len(COMPUTED) == products
    assert largest(fragile(0), tmp_path/'j') == whole
    Journal(tmp_path/'j').watch(OPERATOR, {'A': 1}) @ np.eye(150)[:, :3]
    again = Journal(tmp_path/'j').watch(fragile(0), lambda: {'A': 1}) @ np.eye(150)[:, :3]
    assert np.array_equal(again, np.diag(DIAGONAL)[:, :3]) and again.flags.writeable


def test_an_operator_of_something_else_finds_nothing(tmp_path):
    largest(OPERATOR, tmp_path/'j')
    with pytest.raises(KeyboardInterrupt): largest(fragile(0), tmp_path/'j', {'A': 2})
    with pytest.raises(KeyboardInterrupt): Journal(tmp_path/'j').watch(fragile(0), {'A': 1}) @ np.full(150, 1 + 1e-15)


@pytest.mark.parametrize('cut', [0, 1, 31, 32, 40, 60, 1000, -1])
def test_what_is_half_written_is_cut_off(tmp_path, cut):
    whole = largest(OPERATOR, tmp_path/'j')
    content = (tmp_path/'j').read_bytes()
    (tmp_path/'j').write_bytes(content[:cut])
    Journal(tmp_path/'j')
    kept = (tmp_path/'j').read_bytes()
    assert content.startswith(kept) and len(kept) <= len(content[:cut]) < len(kept) + 1240
    assert largest(OPERATOR, tmp_path/'j') == whole and (tmp_path/'j').read_bytes() == content


def test_a_changed_byte_is_noticed(tmp_path):
    whole = largest(OPERATOR, tmp_path/'j')
    content = (tmp_path/'j').read_bytes()
    for i in range(len(run._START), len(content), 9973):
        (tmp_path/'j').write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1:])
        assert largest(OPERATOR, tmp_path/'j') == whole
        assert largest(fragile(0), tmp_path/'j') == whole                  # what was damaged has been written again


def test_a_file_of_something_else_is_left_alone(tmp_path):
    cases = [('notes', b'a year of work', f"'{tmp_path/'notes'}' is no journal of products of hessian_nb"),
             ('later', run._TITLE + b' 3\n', 'was written by another version of hessian_nb; give'),
             ('older', run._TITLE + b'\n\0', 'was written by another version of hessian_nb; give')]
    for name, content, says in cases:
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError) as refusal: Journal(tmp_path/name)
        assert says in str(refusal.value) and (tmp_path/name).read_bytes() == content


def test_a_failure_to_open_costs_nothing_of_what_is_written(tmp_path, monkeypatch):
    whole = largest(OPERATOR, tmp_path/'j')
    content = (tmp_path/'j').read_bytes()
    real = open
    def failing(path, mode='r', *args, **kwargs):
        if 'a' in mode: raise OSError(24, 'Too many open files')
        return real(path, mode, *args, **kwargs)
    monkeypatch.setattr('builtins.open', failing)
    with one_warning('Too many open files'): assert largest(OPERATOR, tmp_path/'j', {'A': 2}) == whole
    assert (tmp_path/'j').read_bytes() == content


def test_a_journal_that_is_deleted_meanwhile(tmp_path):
    largest(OPERATOR, tmp_path/'j')
    journal = Journal(tmp_path/'j')
    (tmp_path/'j').unlink()
    assert np.array_equal(journal.watch(OPERATOR, {'A': 1}) @ np.ones(150), DIAGONAL)


JOURNAL = '''
import sys
sys.path.insert(0, sys.argv[2])
from test_run import OPERATOR, largest, product
import test_run, time
def slowly(v):
    print(len(test_run.COMPUTED), flush=True)
    time.sleep(.002)
    return product(v)
op = test_run.LinearOperator((150, 150), matvec=slowly, dtype=float)
print(largest(op, sys.argv[1]))
'''


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_a_journal_of_a_process_that_was_stopped(tmp_path, how):
    whole = largest(OPERATOR)
    process = python(JOURNAL, tmp_path/'j', Path(__file__).parent)
    for _ in range(12): process.stdout.readline()
    process.send_signal(how)
    process.communicate(timeout=60)
    COMPUTED.clear()
    assert largest(OPERATOR, tmp_path/'j') == whole
    resumed = len(COMPUTED)
    largest(OPERATOR)
    assert resumed <= len(COMPUTED) - resumed - 10


def test_two_processes_with_one_journal(tmp_path):
    whole = largest(OPERATOR)
    processes = [python(JOURNAL, tmp_path/'j', Path(__file__).parent) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.splitlines()[-1] == str(whole), err
    assert largest(OPERATOR, tmp_path/'j') == whole
    assert largest(fragile(0), tmp_path/'j') == whole
