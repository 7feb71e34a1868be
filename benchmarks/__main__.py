"`python -m benchmarks`: the whole table, checked, timed and written to benchmarks/results/."
import argparse
from pathlib import Path

from hessian_nb.run import CORES

from . import growth, plots, race, report
from .workloads import BY_NAME


def arguments():
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these workloads: ' + ', '.join(BY_NAME))
    parser.add_argument('--against', nargs='+', metavar='PEER', help='these contestants only, besides hessian_nb')
    parser.add_argument('--series', nargs='*', metavar='WHAT', help='these growth plots: ' + ', '.join(growth.SERIES))
    parser.add_argument('--repeats', type=int, default=15, help='rounds (default %(default)s)')
    parser.add_argument('--longest', type=float, default=600, help='seconds for one answer, the search for the best '
                        'batch included; then a contestant is out (default %(default)s)')
    parser.add_argument('--keep', action='store_true', help='add to the results that are there, or replace them')
    parser.add_argument('--quick', action='store_true', help='three rounds, and no growth plots')
    parser.add_argument('--threads', type=int, default=CORES, help='for everyone (default %(default)s)')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent/'results', help='folder for the results')
    return parser.parse_args()


def main():
    given = arguments()
    repeats, run = 3 if given.quick else given.repeats, report.Run(given.out, given.threads, given.keep)
    race.LONGEST = given.longest
    some = given.only is not None or given.series is not None
    print(run.machine)
    for name in given.only or ([] if some else BY_NAME):
        print(name, flush=True)
        row = race.race(growth.find_workload(name), given.threads, repeats, given.against)
        run.add(row)
        print(report.details(row), flush=True)
    for series in given.series or ([] if some or given.quick else growth.SERIES):
        run.growth[series] = growth.grow(series, given.threads, min(repeats, 5))
        run.write()
        plots.save(run.growth, given.out)


if __name__ == '__main__': main()
