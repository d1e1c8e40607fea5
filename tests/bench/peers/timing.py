"""What the decoder benches share: the same events in the same reads, timed warm, the median printed in seconds."""

import statistics
import sys
import time

EVENT = b'event: a\ndata: {"a":1}\n\n'
READ_BYTES = 64 * 1024
WARM_UP, REPEATS = 2, 5


def time_decoder(count_events, count):
    """Print the seconds that `count_events` takes for `count` tiny events; it gets the reads and must count all."""
    blob = EVENT * count
    reads = [blob[at : at + READ_BYTES] for at in range(0, len(blob), READ_BYTES)]
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        begin = time.perf_counter()
        found = count_events(reads)
        seconds.append(time.perf_counter() - begin)
        if found != count:
            sys.exit(f"{found} events instead of {count}")
    sys.stdout.write(f"{statistics.median(seconds[WARM_UP:])}\n")
