"""The published client of the cloud API against a node: everything it can do with flow logs.

acceptance.py STEP HOST CA DATACENTER SERVER NIC NATGATEWAY NLB ALB [IDS as JSON]
Steps: create, rename, delete, refused. Each prints JSON; any surprise is an exception.
"""
import json
import re
import sys

import ionoscloud
from ionoscloud.rest import ApiException

STEP, HOST, CA, DC, SERVER, NIC, NAT, NLB, ALB, *REST = sys.argv[1:]
IDS = json.loads(REST[0]) if REST else {}

configuration = ionoscloud.Configuration(host=HOST, username="ann", password="correct horse battery")
configuration.ssl_ca_cert = CA
client = ionoscloud.ApiClient(configuration)


class Kind:
    """One kind of parent: its API methods differ in name only."""

    def __init__(self, api, stem, find, path):
        self.api, self.stem, self.find, self.path = api, stem, find, path

    def call(self, verb, *args, **kwargs):
        return getattr(self.api, f"{self.stem}_{verb}_with_http_info")(*self.path, *args, **kwargs)


KINDS = {
    "nic": Kind(ionoscloud.FlowLogsApi(client), "datacenters_servers_nics_flowlogs", "find_by_id", (DC, SERVER, NIC)),
    "nat": Kind(ionoscloud.NATGatewaysApi(client), "datacenters_natgateways_flowlogs", "find_by_flow_log_id", (DC, NAT)),
    "nlb": Kind(
        ionoscloud.NetworkLoadBalancersApi(client), "datacenters_networkloadbalancers_flowlogs", "find_by_flow_log_id", (DC, NLB)
    ),
    "alb": Kind(
        ionoscloud.ApplicationLoadBalancersApi(client), "datacenters_applicationloadbalancers_flowlogs", "find_by_flow_log_id", (DC, ALB)
    ),
}


def wait(headers):
    """As the client's own documentation has it."""
    request = re.search("/requests/([-A-Fa-f0-9]+)/", headers["Location"]).group(1)
    client.wait_for_completion(request, timeout=30, initial_wait=0.1, scaleup=100)


def properties(name):
    return ionoscloud.FlowLogProperties(name=name, action="ALL", direction="BIDIRECTIONAL", bucket="flows/sdk")


def create():
    # What a client waits for before it attaches something.
    assert ionoscloud.DataCentersApi(client).datacenters_find_by_id(DC, depth=1).metadata.state == "AVAILABLE"
    assert ionoscloud.ServersApi(client).datacenters_servers_find_by_id(DC, SERVER).metadata.state == "AVAILABLE"
    nics = ionoscloud.NetworkInterfacesApi(client)
    assert nics.datacenters_servers_nics_find_by_id(DC, SERVER, NIC).metadata.state == "AVAILABLE"
    assert [n.id for n in nics.datacenters_servers_nics_get(DC, SERVER, pretty=True, depth=5, limit=3).items] == [NIC]
    assert KINDS["nat"].api.datacenters_natgateways_find_by_nat_gateway_id(DC, NAT).metadata.state == "AVAILABLE"
    nlb = KINDS["nlb"].api.datacenters_networkloadbalancers_find_by_network_load_balancer_id(DC, NLB)
    assert nlb.metadata.state == "AVAILABLE" and nlb.properties.listener_lan == 0
    assert [g.id for g in KINDS["nat"].api.datacenters_natgateways_get(DC).items] == [NAT]
    ids = {}
    for name, kind in KINDS.items():
        made, status, headers = kind.call("post", ionoscloud.FlowLog(properties=properties(f"sdk-{name}")))
        assert status == 202 and made.type == "flow-log" and made.metadata.state == "BUSY", made
        assert made.metadata.created_by == "ann" and made.metadata.etag and made.metadata.created_date
        wait(headers)
        found, status, _ = kind.call(kind.find, made.id, depth=2)
        assert status == 200 and found.metadata.state == "AVAILABLE" and found.href.endswith(made.id), found
        assert found.properties == properties(f"sdk-{name}"), found
        # The client's methods for balancers have no pages.
        page = {"limit": 10, "offset": 0} if name in ("nic", "nat") else {}
        listed, status, _ = kind.call("get", depth=1, **page)
        assert [f.id for f in listed.items] == [made.id] and listed.type == "collection"
        assert listed.limit == page.get("limit", 1000) and listed.links is not None
        ids[name] = made.id
    return ids


def rename():
    for name, kind in KINDS.items():
        changed, status, headers = kind.call("patch", IDS[name], ionoscloud.FlowLogProperties(
            name=f"new-{name}", action="ALL", direction="BIDIRECTIONAL", bucket="flows/sdk"))
        assert status == 202 and changed.properties.name == f"new-{name}", changed
        wait(headers)
        # All fields at once, the name back and forth.
        body = ionoscloud.FlowLogPut(properties=properties(f"put-{name}"))
        changed, status, headers = kind.call("put", IDS[name], body)
        assert status == 202, changed
        wait(headers)
        found = kind.call(kind.find, IDS[name])[0]
        assert found.properties.name == f"put-{name}" and found.metadata.state == "AVAILABLE", found
    return IDS


def refusal(status, call, *words):
    try:
        call()
    except ApiException as e:
        body = json.loads(e.body)
        assert e.status == status == body["httpStatus"], (status, e.status, e.body)
        text = " ".join(m["message"] for m in body["messages"])
        assert body["messages"][0]["errorCode"] and all(w in text for w in words), text
        return
    raise AssertionError(f"was not refused with {status}")


def refused():
    nic = KINDS["nic"]
    # The client itself checks enums where it is told; a dict goes out as it is.
    post = lambda **p: lambda: nic.call("post", {"properties": p})
    good = dict(name="x", action="ALL", direction="INGRESS", bucket="flows")
    refusal(422, post(**dict(good, action="bogus", direction="UP", name="a/b", bucket="B")), "bogus", "UP", "a/b", "B")
    refusal(422, post(name="x"), "action", "direction", "bucket")
    refusal(409, post(**good), IDS["nic"])
    refusal(422, lambda: nic.call("patch", IDS["nic"], {"action": "REJECTED"}), "active flow log keeps")
    refusal(404, lambda: nic.call("find_by_id", "00000000-0000-4000-8000-00000000ffff"), "does not exist")
    refusal(404, lambda: nic.call("find_by_id", IDS["nat"]), "does not exist")
    refusal(404, lambda: nic.call("find_by_id", "not-a-uuid"), "not-a-uuid")
    wrong = ionoscloud.Configuration(host=HOST, username="ann", password="wrong")
    wrong.ssl_ca_cert = CA
    stranger = ionoscloud.FlowLogsApi(ionoscloud.ApiClient(wrong))
    refusal(401, lambda: stranger.datacenters_servers_nics_flowlogs_get(DC, SERVER, NIC), "Unauthorized")
    # A bucket that is not there is found by trying it: accepted, then failed, and said why.
    wait_failed = None
    kind = KINDS["alb"]
    _, _, headers = kind.call("delete", IDS["alb"])
    wait(headers)
    made, _, headers = kind.call("post", ionoscloud.FlowLog(properties=ionoscloud.FlowLogProperties(
        name="x", action="ALL", direction="INGRESS", bucket="no-such-bucket")))
    try:
        wait(headers)
    except ionoscloud.exceptions.ApiFailedRequest as e:
        wait_failed = str(e)
    assert wait_failed and "no-such-bucket" in wait_failed and "does not exist" in wait_failed, wait_failed
    assert kind.call(kind.find, made.id)[0].metadata.state == "FAILED"
    # Put right, it is tried again.
    _, _, headers = kind.call("put", made.id, ionoscloud.FlowLogPut(properties=properties("sdk-alb")))
    wait(headers)
    assert kind.call(kind.find, made.id)[0].metadata.state == "AVAILABLE"
    return dict(IDS, alb=made.id)


def delete():
    for name, kind in KINDS.items():
        _, status, headers = kind.call("delete", IDS[name])
        assert status == 202
        wait(headers)
        refusal(404, lambda: kind.call(kind.find, IDS[name]), "does not exist")
        assert kind.call("get")[0].items == []
    return {}


print(json.dumps({"create": create, "rename": rename, "refused": refused, "delete": delete}[STEP]()))
