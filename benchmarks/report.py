"What a run leaves: results.json with everything, results.md with the tables."
import json
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from .workloads import BY_NAME

PACKAGES = ('numpy', 'scipy', 'autograd', 'jax', 'jaxlib', 'torch', 'backpack-for-pytorch', 'curvlinops-for-pytorch',
            'nngeometry', 'pyhessian')
OURS = 'hessian_nb', 'floor'


def processor():
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':')[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration): return platform.processor()


def versions() -> dict:
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        try: found[package] = version(package)
        except PackageNotFoundError: found[package] = 'not installed'
    return found


def commit():
    "Which state of the code ran; results that an earlier run has left do not change it."
    def git(*words):
        return subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    changed = git('status', '--porcelain', '--untracked-files=no', ':/', ':!results')
    return git('describe', '--always') + '-dirty'*bool(changed) or 'unknown'


class Run:
    "Everything of one run, written after every row, so that an interrupt loses nothing that is finished."
    def __init__(self, folder, threads, keep=False):
        self.folder = Path(folder)
        self.about = {'date': date.today().isoformat(), 'commit': commit(), 'processor': processor(),
                      'threads': threads, 'memory_GB': round(psutil.virtual_memory().total/1e9),
                      'versions': versions()}
        self.rows, self.growth = [], {}
        if keep and (self.folder/'results.json').exists():
            found = json.loads((self.folder/'results.json').read_text(encoding='utf-8'))
            self.rows, self.growth = found['rows'], found['growth']

    @property
    def machine(self):
        a = self.about
        packages = ', '.join(f'{k} {v}' for k, v in a['versions'].items())
        return (f"{a['date']}, commit {a['commit']}: {a['processor']}, {a['threads']} threads for everyone, "
                f"{a['memory_GB']} GB, double precision; {packages}")

    def add(self, row):
        "A row, in the order of the table; an older one of its name goes."
        order = list(BY_NAME)
        self.rows = [r for r in self.rows if r['name'] != row['name']] + [{**row, 'commit': self.about['commit']}]
        self.rows.sort(key=lambda r: order.index(r['name']) if r['name'] in order else len(order))
        self.write()

    def write(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        everything = {**self.about, 'rows': self.rows, 'growth': self.growth}
        (self.folder/'results.json').write_text(json.dumps(everything, indent=1), encoding='utf-8')
        (self.folder/'results.md').write_text(self.text(), encoding='utf-8')

    def text(self):
        parts = ['# hessian_nb and its peers', self.machine, summary(self.rows), *map(details, self.rows)]
        return '\n\n'.join(parts) + '\n'


def table(head, rows):
    return '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---']*len(head), *rows])


def times(r): return f"{r['median']:.3g}× ({r['q1']:.3g}–{r['q3']:.3g})"


def milliseconds(r): return f"{1e3*r['median']:.4g} ({1e3*r['q1']:.4g}–{1e3*r['q3']:.4g})"


def megabytes(entry): return f"{entry['memory']/1e6:,.0f}" if 'memory' in entry else ''


def is_peer(name): return not name.startswith(OURS)


def best(row, fits=is_peer):
    "The fastest timed contestant of those that fit, and its name."
    timed = {n: e for n, e in row['contestants'].items() if fits(n) and 'ratio' in e}
    name = min(timed, key=lambda n: timed[n]['ratio']['median'], default=None)
    return name, timed.get(name)


def quoted(name, entry): return f"{name} {times(entry['ratio'])}" if entry else '–'


def against_floor(row):
    "Our time in floors: the ratio the other way round."
    entry = row['contestants'].get('floor', {})
    return f"{1/entry['ratio']['median']:.3g}×" if 'ratio' in entry else '–'


def summary(rows):
    "One line a workload."
    lines = []
    for row in rows:
        mine = row['contestants']['hessian_nb']
        jax, fastest_jax = best(row, lambda n: n == 'jax.hessian')[1], best(row, lambda n: n.startswith('jax'))[1]
        lines.append([row['name'], row['quantity'], row['p'], row['N'],
                      milliseconds(mine['seconds']) if 'seconds' in mine else mine.get('failed', 'wrong'),
                      quoted(*best(row)), *[times(e['ratio']) if e else '–' for e in (jax, fastest_jax)],
                      against_floor(row), megabytes(mine), megabytes(best(row)[1] or {}), row['target']])
    return table(['workload', 'quantity', 'p', 'N', 'hessian_nb, ms', 'fastest peer', 'jax.hessian', 'fastest jax',
                  'floors that we take', 'our peak, MB', 'its peak, MB', 'target'], lines)


def details(row):
    "All contestants of a workload."
    lines = []
    for name, entry in row['contestants'].items():
        error = f"{entry['error']:.0e}" if 'error' in entry else ''
        if 'seconds' not in entry: measured = [entry.get('failed', 'wrong, so not timed'), '', '', '']
        else:
            ratio, busy = times(entry['ratio']) if 'ratio' in entry else '1', 1e3*entry['busy']['median']
            measured = [milliseconds(entry['seconds']), ratio, f'{busy:.4g}', entry['seconds']['n']]
        lines.append([name, *measured, error, megabytes(entry)])
    head = 'contestant', 'ms: median (quartiles)', 'time over ours', 'processor ms', 'runs', 'error', 'peak, MB'
    title = f"## {row['name']}: {row['quantity']}, p = {row['p']:,}, N = {row['N']:,}, commit {row.get('commit', '–')}"
    return title + '\n\n' + table(head, lines)
