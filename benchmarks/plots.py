"The growth plots: time above, peak memory below, one column for everything that grows."
from matplotlib.figure import Figure

COLOURS = {'hessian_nb': '#D55E00', 'jax.hessian': '#0072B2', 'jax columns': '#56B4E9', 'torch.func columns': '#009E73',
           'floor': '#999999'}


def points(rows, name, quantity):
    "Sizes and values of one contestant where it ran."
    found = [(row['size'], row['contestants'].get(name, {})) for row in rows]
    if quantity == 'time': return [(x, e['seconds']['median']) for x, e in found if 'seconds' in e]
    above = [(x, e.get('memory', 0)/1e6) for x, e in found if 'seconds' in e]
    return [(x, memory) for x, memory in above if memory > 1]      # below, it is what the process had held before


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
            sizes = [row['size'] for row in rows]
            ax.set_xticks(sizes, [f'{n:,}' for n in sizes], fontsize=8, rotation=30 if max(sizes) > 999 else 0)
            ax.minorticks_off()
            ax.set_ylabel(unit)
            ax.set_xlabel(series)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=len(COLOURS), frameon=False)
    return fig


def save(growth, folder):
    draw(growth).savefig(folder/'growth.png', dpi=100)
