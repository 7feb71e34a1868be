"""One contestant in a process of its own. It prepares itself, then answers `run` whenever it is asked, and sleeps while
the others have their turn: so all meet the machine in the same state, and none disturbs another's threads or memory.

    python -m benchmarks.worker WORKLOAD CONTESTANT REFERENCE.npz THREADS
"""
import gc
import importlib
import json
import os
import resource
import sys
from time import perf_counter, process_time

import numpy as np
import psutil

MODULES = 'ours', 'jax_peers', 'torch_peers'


def find(quantity, name):
    "The function problem -> run of a contestant."
    for module in MODULES:
        table = importlib.import_module(f'.{module}', __package__).CONTESTANTS if owns(module, name) else {}
        if name in table.get(quantity, {}): return table[quantity][name]
    raise KeyError(f'no contestant {name!r} for {quantity}')


def owns(module, name):
    "Only what is needed gets imported: a process holds one framework."
    first = name.split()[0].split('.')[0]
    return module == {'hessian_nb': 'ours', 'jax': 'jax_peers'}.get(first, 'torch_peers')


def on_cores(threads):
    "XLA takes as many threads as it may use cores: so everyone gets as many cores as threads."
    if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def limit_memory(share=.8):
    "Fail instead of pushing the machine into swapping."
    bound = int(share*psutil.virtual_memory().total)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def forget_peak():
    "Let the peak of resident memory start again from here (Linux); elsewhere it holds all since the start."
    try:
        with open('/proc/self/clear_refs', 'w') as file: file.write('5')
    except OSError: pass


def peak():
    try:
        with open('/proc/self/status') as file:
            return next(int(line.split()[1])*1024 for line in file if line.startswith('VmHWM'))
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)


def timed(run, times=1):
    "Seconds and processor seconds a run, and the last answer."
    gc.collect()
    start, busy = perf_counter(), process_time()
    for _ in range(times): answer = run()
    return (perf_counter() - start)/times, (process_time() - busy)/times, answer


class Contestant:
    def __init__(self, workload, name, reference, threads):
        self.workload, self.name, self.reference, self.threads = workload, name, reference, threads

    def prepare(self):
        "Make ready, run once, and check the answer before anything is timed."
        from . import oracle
        self.problem = self.workload.problem()
        if self.name == 'floor': return self.prepare_floor()
        self.run_once = find(self.problem.quantity, self.name)(self.problem)
        gc.collect()
        forget_peak()
        before = psutil.Process().memory_info().rss
        first, _, answer = timed(self.run_once)
        memory = peak() - before
        with np.load(self.reference) as file: error = oracle.error(self.problem, dict(file), answer)
        return {'first': first, 'error': error, 'memory': memory, 'correct': bool(error < oracle.TOLERANCE)}

    def prepare_floor(self):
        from . import floor
        self.run_once = floor.floor(self.problem, self.threads)
        return {'first': timed(self.run_once)[0], 'multiply_adds': floor.multiply_adds(self.problem)}

    def run(self, times):
        seconds, busy, _ = timed(self.run_once, times)
        return {'seconds': seconds, 'busy': busy}


def serve(contestant, commands, replies):
    "Answer JSON lines until there are no more: {'do': 'prepare'} or {'do': 'run', 'times': 3}."
    for line in commands:
        command = json.loads(line)
        try: reply = getattr(contestant, command.pop('do'))(**command)
        except Exception as error: reply = {'failed': f'{type(error).__name__}: {error}'[:300]}
        print(json.dumps(reply), file=replies, flush=True)


def main(workload, name, reference, threads):
    from .growth import find_workload
    on_cores(int(threads))
    replies, sys.stdout = os.fdopen(os.dup(1), 'w'), sys.stderr     # what libraries print is no reply
    limit_memory()
    serve(Contestant(find_workload(workload), name, reference, int(threads)), sys.stdin, replies)


if __name__ == '__main__': main(*sys.argv[1:])
