"""Every notebook of the book is a test, beside the tests of this folder."""
import json
import os
import re
import subprocess
import sys

import pytest

# The workers share the cores: more BLAS threads than that would only wait for each other.
THREADS = max(1, (os.cpu_count() or 1)//int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))
for library in ('OPENBLAS', 'OMP', 'MKL'): os.environ.setdefault(f'{library}_NUM_THREADS', str(THREADS))

# What nbdev_test does with one notebook, in a process of its own.
RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
sys.exit(not passed)
"""


class NotebookFailed(Exception): "Carries what the notebook's process wrote: the failing cell and its error."


def failing_cell(path, log):
    "The whole cell at which a run stopped, its lines numbered as in the traceback."
    stopped = re.search(r'While Executing Cell #(\d+)', log)
    if not stopped: return ''
    source = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][int(stopped[1]) - 1]['source'])
    return '\n'.join(f'{i:4} {line}' for i, line in enumerate(source.splitlines(), 1))


class Notebook(pytest.File):
    def collect(self): yield Run.from_parent(self, name='run')


class Run(pytest.Item):
    def runtest(self):
        run = subprocess.run([sys.executable, '-c', RUN, self.path], cwd=self.path.parent, capture_output=True,
                             text=True, timeout=900)
        if run.returncode: raise NotebookFailed(f'{run.stderr.strip()}\n\n{failing_cell(self.path, run.stderr)}')

    def repr_failure(self, excinfo):
        return str(excinfo.value) if excinfo.errisinstance(NotebookFailed) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, None, self.path.name


class Notebooks:
    @staticmethod
    def pytest_collect_file(file_path, parent):
        if file_path.suffix == '.ipynb': return Notebook.from_parent(parent, path=file_path)


# A plugin and not a hook of this file, which would see the files of its own folder only.
def pytest_configure(config): config.pluginmanager.register(Notebooks())
