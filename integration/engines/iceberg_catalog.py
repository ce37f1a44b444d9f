"""A REST catalog of Iceberg for tests, over pyiceberg's own SQL catalog, that can be told to fail.

    iceberg_catalog.py FOLDER

Serves on a free port of 127.0.0.1, which is its first line of output. `POST /test/faults` with a list of words sets what becomes of the
commits that follow, one word each, and fine after them:

    fine            carried out, and said so
    refuse          409, and not carried out
    refuse_done     409, and carried out all the same: a proxy had sent it twice
    500, 502, 504   said, and not carried out
    500_done, …     said, and carried out
    cut             no answer, and not carried out
    cut_done        no answer, and carried out
    late            504; carried out after the table has been read once more
    lie             said to be done, and not carried out

`GET /test/commits` is how many commits were asked for.
"""

import http.server
import json
import re
import socket
import sys
import threading
import urllib.parse

from pydantic import TypeAdapter
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER, SortOrder
from pyiceberg.table.update import TableRequirement, TableUpdate

folder = sys.argv[1]
catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/rest.db", warehouse=f"file://{folder}/warehouse")
lock = threading.RLock()
faults, late, commits = [], [], 0
UPDATES, REQUIREMENTS = TypeAdapter(list[TableUpdate]), TypeAdapter(list[TableRequirement])


def shown(table):
    return {"metadata-location": table.metadata_location, "metadata": json.loads(table.metadata.model_dump_json()), "config": {}}


def carry_out(name, body):
    requirements = REQUIREMENTS.validate_python(body.get("requirements", []))
    updates = UPDATES.validate_python(body.get("updates", []))
    catalog.commit_table(catalog.load_table(name), tuple(requirements), tuple(updates))


def try_to(name, body):
    try:
        carry_out(name, body)
    except CommitFailedException:
        pass


class Answer(Exception):
    def __init__(self, status, kind, words):
        self.status, self.body = status, {"error": {"message": words, "type": kind, "code": status}}


def commit(name, body):
    global commits
    commits += 1
    fault = faults.pop(0) if faults else "fine"
    if fault == "late":
        late.append((name, body))
        raise Answer(504, "Timeout", "a test: later")
    if fault in ("lie", "fine"):
        if fault == "fine":
            try:
                carry_out(name, body)
            except CommitFailedException as e:
                raise Answer(409, "CommitFailedException", str(e))
        table = shown(catalog.load_table(name))
        return {key: table[key] for key in ("metadata-location", "metadata")}
    if fault.endswith("_done"):
        try_to(name, body)
    kind = fault.split("_")[0]
    if kind == "cut":
        raise ConnectionAbortedError
    status = 409 if kind == "refuse" else int(kind)
    raise Answer(status, "CommitFailedException" if status == 409 else "CommitStateUnknownException", "a test")


def create(namespace, body):
    spec, order = body.get("partition-spec"), body.get("write-order")
    # Who asks leaves the numbers to the catalog.
    for number, field in enumerate(spec["fields"] if spec else ()):
        field.setdefault("field-id", 1000 + number)
    return shown(
        catalog.create_table(
            (*namespace, body["name"]),
            Schema.model_validate(body["schema"]),
            location=body.get("location"),
            partition_spec=PartitionSpec.model_validate(spec) if spec else UNPARTITIONED_PARTITION_SPEC,
            sort_order=SortOrder.model_validate(order) if order else UNSORTED_SORT_ORDER,
            properties=body.get("properties") or {},
        )
    )


def answer(method, path, body):
    global late
    if path == "/test/faults":
        faults[:] = body
        return {}
    if path == "/test/commits":
        return commits
    if path == "/v1/config":
        return {"defaults": {}, "overrides": {}}
    found = re.fullmatch(r"/v1/namespaces(?:/([^/]+)(/tables(?:/([^/]+)(/metrics)?)?)?)?", path)
    if not found:
        raise Answer(404, "NotFound", path)
    namespace, tables, table, report = found.groups()
    namespace = tuple(urllib.parse.unquote(namespace).split("\x1f")) if namespace else None
    if report:
        return None
    if table:
        name = (*namespace, urllib.parse.unquote(table))
        if method == "POST":
            return commit(name, body)
        if method == "DELETE":
            catalog.drop_table(name)
            return None
        loaded = shown(catalog.load_table(name))
        for waiting in late:
            try_to(*waiting)
        late = []
        return loaded
    if tables:
        if method == "POST":
            return create(namespace, body)
        identifiers = [{"namespace": list(n[:-1]), "name": n[-1]} for n in catalog.list_tables(namespace)]
        return {"identifiers": identifiers}
    if namespace:
        return {"namespace": list(namespace), "properties": catalog.load_namespace_properties(namespace)}
    if method == "POST":
        catalog.create_namespace(tuple(body["namespace"]), body.get("properties") or {})
        return {"namespace": body["namespace"], "properties": body.get("properties") or {}}
    return {"namespaces": [list(n) for n in catalog.list_namespaces()]}


ERRORS = [
    (NoSuchTableError, 404, "NoSuchTableException"),
    (NoSuchNamespaceError, 404, "NoSuchNamespaceException"),
    (TableAlreadyExistsError, 409, "AlreadyExistsException"),
    (NamespaceAlreadyExistsError, 409, "AlreadyExistsException"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def serve(self):
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        status = 200
        try:
            with lock:
                said = answer(self.command, self.path.split("?")[0], body)
        except Answer as e:
            status, said = e.status, e.body
        except ConnectionAbortedError:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        except tuple(kind for kind, _, _ in ERRORS) as e:
            status, kind = next((s, k) for of, s, k in ERRORS if isinstance(e, of))
            said = {"error": {"message": str(e), "type": kind, "code": status}}
        text = b"" if said is None or self.command == "HEAD" else json.dumps(said).encode()
        self.send_response(204 if status == 200 and not text else status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_HEAD = do_DELETE = serve


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
