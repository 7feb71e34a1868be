"""The modules, the cleaned notebooks and the README are what the notebooks say. All is made again on a copy."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MADE_OF = ['settings.ini', 'setup.py', 'README.md', 'nbs', 'hessian_nb']

if not (ROOT/'settings.ini').exists(): pytest.skip('no source checkout here', allow_module_level=True)


def contents(folder):
    "{relative path: bytes} of the files that count."
    paths = [p for name in MADE_OF for p in [folder/name, *(folder/name).rglob('*')]]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths
            if p.is_file() and not {'__pycache__', '.ipynb_checkpoints', '.hypothesis'} & {*p.parts}}


@pytest.fixture
def copy(tmp_path):
    "The project's sources in a folder where they may be changed."
    for name, content in contents(ROOT).items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(content)
    return tmp_path


def run(folder, *command):
    "A Python program in the copy, quiet unless it fails."
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def differences(folder):
    "The files that are not as they are in the project."
    ours, theirs = contents(ROOT), contents(folder)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def test_export(copy):
    for module in (copy/'hessian_nb').glob('*.py'):
        if module.name != '__init__.py': module.unlink()   # so that a module which no notebook makes is missed
    run(copy, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()')
    assert differences(copy) == [], 'run nbdev_export'


def test_clean(copy):
    run(copy, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()')
    assert differences(copy) == [], 'run nbdev_clean'


def test_readme(copy):
    run(copy, 'nbs/readme.py')
    assert differences(copy) == [], 'run python nbs/readme.py'
    run(ROOT, 'nbs/readme.py', '--check')
