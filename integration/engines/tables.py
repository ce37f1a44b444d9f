"""What an engine says of a table of `flowlog-catalog`, as JSON.

    tables.py ENGINE CATALOG TABLE [DO…]

ENGINE is pyiceberg, duckdb, spark, or objects (pyarrow over the objects in the directory CATALOG: the witness). CATALOG is a database
(`sqlite:///…`) or the URL of a REST catalog. Spark takes the former, and first carries out what DO says: statements of docs/iceberg.md.
(The package that its jar is from has left out the client of REST catalogs.)
DuckDB is shown the file with the table's metadata instead; pyiceberg takes key, secret and URL of a bucket's server in place of DO.
"""

import datetime
import glob
import json
import os
import re
import sys

engine, place, table, *todo = sys.argv[1:]
SUMS = """select count(*), coalesce(sum(packets), 0), coalesce(sum(bytes), 0), count(distinct srcaddr), {}(max(window_start)) from """
HOUR = datetime.datetime(2027, 1, 15, 9, tzinfo=datetime.timezone.utc)
NEXT = HOUR + datetime.timedelta(hours=1)


def catalog():
    if place.startswith("sqlite"):
        from pyiceberg.catalog.sql import SqlCatalog

        names = ("s3.access-key-id", "s3.secret-access-key", "s3.endpoint")
        bucket = dict(zip(names, todo), **{"s3.region": "us-east-1", "s3.force-virtual-addressing": False}) if todo else {}
        return SqlCatalog("lake", uri=place, **bucket)
    from pyiceberg.catalog.rest import RestCatalog

    return RestCatalog("lake", uri=place)


def sums(rows, packets, octets, sources, latest):
    return {"rows": int(rows), "packets": int(packets), "bytes": int(octets), "sources": int(sources), "latest": int(latest or 0)}


def of_arrow(data):
    import pyarrow.compute as pc

    total = lambda name: pc.sum(data[name]).as_py() or 0
    sources = pc.count_distinct(data["srcaddr"]).as_py()
    latest = pc.max(data["window_start"]).as_py()
    return sums(data.num_rows, total("packets"), total("bytes"), sources, latest.timestamp() if latest else 0)


def objects():
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(glob.glob(f"{place}/**/*Z_*.parquet", recursive=True))
    columns = ["packets", "bytes", "srcaddr", "window_start"]
    return {"sums": of_arrow(pa.concat_tables([pq.read_table(name, columns=columns, partitioning=None) for name in names])), "objects": len(names)}


def pyiceberg():
    from pyiceberg.expressions import And, GreaterThanOrEqual, LessThan

    loaded = catalog().load_table(table)
    hour = And(GreaterThanOrEqual("window_start", HOUR.isoformat()), LessThan("window_start", NEXT.isoformat()))
    paths = [task.file.file_path for task in loaded.scan().plan_files()]
    return {
        "sums": of_arrow(loaded.scan(selected_fields=("packets", "bytes", "srcaddr", "window_start")).to_arrow()),
        "hour": of_arrow(loaded.scan(hour, selected_fields=("packets", "bytes", "srcaddr", "window_start")).to_arrow()),
        "planned": len(paths),
        "planned_hour": len(list(loaded.scan(hour).plan_files())),
        "planned_source": len(list(loaded.scan("srcaddr == '9.9.9.9'").plan_files())),
        "twice": len(paths) - len(set(paths)),
        "snapshots": len(loaded.metadata.snapshots),
        "columns": [[f.field_id, f.name, str(f.field_type)] for f in loaded.schema().fields],
        "properties": dict(loaded.metadata.properties),
        "metadata": loaded.metadata_location,
    }


def duckdb():
    import importlib.util

    import duckdb as engine

    c = engine.connect(config={"allow_unsigned_extensions": "false"})
    for name in ("avro", "iceberg"):
        package = importlib.util.find_spec(f"duckdb_extension_{name}").submodule_search_locations[0]
        # It is loaded by its path, and its signature is looked at.
        c.execute(f"load '{glob.glob(f'{package}/extensions/*/*.duckdb_extension')[0]}'")
    c.execute("set timezone = 'UTC'")
    scan, ask = f"iceberg_scan('{place}')", SUMS.format("epoch")
    hour = f"window_start >= '{HOUR.isoformat()}' and window_start < '{NEXT.isoformat()}'"
    return {
        "sums": sums(*c.execute(ask + scan).fetchone()),
        "hour": sums(*c.execute(f"{ask} {scan} where {hour}").fetchone()),
    }


def spark():
    import importlib.util

    import pyspark
    from pyspark.sql import SparkSession
    from relocate import relocate

    jackson = os.path.abspath("jackson.jar")
    jars = [glob.glob(f"{pyspark.__path__[0]}/jars/jackson-{part}-2*.jar")[0] for part in ("core", "databind", "annotations")]
    relocate(jars, jackson, "com/fasterxml/jackson/", "org/apache/iceberg/shaded/com/fasterxml/jackson/")
    # The folder of a package that holds jars and no code worth running.
    package = importlib.util.find_spec("snowpark_connect_deps_iceberg").submodule_search_locations[0]
    jar = glob.glob(f"{package}/jars/iceberg-spark-runtime-3.5_2.12-*.jar")[0]
    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.jars": f"{jar},{jackson}",
        "spark.driver.extraClassPath": "/usr/share/java/sqlite-jdbc.jar",
        # Where Debian's driver finds the database itself.
        "spark.driver.extraJavaOptions": f"-Duser.timezone=UTC -Djava.library.path={glob.glob('/usr/lib/*-linux-gnu/jni')[0]}",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        # The catalog's name is that in the database.
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "jdbc",
        "spark.sql.catalog.lake.jdbc.schema-version": "V1",
        "spark.sql.catalog.lake.uri": "jdbc:sqlite:/" + place.removeprefix("sqlite://").lstrip("/"),
        "spark.sql.catalog.lake.warehouse": "file:///nowhere",
        "spark.sql.catalog.lake.io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
    }
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    c = builder.getOrCreate()
    c.sparkContext.setLogLevel("ERROR")
    said = {}
    ask = lambda sql: [list(row) for row in c.sql(sql).collect()]
    for step in todo:
        said[step] = [[v if isinstance(v, (int, str, type(None))) else str(v) for v in row] for row in ask(STEPS[step])]
    hour = f"window_start >= timestamp '{HOUR:%Y-%m-%d %H:%M:%S}' and window_start < timestamp '{NEXT:%Y-%m-%d %H:%M:%S}'"
    # Iceberg's own planner, which Spark asks.
    loaded = c._jvm.org.apache.iceberg.spark.Spark3Util.loadIcebergTable(c._jsparkSession, f"lake.{table}")
    of = c._jvm.org.apache.iceberg.expressions.Expressions
    micros = lambda time: int(time.timestamp()) * 1_000_000

    def planned(scan):
        files, count = scan.planFiles().iterator(), 0
        while files.hasNext():
            files.next()
            count += 1
        return count

    said |= {
        "sums": sums(*ask(f"{SUMS.format('unix_timestamp')} lake.{table}")[0]),
        "hour": sums(*ask(f"{SUMS.format('unix_timestamp')} lake.{table} where {hour}")[0]),
        "planned": planned(loaded.newScan()),
        "planned_hour": planned(loaded.newScan().filter(of.greaterThanOrEqual("window_start", micros(HOUR))).filter(of.lessThan("window_start", micros(NEXT)))),
        "files": ask(f"select count(*) from lake.{table}.files")[0][0],
        "snapshots": ask(f"select count(*) from lake.{table}.snapshots")[0][0],
    }
    return said


def steps():
    """The statements of docs/iceberg.md, by the name in their first line."""
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/iceberg.md")
    text = open(here).read()
    found = re.findall(r"-- (\w+)[^\n]*\n([^;]+);", "\n".join(re.findall(r"```sql spark\n(.*?)```", text, re.S)))
    return {name: sql.replace("flowlog.flows", table) for name, sql in found}


STEPS = steps() if engine == "spark" else {}
print(json.dumps({"objects": objects, "pyiceberg": pyiceberg, "duckdb": duckdb, "spark": spark}[engine]()))
