"""Has an engine carry out a script of `flowlog sql`, and prints what it says as JSON: the types of the table's columns, and the rows of each
query that has a name. Every engine's answer has the same form, so that a test can compare them.

    ask.py ENGINE SCRIPT [ROOT]

DataFusion and fastparquet have no script of their own: they take DuckDB's queries, and the table from ROOT.
"""

import datetime
import decimal
import json
import re
import sys

engine, script = sys.argv[1], open(sys.argv[2]).read()
root = sys.argv[3] if len(sys.argv) > 3 else None

# What each calls our types.
TYPES = {
    "boolean": "boolean", "bool": "boolean",
    "integer": "int32", "int": "int32", "int32": "int32",
    "bigint": "int64", "int64": "int64",
    "varchar": "utf8", "string": "utf8", "large_string": "utf8", "string_view": "utf8",
    "timestamp": "timestamp", "timestamp with time zone": "timestamp", "timestamp[us, tz=utc]": "timestamp",
    "datetime64(6, 'utc')": "timestamp",
}


def type_of(name):
    name = name.lower()
    inner = re.fullmatch(r"(?:nullable|lowcardinality)\((.*)\)", name)
    return type_of(inner.group(1)) if inner else TYPES.get(name, name)


def value(v):
    if isinstance(v, datetime.datetime):
        return v.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(v, decimal.Decimal):
        return int(v)
    if isinstance(v, str) and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.0+)?", v):
        return v[:19]
    return v


def duckdb():
    import duckdb as engine

    c = engine.connect()
    ask = lambda sql: [list(row) for row in c.sql(sql).fetchall()]
    return c.execute, ask, lambda: [row[:2] for row in ask("describe flowlog")]


def datafusion():
    import datafusion as engine

    c = engine.SessionContext()
    parts = "flow_log, year, month, day, hour" if "flow_log" in script else "year, month, day, hour"
    c.sql(f"create external table flowlog stored as parquet partitioned by ({parts}) location '{root}/'")
    ask = lambda sql: [list(row.values()) for row in c.sql(sql).to_arrow_table().to_pylist()]
    columns = lambda: [(f.name, str(f.type)) for f in c.sql("select * from flowlog limit 0").to_arrow_table().schema]
    # The definitions are DuckDB's.
    return lambda sql: None, ask, columns


def clickhouse():
    from chdb import session

    c = session.Session()
    ask = lambda sql: json.loads(str(c.query(sql, "JSONCompact")))["data"]
    return c.query, ask, lambda: [row[:2] for row in ask("describe table flowlog")]


def spark():
    import tempfile
    from pyspark.sql import SparkSession

    place = tempfile.mkdtemp()
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.sql.warehouse.dir", place)
    c = builder.getOrCreate()
    c.sparkContext.setLogLevel("ERROR")
    ask = lambda sql: [list(row) for row in c.sql(sql).collect()]
    columns = lambda: [row[:2] for row in ask("describe flowlog") if not row[0].startswith("#") and row[0]]
    return c.sql, ask, columns


do, ask, columns = {"duckdb": duckdb, "datafusion": datafusion, "clickhouse": clickhouse, "spark": spark}[engine]()
answers = {}
for statement in re.findall(r"(?:^--[^\n]*\n)*[^;]+;", script, re.M):
    sql = re.sub(r"^--[^\n]*\n", "", statement.strip(), flags=re.M).strip().rstrip(";").strip()
    name = re.search(r"^-- (\w+): ", statement.strip(), re.M)
    if not sql:
        continue
    if name and sql.startswith("select"):
        answers[name.group(1)] = [[value(v) for v in row] for row in ask(sql)]
    elif not sql.startswith(("install", "load")):
        do(sql)
described = {name: type_of(of) for name, of in columns()}
print(json.dumps({"types": described, "answers": answers}))
