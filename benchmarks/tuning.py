"The one number that peers leave to the user: how many columns, or samples, at a time. Chosen before anything is timed."
from time import perf_counter

BATCHES = 8, 32, 128, 512


def tuned(make,      # batch -> run
          most,      # how many there are
          too_large, # what is raised when a batch does not fit into memory
         ):          # -> the run that took the shortest
    best, shortest = None, float('inf')
    for batch in [*[b for b in BATCHES if b < most], *[most]*(most <= max(BATCHES))]:
        try:
            run = make(batch)
            seconds = warm_seconds(run)
        except too_large:
            if best is None: raise
            break
        if seconds > 1.05*shortest: break      # larger ones only get slower from here
        if seconds < shortest: best, shortest = run, seconds
    return best


def warm_seconds(run):
    "Of the second call where calls are short; where one takes seconds, warming up is a small part of it."
    for _ in range(2):
        start = perf_counter()
        run()
        if perf_counter() - start > 2: break
    return perf_counter() - start
