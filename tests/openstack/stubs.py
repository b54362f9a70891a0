"""The parts of Neutron and Cinder that Nova and rouse talk to, in memory. Whose request it is, real Keystone says.

These are ours: they show what is asked of the two, and what is left behind in them, not how theirs behave in all else.
"""
import json
import re
import threading
import uuid
from urllib.parse import parse_qs

from keystonemiddleware import auth_token

import settings

LOCK = threading.RLock()
LISTS = {name: {} for name in "networks subnets ports floatingips security-groups".split()}
VOLUMES, ATTACHMENTS = {}, {}
NETWORK, POOL = (str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("private", "public"))
SUBNET = str(uuid.uuid5(uuid.NAMESPACE_DNS, "subnet"))
LISTS["networks"] = {
    NETWORK: {"id": NETWORK, "name": "private", "subnets": [SUBNET], "router:external": False},
    POOL: {"id": POOL, "name": "public", "subnets": [], "router:external": True},
}
for network in LISTS["networks"].values():
    network.update(admin_state_up=True, shared=network["id"] == NETWORK, tenant_id="", status="ACTIVE", mtu=1500)
LISTS["subnets"][SUBNET] = {
    "id": SUBNET, "name": "private", "network_id": NETWORK, "cidr": "192.0.2.0/24", "ip_version": 4,
    "gateway_ip": "192.0.2.1", "enable_dhcp": True, "dns_nameservers": [], "host_routes": [], "tenant_id": "",
}
GROUPS = ("default", "builders")


class Problem(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.text = status, text


def security_groups(project):
    """Every project has its own of each name."""
    for name in GROUPS:
        key = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{project}/{name}"))
        LISTS["security-groups"].setdefault(
            key, {"id": key, "name": name, "description": "", "security_group_rules": [],
                  "tenant_id": project, "project_id": project},
        )


def matches(item, query):
    for key, wanted in query.items():
        if key in ("limit", "marker", "fields", "sort_key", "sort_dir", "page_reverse"):
            continue
        if key == "fixed_ips":
            have = [f"ip_address={ip['ip_address']}" for ip in item.get("fixed_ips", [])]
            if not set(have) & set(wanted):
                return False
        elif str(item.get(key, "")).lower() not in [w.lower() for w in wanted]:
            return False
    return True


def neutron(method, path, query, body, project, admin):
    if path in ("", "/"):
        return 200, {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": "/v2.0/"}]}]}
    parts = path.strip("/").removesuffix(".json").split("/")[1:]
    kind = parts[0]
    if kind == "extensions":
        names = ("binding", "security-group", "standard-attr-description", "pagination")
        return 200, {"extensions": [{"alias": n, "name": n, "description": "", "links": []} for n in names]}
    if kind == "quotas":
        return 200, {"quota": dict.fromkeys(("port", "network", "security_group", "floatingip"), -1)}
    if kind == "routers" or kind == "qos":
        return 200, {parts[-1]: []}
    if kind == "auto-allocated-topology":
        raise Problem(409, "Deployment error: no network to allocate from")
    if kind not in LISTS:
        raise Problem(404, path)
    security_groups(project)
    items, one = LISTS[kind], kind.removesuffix("s").replace("-", "_")
    visible = {k: v for k, v in items.items() if admin or v.get("shared") or v.get("tenant_id") in (project, "")}
    if len(parts) > 1 and parts[1] not in visible:
        raise Problem(404, f"{one} {parts[1]} could not be found")
    if method == "GET" and len(parts) > 1:
        return 200, {one: visible[parts[1]]}
    if method == "GET":
        found = [v for k, v in sorted(visible.items()) if matches(v, query)]
        keys = [item["id"] for item in found]
        start = keys.index(query["marker"][0]) + 1 if query.get("marker", [""])[0] in keys else 0
        # Nova, which is the administrator here, asks for all at once.
        limit = 1000 if admin else min(settings.PAGE, int(query.get("limit", [settings.PAGE])[0]))
        answer = {kind.replace("-", "_"): found[start : start + limit]}
        if start + limit < len(found):
            href = f"/{path.strip('/')}?limit={limit}&marker={keys[start + limit - 1]}"
            answer[kind.replace("-", "_") + "_links"] = [{"rel": "next", "href": href}]
        return 200, answer
    if method == "DELETE":
        if kind == "ports":
            for address in LISTS["floatingips"].values():
                if address["port_id"] == parts[1]:
                    address.update(port_id=None, fixed_ip_address=None, status="DOWN")
        del items[parts[1]]
        return 204, None
    given = body[one]
    if method == "PUT":
        item = items[parts[1]]
        item.update(given)
        if given.get("binding:host_id"):
            item.update({"binding:vif_type": "ovs", "status": "ACTIVE"})
        if kind == "floatingips" and given.get("port_id"):
            fixed = LISTS["ports"][given["port_id"]]["fixed_ips"][0]["ip_address"]
            item.update(status="ACTIVE", fixed_ip_address=fixed)
        return 200, {one: item}
    new = {"id": str(uuid.uuid4()), "name": "", "description": "", "status": "DOWN", "admin_state_up": True}
    new.update({"tenant_id": project, **given})
    new["project_id"] = new["tenant_id"]
    if kind == "ports":
        used = {ip["ip_address"] for port in items.values() for ip in port["fixed_ips"]}
        free = next(a for a in (f"192.0.2.{n}" for n in range(10, 250)) if a not in used)
        mac = "fa:16:3e:" + ":".join(re.findall("..", new["id"].replace("-", "")[:6]))
        new.update({"fixed_ips": [{"ip_address": free, "subnet_id": SUBNET}], "mac_address": mac,
                    "binding:vif_type": "ovs" if new.get("binding:host_id") else "unbound",
                    "binding:vif_details": {}, "binding:profile": new.get("binding:profile") or {},
                    "binding:vnic_type": "normal"})
        new.setdefault("security_groups", [])
        new.setdefault("device_id", "")
    elif kind == "floatingips":
        if new["floating_network_id"] != POOL:
            raise Problem(400, "network is not external")
        new["floating_ip_address"] = f"198.51.100.{len(items) % 200 + 10}"
        new.setdefault("port_id", None)
        if new["port_id"]:
            if new["port_id"] not in LISTS["ports"]:
                raise Problem(404, f"port {new['port_id']} could not be found")
            fixed = LISTS["ports"][new["port_id"]]["fixed_ips"][0]["ip_address"]
            new.update(status="ACTIVE", fixed_ip_address=fixed)
    items[new["id"]] = new
    return 201, {one: new}


def cinder(method, path, query, body, project, admin):
    versions = [{"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0",
                 "links": [{"rel": "self", "href": "/v3/"}]}]
    if path.strip("/") in ("", "v3"):
        return 200, {"versions": versions}
    parts = path.strip("/").split("/")[1:]
    # Clients may put the project's id in front.
    if re.fullmatch("[0-9a-f]{32}", parts[0]):
        parts = parts[1:]
    kind, items = parts[0], {"volumes": VOLUMES, "attachments": ATTACHMENTS}.get(parts[0])
    if items is None:
        raise Problem(404, path)
    if len(parts) > 1 and parts[1] == "detail":
        parts.pop()
    if len(parts) > 1 and parts[1] not in items:
        raise Problem(404, f"{kind} {parts[1]} could not be found")
    one = kind.removesuffix("s")
    if method == "GET":
        if len(parts) > 1:
            return 200, {one: items[parts[1]]}
        mine = [v for v in items.values() if admin or v.get("os-vol-tenant-attr:tenant_id") == project]
        return 200, {kind: mine}
    if method == "POST" and parts[2:] == ["metadata"]:
        items[parts[1]]["metadata"].update(body["metadata"])
        return 200, {"metadata": items[parts[1]]["metadata"]}
    if method == "POST" and parts[2:] == ["action"]:
        if "os-complete" in body:
            VOLUMES[items[parts[1]]["volume_id"]]["status"] = "in-use"
        return 202 if kind == "volumes" else 204, None
    if method == "DELETE":
        if kind == "attachments":
            gone = items.pop(parts[1])
            volume = VOLUMES.get(gone["volume_id"])
            if volume:
                volume.update(status="available", attachments=[])
            return 200, {"attachments": []}
        if items[parts[1]]["status"] == "in-use":
            raise Problem(400, "volume status must be available")
        del items[parts[1]]
        return 202, None
    given = body[one]
    if kind == "attachments":
        if method == "PUT":
            item = items[parts[1]]
            item["connection_info"] = {"driver_volume_type": "fake", "data": {}}
        else:
            volume = VOLUMES[given["volume_uuid"]]
            item = {"id": str(uuid.uuid4()), "volume_id": volume["id"], "instance": given["instance_uuid"],
                    "status": "reserved", "connection_info": {}, "attach_mode": "rw"}
            items[item["id"]] = item
            volume["attachments"] = [{"server_id": item["instance"], "attachment_id": item["id"],
                                      "volume_id": volume["id"], "device": "/dev/vda"}]
        return 200, {one: item}
    new = {"id": str(uuid.uuid4()), "name": given.get("name") or "", "size": given["size"], "status": "available",
           "description": given.get("description") or "", "metadata": given.get("metadata") or {}, "attachments": [],
           "availability_zone": given.get("availability_zone") or "nova", "volume_type": "fake", "encrypted": False,
           "volume_image_metadata": {"image_id": given.get("imageRef")}, "os-vol-tenant-attr:tenant_id": project,
           "created_at": "2026-01-01T00:00:00.000000", "bootable": "true", "multiattach": False, "snapshot_id": None}
    items[new["id"]] = new
    return 202, {one: new}


def application(answer, login):
    """One of the two as a WSGI application, which Keystone's own middleware guards."""

    def guarded(environ, start):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        roles = environ.get("HTTP_X_ROLES", "").split(",")
        try:
            with LOCK:
                status, content = answer(
                    environ["REQUEST_METHOD"], environ["PATH_INFO"], parse_qs(environ.get("QUERY_STRING", "")),
                    json.loads(body or "null"), environ.get("HTTP_X_PROJECT_ID", ""), "admin" in roles,
                )
        except Problem as problem:
            status, content = problem.status, {"NeutronError": {"type": "", "message": problem.text, "detail": ""}}
        text = b"" if content is None else json.dumps(content).encode()
        start(f"{status} Stub", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]

    checked = auth_token.AuthProtocol(guarded, login)

    def entry(environ, start):
        # The list of versions is for everyone.
        return (guarded if environ["PATH_INFO"].strip("/") in ("", "v3") else checked)(environ, start)

    return entry
