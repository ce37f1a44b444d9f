"""What nanoseconds cost in a row, by encoding, and with how many of their lower bits rounded away: the table in docs/performance.md."""

import io
import random

import pyarrow
import pyarrow.parquet

WINDOW_NS = 600 * 10**9
BEGIN_NS = 1_795_440_000 * 10**9
ROWS = 500_000


def times(tick_ns):
    """First and last packet of flows, as the benchmark's records have them."""
    random.seed(1)
    first, last = [], []
    for _ in range(ROWS):
        begin = random.randrange(WINDOW_NS // tick_ns) * tick_ns
        end = min(begin + int((WINDOW_NS / tick_ns) ** random.random() - 1) * tick_ns, WINDOW_NS)
        first.append(BEGIN_NS + begin)
        last.append(BEGIN_NS + end)
    return first, last


def bytes_a_row(columns, encoding):
    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    how = {"use_dictionary": True, "dictionary_pagesize_limit": 4 << 20}
    if encoding != "DICTIONARY":
        how = {"use_dictionary": False, "column_encoding": dict.fromkeys(columns, encoding)}
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        table, out, compression="zstd", compression_level=1, write_statistics=False, row_group_size=1 << 18, **how
    )
    return out.tell() / ROWS


for bits in (0, 16):
    for tick_ns in (4_000_000, 1_000_000):
        rounded = [[n >> bits << bits for n in values] for values in times(tick_ns)]
        columns = dict(zip(("start_ns", "end_ns"), rounded))
        encodings = ("DELTA_BINARY_PACKED", "DICTIONARY", "BYTE_STREAM_SPLIT", "PLAIN")
        sizes = ", ".join(f"{encoding} {bytes_a_row(columns, encoding):.1f}" for encoding in encodings)
        print(f"{bits} bits rounded away, tick {tick_ns / 1e6:.0f} ms: {sizes}")
