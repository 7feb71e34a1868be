"The growth plots: time above, peak memory below, one column for everything that grows."
from matplotlib.figure import Figure

COLOURS = {'hessian_nb': '#D55E00', 'jax.hessian': '#0072B2', 'jax columns': '#56B4E9', 'torch.func columns': '#009E73',
           'floor': '#999999'}


def points(rows, name, quantity):
    "Sizes and values of one contestant where it ran."
    found = [(row['size'], row['contestants'].get(name, {})) for row in rows]
    if quantity == 'time': return [(x, e['seconds']['median']) for x, e in found if 'seconds' in e]
    return [(x, max(e['memory'], 1e5)/1e6) for x, e in found if 'seconds' in e and 'memory' in e]


def draw(growth:dict,   # series -> rows
        ):              # -> matplotlib Figure
    fig = Figure(figsize=(3*len(growth), 5), layout='constrained')
    axes = fig.subplots(2, len(growth), squeeze=False)
    for column, (series, rows) in zip(axes.T, growth.items()):
        for ax, quantity, unit in zip(column, ('time', 'memory'), ('seconds', 'peak memory, MB')):
            for name, colour in COLOURS.items():
                line = points(rows, name, quantity)
                if line: ax.loglog(*zip(*line), 'o-', color=colour, ms=3, lw=1.2, label=name)
            ax.grid(alpha=.3)
            ax.set_ylabel(unit)
            ax.set_xlabel(series)
    axes[0, 0].legend(fontsize=7)
    return fig


def save(growth, folder):
    draw(growth).savefig(folder/'growth.png', dpi=100)
