"""The race: contestants in processes of their own, called in turn, hessian_nb before each of the others.

A ratio is that of two neighbours in time; what is quoted is the median over the rounds, with the quartiles.
"""
import importlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from time import sleep

import numpy as np

from . import floor, oracle
from .worker import MODULES

OURS = 'hessian_nb'
SHORTEST = .1      # seconds that one timing lasts at least: shorter runs are repeated
REST = .03         # seconds before each timing, for the threads of the one before to fall asleep
PATIENCE = 8      # seconds that one contestant may spend in all rounds of one workload
LONGEST = 600      # seconds for one answer, getting ready included; then the process is ended


def environment(threads):
    "The same number of threads for every library."
    names = 'OMP', 'OPENBLAS', 'MKL', 'VECLIB_MAXIMUM', 'NUMEXPR'
    return {**os.environ, **{f'{n}_NUM_THREADS': str(threads) for n in names}, 'JAX_PLATFORMS': 'cpu'}


def entries(problem) -> list:
    "The contestants of a problem: ours first, then all peers that are installed and can do it."
    found = [find_spec(n) is not None for n in ('jax', 'torch')]
    modules = [m for m, there in zip(MODULES, [True, *found]) if there]
    names = []
    for module in modules:
        table = importlib.import_module(f'.{module}', __package__).CONTESTANTS.get(problem.quantity, {})
        names += [name for name, make in table.items() if getattr(make, 'fits', lambda _: True)(problem)]
    return names + ['floor']*(floor.products(problem) is not None)


class Runner:
    "A contestant's process, seen from outside."
    def __init__(self, workload, name, reference, threads):
        self.name, self.times, self.busy, self.ratios = name, [], [], []
        self.log = tempfile.TemporaryFile('w+')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.worker', workload, name, str(reference), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment(threads), cwd=Path(__file__).parent.parent)
        self.facts = self.ask(do='prepare')
        if self.ready: self.repeat = max(1, int(np.ceil(SHORTEST/self.facts['first'])))

    @property
    def ready(self): return 'failed' not in self.facts and self.facts.get('correct', True)

    @property
    def spent(self): return sum(self.times)*self.repeat

    def ask(self, **command) -> dict:
        alarm = Timer(LONGEST, self.process.kill)
        alarm.start()
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError: line = ''
        late = not alarm.is_alive()
        alarm.cancel()
        if late: return {'failed': f'no answer within {LONGEST} s'}
        return json.loads(line) if line else {'failed': self.last_words()}

    def last_words(self):
        self.log.seek(0)
        said = self.log.read().strip().splitlines()
        return f'the process ended with code {self.process.wait()}' + (f': {said[-1][:200]}' if said else '')

    def run(self) -> float:
        "Seconds of one run, or None when it failed: then it is out."
        sleep(REST)
        reply = self.ask(do='run', times=self.repeat)
        if 'failed' in reply:
            self.facts = reply
            return None
        self.times.append(reply['seconds'])
        self.busy.append(reply['busy'])
        return reply['seconds']

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def race(workload, threads, repeats, only=None, say=print) -> dict:
    "One row of the table: every contestant's times, ratios to ours, error and memory."
    problem = workload.problem()
    names = [n for n in entries(problem) if only is None or n == OURS or n in only]
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder)/'reference.npz'
        np.savez(reference, **oracle.reference(problem))
        runners = []
        for name in names:
            runners.append(Runner(workload.name, name, reference, threads))
            say(f'  {name}: {describe(runners[-1].facts)}', flush=True)
        rounds([r for r in runners if r.ready], repeats)
        for r in runners: r.close()
    return {'name': workload.name, 'quantity': problem.quantity, 'p': problem.p, 'N': problem.N,
            'target': workload.target, 'contestants': {r.name: record(r) for r in runners}}


def describe(facts):
    if 'failed' in facts: return facts['failed']
    wrong = '' if facts.get('correct', True) else f", WRONG by {facts['error']:.0e}: not timed"
    return f"{facts['first']:.4g} s at first{wrong}"


def rounds(runners, repeats):
    "Ours and a peer, ours and the next peer, …; a peer that takes long drops out before it has run `repeats` times."
    if not runners or runners[0].name != OURS: return
    ours, *peers = runners
    for turn in range(repeats):
        if not peers: ours.run()
        for peer in peers:
            late = turn and peer.spent + peer.times[-1]*peer.repeat > PATIENCE
            if not peer.ready or late: continue
            mine, other = ours.run(), peer.run()
            if mine and other: peer.ratios.append(other/mine)


def spread(values) -> dict:
    low, middle, high = np.quantile(values, [.25, .5, .75])
    return {'median': middle, 'q1': low, 'q3': high, 'min': min(values), 'max': max(values), 'n': len(values)}


def record(runner) -> dict:
    lists = {'seconds': runner.times, 'busy': runner.busy, 'ratio': runner.ratios}
    return {**runner.facts, **{key: spread(values) for key, values in lists.items() if values}}
