"How cost grows with p, N, depth and the number of shared uses: sizes of one family, one after another."
from functools import partial

from .race import OURS, race
from .workloads import BY_NAME, Workload, mlp, shared

SLOWEST = 10    # seconds: a contestant whose run took longer is spared the larger sizes
CONTESTANTS = OURS, 'jax.hessian', 'jax columns', 'torch.func columns', 'floor'

SERIES = {     # what grows -> (size, problem)
    'parameters p': [(w, partial(mlp, [w, w, 10], 512)) for w in (8, 16, 32, 64, 96)],
    'samples N': [(N, partial(mlp, [24, 16, 10], N)) for N in (64, 256, 1024, 4096, 16384, 65536)],
    'layers': [(L, partial(mlp, [8]*(L - 1) + [10], 256)) for L in (2, 4, 8, 16, 32, 64)],
    'shared uses': [(K, partial(shared, 16, K, True, 256)) for K in (1, 2, 4, 8, 16, 32)],
}


def name_of(series, size): return f'{series}: {size}'


def find_workload(name):
    "A row of the table, the same with ':tiny' behind its name as small as in the tests, or a size of a series."
    if name.endswith(':tiny'):
        row = BY_NAME[name.removesuffix(':tiny')]
        return Workload(name, row.tiny, row.tiny, row.target)
    if name in BY_NAME: return BY_NAME[name]
    series, size = name.rsplit(': ', 1)
    problem = dict(SERIES[series])[int(size)]
    return Workload(name, problem, problem)


def grow(series, threads, repeats, say=print) -> list:
    "The rows of one series; who fails or is too slow at one size does not run at the next."
    rows, still = [], list(CONTESTANTS)
    for size, _ in SERIES[series]:
        row = race(find_workload(name_of(series, size)), threads, repeats, still, say)
        x = row['p'] if series.startswith('parameters') else size
        rows.append({**row, 'size': x})
        still = [n for n, e in row['contestants'].items() if e.get('seconds', {}).get('median', SLOWEST) < SLOWEST]
    return rows
