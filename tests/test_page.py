"""The page and the summary: whole, complete in themselves, readable, and true to what was found."""
import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from hessian_nb import page as made
from hessian_nb.data import digits
from hessian_nb.hessian import BlockMatrix, attribute, hessian, input_hessian
from hessian_nb.page import draw_direction, draw_hessian, draw_histogram, draw_spectrum, draw_term, page, summary
from hessian_nb.report import Findings, compute, prepare

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@cache
def findings() -> Findings: return compute(prepare(*digits(), 'the digits'), steps=60, most=60)


@cache
def text() -> str: return page(findings())


def written(x) -> str:
    "A number between a thousandth and a million as the page should write it."
    return f'{x:.3g}'.replace('-', '−')


class Page(HTMLParser):
    "Collects tags with their attributes, and the visible text."
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'br', 'path', 'rect'): self.open.append(tag)

    def handle_startendtag(self, tag, attributes): self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f'</{tag}> closes something else'

    def handle_data(self, data):
        if not {'style', 'desc'} & {*self.open}: self.texts.append(data)     # a picture's description repeats it

    @property
    def text(self): return re.sub(r'\s+', ' ', ' '.join(self.texts))


# --- the file

def test_page_is_whole():
    "Every tag closed, every picture with a text and with pixels, every section there."
    seen = Page(text())
    assert seen.open == [] and ('html', {'lang': 'en'}) in seen.tags
    titles = re.findall('<h2>(.*?)</h2>', text())
    assert titles == ['The network', 'The Hessian', 'The terms', 'The spectrum', 'Two extreme directions',
                      'How to read this page']
    pictures = [attributes for tag, attributes in seen.tags if tag == 'img']
    assert len(pictures) >= 12 and all(len(p['alt']) > 15 for p in pictures)
    for p in pictures:
        pixels = imread(io.BytesIO(base64.b64decode(p['src'].removeprefix('data:image/png;base64,'))))
        assert pixels.shape[:2] == (2*int(p['height']), 2*int(p['width'])) and pixels[..., :3].std() > .01
    assert seen.text.count('Conv(4') == 3 and 'nan' not in seen.text.split()


def test_page_asks_for_nothing_from_outside():
    assert len(text()) < 2e6
    assert set(re.findall(r'\w+://[^"<]*', text())) == {'http://www.w3.org/2000/svg'}
    for tag, attributes in Page(text()).tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base', 'form')
        for name in ('src', 'href', 'srcset', 'action', 'poster', 'data', 'xlink:href'):
            assert attributes.get(name, 'data:image/png').startswith('data:image/png'), (tag, name)
    assert '@import' not in text() and set(re.findall(r'url\([^)]*\)', text())) == set()


def test_names_and_labels_do_not_become_tags():
    f = findings()
    samples = replace(f.samples, name='<i>"&', labels=np.array(['<b>', '&amp;', *'cdefghij']), notes=['<u>'])
    seen = Page(page(replace(f, samples=samples)))
    assert {'i', 'u'} & {tag for tag, _ in seen.tags} == set()
    assert '<i>"&: X (1797, 1, 8, 8), labels <b>, &amp;, c,' in seen.text and '<u>' in seen.text


def test_foot_has_what_it_takes_to_repeat():
    seen = Page(text()).text
    for told in ('60 steps of Adam', 'seed 0', 'numpy ' + np.__version__, 'the first 60 training samples',
                 '1,438 for training and 359 for the test', 'labels 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9'):
        assert told in seen, told


# --- what it says

def test_page_says_what_was_found():
    "The numbers of the text are those of the Hessian, found again without the report."
    f = findings()
    X, Y = f.samples.X[:60], f.samples.Y[:60]
    H = hessian(f.net, f.theta, X, Y).dense()
    K = input_hessian(f.net, f.theta, X, Y)
    values, said = np.linalg.eigvalsh(H), Page(text()).text
    below = int((values < -1e-12*abs(values).max()).sum())
    assert f'Of its {len(H)} eigenvalues, {below} are negative' in said and f'{below} of {len(H)}' in said
    assert f'smallest eigenvalue of the Hessian is {written(values[0])}' in said and written(values[-1]) in said
    right = (f.net.predict(f.theta, f.samples.X_test).argmax(1) == f.samples.Y_test).mean()
    assert f'classifies {written(100*right)} % of the test samples correctly' in said
    # A dense output's Hessian is the logits' Hessian times the products of the inputs: a witness of the last block.
    inner = np.concatenate([f.net.forward(f.theta, X)['g'].reshape(60, -1), np.ones((60, 1))], 1)
    block = np.einsum('nij,na,nb->iajb', K['z', 'z'], inner, inner)/60
    where = f.H.places['z.W']
    assert np.allclose(block[:, :-1, :, :-1].reshape(160, 160), H[where, where], atol=1e-14)


def test_the_table_adds_up():
    "The last three columns: their sums are the trace of the Hessian and its two extreme eigenvalues."
    f = findings()
    rows = re.findall('<tr>(.*?)</tr>', text().split('<tbody>')[1])
    cells = [re.findall('<td>(.*?)</td>', row) for row in rows]
    numbers = np.array([[float(x.replace('−', '-').translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789'))
                               .replace('·10', 'e')) for x in row[1:]] for row in cells])
    assert len(rows) == len(f.terms) + 1
    assert np.allclose(numbers[:-1].sum(0), numbers[-1], rtol=.02, atol=.01)
    assert np.allclose(numbers[-1], [np.trace(f.H.dense()), f.values[0], f.values[-1]], rtol=.01)


def test_directions_say_who_contributes():
    f = findings()
    said = Page(text()).text
    (node, kind), least = min(f.down.items(), key=lambda item: item[1])
    assert f'The most negative contribution, {written(least)}, is that of the {kind} term of {node} (' in said
    each = sum(f.down.per_sample.values())
    negative = np.sort(each[each < 0])
    half = next(k for k in range(1, len(negative) + 1) if negative[:k].sum() <= negative.sum()/2)
    assert f'negative for {len(negative)} of the 60 samples, and half of this negative curvature comes from ' \
           f'{half} sample' in said
    place = max(f.H.names, key=lambda n: np.linalg.norm(f.vectors[f.H.places[n], 0]))
    share = np.linalg.norm(f.vectors[f.H.places[place], 0])**2
    assert f'{written(100*share)} % of the squared length of v lies in the parameter {place}.' in said


def test_shares_of_the_norm():
    f, said = findings(), Page(text()).text
    size = np.linalg.norm(f.H.dense())
    G = f.terms['z', 'gauss-newton'].dense()
    others = {key: np.linalg.norm(T.dense())/size for key, T in f.terms.items() if key[1] != 'gauss-newton'}
    (node, kind), largest = max(others.items(), key=lambda item: item[1])
    assert f'the Gauss–Newton term has {written(100*np.linalg.norm(G)/size)} % of the size of H, and the sum of all ' \
           f'other terms has {written(100*np.linalg.norm(f.H.dense() - G)/size)} %' in said
    assert f'the {kind} term of {node} (' in said and f'with {written(100*largest)} %' in said
    blocks = sum(np.linalg.norm(f.H[n, n])**2 for n in ('h', 'b', 'z'))/size**2
    assert f'The diagonal blocks hold {written(100*blocks)} % of ‖H‖²' in said


def test_captions_and_paragraphs_are_whole_sentences():
    captions = [c for c in re.findall('<figcaption>(.*?)</figcaption>', text()) if '<b>' not in c]
    assert len(captions) == 6                                          # graph, Hessian, two spectra, two directions
    for told in captions + re.findall('<p(?: class="lead")?>(.*?)</p>', text(), re.DOTALL):
        assert re.match(r'^(The|All|Each|A|H|Nodes|After|In|Of|No|This|Here|\d)', told.strip()), told
        assert re.search(r'[.:]$', told.strip()), told


def test_one_is_no_plural_and_nothing_negative_is_not_spoken_of():
    f = findings()
    one = replace(f, values=np.array([-1., *np.zeros(10), 2, 3]), gauss_newton=np.zeros(13))
    assert 'Of its 13 eigenvalues, 1 is negative and 2 are positive.' in made._say_first(one)[1]
    G = f.terms['z', 'gauss-newton']
    zero = BlockMatrix(0*G.array, G.places)
    values, vectors = np.linalg.eigh(G.dense())
    terms = {key: T if key[1] == 'gauss-newton' else zero for key, T in f.terms.items()}
    convex = replace(f, H=G, terms=terms, values=values, vectors=vectors, gauss_newton=values, gradient_norm=0.)
    said = Page(page(convex)).text
    assert 'None of its 358 eigenvalues is negative.' in said and 'No direction has negative curvature' in said
    assert 'not a minimum' not in said and 'comes from the other terms' not in said
    assert 'not a minimum' in Page(text()).text


def test_no_curvature_at_all():
    f = findings()
    zero = BlockMatrix(0*f.H.array, f.H.places)
    flat = attribute(f.net, f.theta, f.samples.X[:5], f.samples.Y[:5], 0*f.theta)
    empty = replace(f, H=zero, terms={key: zero for key in f.terms}, values=0*f.values, gauss_newton=0*f.values,
                    down=flat, up=flat)
    said = Page(page(empty)).text
    assert not re.search(r'\b(nan|inf)\b', said + summary(empty)) and 'All entries of H are zero.' in said
    assert '17 of the zeros occur in both' in said


def test_summary_names_every_term():
    f, said = findings(), summary(findings())
    assert all(re.search(rf'^{node} +{kind} ', said, re.M) for node, kind in f.terms)
    assert max(map(len, said.splitlines())) <= 80 and '1,438 training and 359 test samples' in said


@pytest.mark.parametrize('x, text', [(-.01234, '−0.0123'), (1.1e-16, '1.1·10⁻¹⁶'), (2.5e7, '2.5·10⁷'), (-0., '0'),
                                     (358, '358'), (-1234.5, '−1.23·10³')])
def test_numbers(x, text): assert made._number(x) == text


# --- how it looks

def test_figures_have_the_size_of_a_telephone_and_belong_to_no_window():
    import matplotlib.pyplot as plt
    f = findings()
    figures = [draw_hessian(f), draw_term(f, f.terms['u', 'pure']), draw_spectrum(f), draw_histogram(f),
               draw_direction(f.down)]
    assert all(fig.get_size_inches()[0] <= 5 for fig in figures) and plt.get_fignums() == []


def test_all_matrices_have_one_colour_scale():
    f = findings()
    scales = [fig.axes[0].images[0].norm for fig in (draw_hessian(f), *(draw_term(f, T) for T in f.terms.values()))]
    end = np.sort(abs(f.H.dense()).ravel())[int(.99*f.H.dense().size)]
    assert {(s.vmin, s.vmax) for s in scales} == {(-scales[0].vmax, scales[0].vmax)}
    assert abs(scales[0].vmax/end - 1) < .01


def test_the_spectrum_is_drawn_whole():
    f = findings()
    lines = draw_spectrum(f).axes[0].get_lines()[:2]
    for line, values in zip(lines, (f.values, f.gauss_newton)):
        assert np.allclose(line.get_ydata(), values, atol=1e-11)
    drawn = [patch.get_data().values for patch in draw_histogram(f).axes[0].patches]
    assert [int(counts.sum()) for counts in drawn] == [len(f.values)]*2
    zeros_and_tiny = [int((abs(f.rounded(v)) <= 0).sum()) for v in (f.values, f.gauss_newton)]
    assert all(counts.max() >= zeros for counts, zeros in zip(drawn, zeros_and_tiny))


def contrast(a, b):
    "The contrast of two colours #rrggbb by the Web Content Accessibility Guidelines 2.1."
    def luminance(colour):
        channels = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
        return sum(w*(c/12.92 if c <= .03928 else ((c + .055)/1.055)**2.4)
                   for w, c in zip((.2126, .7152, .0722), channels))
    lighter, darker = sorted([luminance(a), luminance(b)], reverse=True)
    return (lighter + .05)/(darker + .05)


def test_contrast_is_that_of_level_aa():
    "Text 4.5 : 1 on all that lies behind it; what a figure draws 3 : 1 on white."
    style = re.search('<style>(.*?)</style>', text(), re.DOTALL)[1]
    colours = dict(re.findall('--([a-z]+): (#[0-9a-f]{6})', style))
    used = set(re.findall(r'[^-]color: var\(--([a-z]+)\)', style))
    assert used == {'ink', 'soft'} and set(re.findall(r'background: var\(--([a-z]+)\)', style)) == {'tint', 'paper'}
    for front in used:
        for behind in ('tint', 'paper'): assert contrast(colours[front], colours[behind]) >= 4.5
    assert 20.9 < contrast('#000000', '#ffffff') < 21.1
    for line in draw_spectrum(findings()).axes[0].get_lines()[:2]: assert contrast(line.get_color(), '#ffffff') >= 3
    for kind in findings().by_kind(): assert contrast(made.PALETTE[kind], '#ffffff') >= 3


# --- in a browser

FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync virtual-time-budget=5000 dump-dom"""
PROBE = """const page = frame.contentDocument, pictures = [...page.images]
document.title = [frame.clientWidth, page.documentElement.scrollWidth, pictures.length,
  pictures.filter(i => i.naturalWidth > 0).length, page.querySelector("figure svg").clientWidth,
  frame.contentWindow.performance.getEntriesByType("resource").filter(r => !/^data:/.test(r.name)).length].join()"""


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium to open the page with')
@pytest.mark.parametrize('width', [1280, 400])
def test_in_a_browser(width, tmp_path):
    "Without a network: all pictures are shown, and nothing is wider than the page, be it a telephone's."
    frame = f'<iframe id=frame style="border:0" width={width} height=900 srcdoc="{escape(text())}"></iframe>'
    around = tmp_path/'around.html'
    probe = f'<script>onload = () => {{ {PROBE} }}</script>'
    around.write_text(f'<meta charset=utf-8><title></title>{frame}{probe}', encoding='utf-8')
    flags = [f'--{flag}' for flag in FLAGS.split()] + ['--host-resolver-rules=MAP * ~NOTFOUND']
    shown = subprocess.run([CHROMIUM, *flags, f'--user-data-dir={tmp_path/"profile"}', '--window-size=1400,1000',
                            around.as_uri()], capture_output=True, text=True, encoding='utf-8', timeout=120)
    title = re.search('<title>(.+?)</title>', shown.stdout)
    assert title, shown.stderr
    inner, wide, pictures, loaded, graph, fetched = map(int, title[1].split(','))
    assert inner == width and wide <= width and 250 < graph < width
    assert pictures == loaded >= 12 and fetched == 0
