"""Makes many delivered objects, for measuring: windows of one hour each, of N/3 interfaces.

    many.py NUMBER FOLDER
"""

import os
import sys

number, folder = int(sys.argv[1]), sys.argv[2]
sample = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../objects/sample/flow_log=web")
# A file system has a limit of names for a file.
NAMES = 20_000
sources = {}
for n in range(number):
    hour = ("08", "09", "10")[n % 3]
    part = f"year=2027/month=01/day=15/hour={hour}"
    to = f"{folder}/web/{part}/n-eth{n // 3}_20270115T{hour}0000Z_0.parquet"
    source = sources.get((hour, n // NAMES))
    if source:
        os.link(source, to)
        continue
    os.makedirs(os.path.dirname(to), exist_ok=True)
    with open(f"{sample}/{part}/n-eth0_20270115T{hour}0000Z_0.parquet", "rb") as object, open(to, "xb") as copy:
        copy.write(object.read())
    sources[hour, n // NAMES] = to
