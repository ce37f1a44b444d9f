"""Parses a script of `flowlog sql` as an engine's dialect has it, for engines that are not here, and looks for each column of its queries in the
table that it defines. Prints the table's columns, and how many queries there are.

    parse.py DIALECT SCRIPT
"""

import json
import sys

import sqlglot
from sqlglot import exp
from sqlglot.optimizer.qualify import qualify

dialect, script = sys.argv[1], open(sys.argv[2]).read()
statements = [s for s in sqlglot.parse(script, read=dialect, error_level=sqlglot.ErrorLevel.RAISE) if s]
table, view = [s for s in statements if isinstance(s, exp.Create)]
names = [c.name for c in table.find_all(exp.ColumnDef)]
schema = {"flowlog": {name: "unknown" for name in names}}
queries = [s for s in statements if isinstance(s, exp.Select)]
for query in [view.expression, *queries]:
    qualify(query.copy(), schema=schema, dialect=dialect)
print(json.dumps({"columns": names, "queries": len(queries)}))
