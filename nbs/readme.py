"""README.md from index.ipynb.    python nbs/readme.py [--check]

Pictures become files in index_files/, since a forge shows no embedded ones, and links lead from the top of the project.
"""
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = HERE/'index_files'


def visible(cell):
    "Whether a reader is meant to see a cell."
    return not re.match(r'#\|\s*(hide|default_exp)\b', cell.source)


def shown(cell):
    "The cell as a reader sees it: `echo: false` shows what its code makes, not the code."
    if re.match(r'#\|\s*echo:\s*false\b', cell.source): cell.metadata['transient'] = {'remove_source': True}
    return cell


def from_top(markdown):
    "The text with its relative links seen from the top of the project."
    link = r'(\]\(|src=")(?![a-z]+:|#|/)([^)"\s]+)'
    return re.sub(link, lambda m: m[1] + posixpath.normpath(f'nbs/{m[2]}'), markdown)


def convert():
    "Every file that is made, as {path: content in bytes}."
    book = nbformat.read(HERE/'index.ipynb', as_version=4)
    book.metadata['language_info'] = {'name': 'python'}   # for the fences; nbdev_clean drops it
    book.cells = [shown(cell) for cell in book.cells if visible(cell)]
    # A table's or a drawing's HTML would lose its style on a forge: take the picture or the text instead.
    order = ['image/svg+xml', 'image/png', 'text/markdown', 'text/plain']
    exporter = MarkdownExporter(config=Config(NbConvertBase={'display_data_priority': order}))
    text, made = exporter.from_notebook_node(book, {'unique_key': 'index', 'output_files_dir': PICTURES.name})
    text = re.sub(r'\n\s*\n\s*\n(?=\S)', '\n\n', from_top(text).strip()) + '\n'
    return {ROOT/'README.md': text.encode()} | {HERE/name: data for name, data in made['outputs'].items()}


def stale(files):
    "The paths whose content differs from what would be made."
    known = {*files, *PICTURES.glob('*')}
    return sorted(p for p in known if not p.exists() or p.read_bytes() != files.get(p))


def main():
    files = convert()
    if '--check' in sys.argv:
        old = [str(p.relative_to(ROOT)) for p in stale(files)]
        sys.exit(f'not what index.ipynb makes: {", ".join(old)}' if old else 0)
    for path in stale(files): path.unlink(missing_ok=True)
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


if __name__ == '__main__': main()
