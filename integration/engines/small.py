"""What many small objects cost their readers: copies of a file, and how long it takes to count their rows and sum up their packets.

    small.py FILE… [--count 10000] [--flowlog PROGRAM]
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time

import duckdb
import pyarrow.compute
import pyarrow.dataset

parser = argparse.ArgumentParser()
parser.add_argument("files", nargs="+", type=pathlib.Path)
parser.add_argument("--count", type=int, default=10_000)
parser.add_argument("--flowlog", help="the program, for `flowlog read`")
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()


def by_duckdb(root):
    c = duckdb.connect()
    return c.sql(f"select count(*), sum(packets) from read_parquet('{root}/**/*.parquet')").fetchall()[0][0]


def by_pyarrow(root):
    t = pyarrow.dataset.dataset(root, format="parquet").to_table(columns=["log_status", "packets"])
    return t.num_rows


def by_flowlog(*more):
    def read(root):
        out = subprocess.run([args.flowlog, "read", *more, root], capture_output=True, check=True).stdout
        return out.count(b"\n")
    return read


readers = {"DuckDB": by_duckdb, "pyarrow": by_pyarrow}
if args.flowlog:
    readers |= {"flowlog read -o csv": by_flowlog("-o", "csv"), "flowlog read --balance": by_flowlog("--balance")}
for file in args.files:
    with tempfile.TemporaryDirectory() as root:
        content = file.read_bytes()
        for n in range(args.count):
            folder = pathlib.Path(root, f"{n % 100:02}")
            folder.mkdir(exist_ok=True)
            (folder / f"n-eth0_20270115T080000Z_{n}.parquet").write_bytes(content)
        print(f"{file.name}: {len(content)} bytes, {args.count} objects, {len(content) * args.count / 1e6:.1f} MB")
        for name, read in readers.items():
            times = []
            for _ in range(args.rounds):
                begin = time.monotonic()
                read(root)
                times.append(time.monotonic() - begin)
            print(f"  {name}: {sorted(times)[len(times) // 2]:.2f} s ({min(times):.2f} at best)")
