"""The configuration files of the OpenStack services of the tests, all state of one cloud below one directory."""
import os
import uuid
from pathlib import Path

HOST = "hypervisor"
REGION = "RegionOne"
# Number of items on a page of a list: so few that a client that does not read the next page misses some.
PAGE = 2
# What Nova and the metadata proxy of the tests share, as Nova and Neutron do in a real cloud.
PROXY_SECRET = "between-nova-and-its-proxy"
# Where each service listens, in the order of the ports that a cloud is given.
SERVICES = ("identity", "image", "placement", "compute", "network", "volume", "metadata")


def node_uuid():
    """The compute node's identity, which has to stay the same on the same database."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, HOST))


def endpoints(ports):
    """The URL of each service."""
    at = {name: f"http://127.0.0.1:{ports[name]}" for name in SERVICES}
    return {**at, "identity": at["identity"] + "/v3", "compute": at["compute"] + "/v2.1", "volume": at["volume"] + "/v3"}


def write(directory, ports, packages):
    """Writes every file; `packages` is the prefix that the services are installed under."""
    root = Path(directory)
    urls = endpoints(ports)
    for below in (
        "etc/keystone etc/glance etc/nova etc/placement log db keystone/fernet keystone/credential glance/images "
        "glance/staging glance/tasks nova/locks nova/instances".split()
    ):
        (root / below).mkdir(parents=True, exist_ok=True)
    for keys in ("fernet", "credential"):
        os.chmod(root / "keystone" / keys, 0o700)

    def login(user):
        return {
            "auth_url": urls["identity"],
            "auth_type": "password",
            "project_domain_id": "default",
            "user_domain_id": "default",
            "project_name": "service",
            "username": user,
            "password": "secret",
            "region_name": REGION,
        }

    def sections(path, service, parts):
        parts.setdefault("DEFAULT", {}).update(log_file=root / f"log/{service}.log", use_stderr="false")
        lines = []
        for name, values in parts.items():
            lines.append(f"[{name}]")
            lines += [f"{key}={value}" for key, value in values.items()]
        (root / "etc" / path).write_text("\n".join(lines) + "\n")

    database = "sqlite:///" + str(root / "db")
    sections(
        "keystone/keystone.conf",
        "keystone",
        {
            "database": {"connection": f"{database}/keystone.db"},
            "fernet_tokens": {"key_repository": root / "keystone/fernet"},
            "credential": {"key_repository": root / "keystone/credential"},
            # Every call of every service has a token looked at, which takes half a second without.
            "cache": {"enabled": "true", "backend": "dogpile.cache.memory"},
            "identity": {"password_hash_rounds": 4},
        },
    )
    sections(
        "glance/glance-api.conf",
        "glance",
        {
            "DEFAULT": {"enabled_backends": "fs:file", "api_limit_max": PAGE},
            "database": {"connection": f"{database}/glance.db"},
            "glance_store": {"default_backend": "fs"},
            "fs": {"filesystem_store_datadir": root / "glance/images"},
            "os_glance_staging_store": {"filesystem_store_datadir": root / "glance/staging"},
            "os_glance_tasks_store": {"filesystem_store_datadir": root / "glance/tasks"},
            "paste_deploy": {"flavor": "keystone"},
            "keystone_authtoken": login("glance"),
        },
    )
    sections(
        "placement/placement.conf",
        "placement",
        {
            "placement_database": {"connection": f"{database}/placement.db", "sync_on_startup": "true"},
            "api": {"auth_strategy": "keystone"},
            "keystone_authtoken": login("placement"),
        },
    )
    sections(
        "nova/nova.conf",
        "nova",
        {
            "DEFAULT": {
                "state_path": root / "nova",
                "transport_url": "fake:///",
                "compute_driver": "steered.SteeredDriver",
                "host": HOST,
                "report_interval": 5,
                "periodic_fuzzy_delay": 0,
                "service_down_time": 30,
                # A guest that powers itself off is seen soon.
                "sync_power_state_interval": 2,
            },
            "api": {"local_metadata_per_cell": "false", "max_limit": PAGE},
            "api_database": {"connection": f"{database}/nova_api.db"},
            "database": {"connection": f"{database}/nova_cell1.db"},
            "keystone_authtoken": login("nova"),
            "service_user": {"send_service_user_token": "true", **login("nova")},
            "placement": login("nova"),
            "glance": {"api_servers": urls["image"]},
            "neutron": {
                "service_metadata_proxy": "true",
                "metadata_proxy_shared_secret": PROXY_SECRET,
                **login("nova"),
            },
            "cinder": {"catalog_info": "volumev3:cinder:publicURL", **login("nova")},
            "oslo_concurrency": {"lock_path": root / "nova/locks"},
            "scheduler": {"workers": 1},
            "conductor": {"workers": 1},
            "vnc": {"enabled": "false"},
            "filter_scheduler": {"track_instance_changes": "false"},
        },
    )
    for path in ("glance/glance-api-paste.ini", "nova/api-paste.ini"):
        (root / "etc" / path).write_bytes((Path(packages) / "etc" / path).read_bytes())
    (root / "nova/compute_id").write_text(node_uuid() + "\n")
