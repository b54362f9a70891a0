"""cloud.py golden DIRECTORY | serve GOLDEN DIRECTORY [GUEST]: an OpenStack cloud on loopback.

`golden` makes the state of a cloud once: databases, users, flavors, images. `serve` copies it, starts the services on
free ports, and prints their addresses as one line of JSON when a host is ready to take servers. It ends with its
standard input, and everything that it started ends with it.
"""
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import settings

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
# For everything that has to happen within one start, on a machine that does other things as well.
PATIENCE = 240
# Users, their passwords, and the projects that each belongs to.
USERS = {"ci": ("ci-secret", ("rouse", "small", "other"))}
FLAVORS = (("1", "m1.small", 512), ("2", "m1.medium", 2048), ("9", "m1.huge", 99_999_999))
IMAGES = (
    ("rouse-base-1", {"rouse_agent": "0.1.0"}),
    ("rouse-base-2", {"rouse_agent": "0.2.0"}),
    ("something-else", {}),
)


class Cloud:
    def __init__(self, directory, guest=None):
        self.directory, self.guest = Path(directory), guest
        self.children = []
        self.ports = {}
        for name in settings.SERVICES:
            # All are held until the last is chosen, so that no two are the same.
            self.ports[name] = socket.create_server(("127.0.0.1", 0))
        for name, held in self.ports.items():
            self.ports[name] = held.getsockname()[1]
            held.close()
        self.urls = settings.endpoints(self.ports)
        self.directory.mkdir(parents=True, exist_ok=True)
        settings.write(self.directory, self.ports, Path(sys.prefix))

    def environment(self):
        more = {"PYTHONWARNINGS": "ignore", "OS_NOVA_DISABLE_EVENTLET_PATCHING": "1"}
        if self.guest:
            more["ROUSE_TESTS_GUEST"] = self.guest
        return {**os.environ, **more}

    def start(self, *arguments):
        def with_parent():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)

        log = open(self.directory / "log" / "output.log", "ab")
        child = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=HERE, env=self.environment(), preexec_fn=with_parent,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        self.children.append(child)

    def manage(self, program, config, *arguments):
        done = subprocess.run(
            [BIN / program, "--config-file", self.directory / "etc" / config, *map(str, arguments)],
            env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )
        if done.returncode:
            sys.exit(f"{program} {arguments[0]} failed:\n{done.stdout}{done.stderr}")

    def answers(self, service):
        def probe():
            for child in self.children:
                if child.poll() is not None:
                    sys.exit(f"a service has ended: see {self.directory}/log")
            try:
                with socket.create_connection(("127.0.0.1", self.ports[service]), timeout=2):
                    return True
            except OSError:
                return False

        wait(probe, service)

    def start_apis(self):
        for name, service in (("keystone", "identity"), ("glance", "image"), ("placement", "placement")):
            self.start("service.py", name, self.ports[service], self.directory)
        self.answers("identity")

    def start_nova(self):
        # Its neighbours first: it asks all of them while it starts.
        serve_stubs(self.ports, self.urls)
        for service in ("placement", "network", "volume"):
            self.answers(service)
        self.start("nova_all.py", self.directory, self.ports["compute"], self.ports["metadata"])
        for service in ("image", "compute", "metadata"):
            self.answers(service)

    def stop(self):
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait(holds, what):
    for _ in range(PATIENCE * 10):
        if holds():
            return
        time.sleep(0.1)
    sys.exit(f"not in time: {what}")


def serve_stubs(ports, urls):
    import logging

    import waitress

    import stubs

    # It does not know the options of its own plugins, and says so for each.
    logging.getLogger("keystonemiddleware").setLevel(logging.ERROR)
    login = {
        "auth_type": "password", "auth_url": urls["identity"], "username": "nova", "password": "secret",
        "project_name": "service", "user_domain_id": "default", "project_domain_id": "default",
    }
    for name, answer in (("network", stubs.neutron), ("volume", stubs.cinder)):
        served = waitress.create_server(stubs.application(answer, login), host="127.0.0.1", port=ports[name])
        threading.Thread(target=served.run, daemon=True).start()


def admin(urls):
    """A session of the cloud's administrator."""
    from keystoneauth1 import session
    from keystoneauth1.identity import v3

    return session.Session(
        v3.Password(
            auth_url=urls["identity"], username="admin", password="secret", project_name="admin",
            user_domain_id="default", project_domain_id="default",
        )
    )


def seed_users(urls):
    keystone = admin(urls)

    def make(kind, one, **values):
        return keystone.post(f"{urls['identity']}/{kind}", json={one: values}).json()[one]["id"]

    def grant(project, user, role):
        keystone.put(f"{urls['identity']}/projects/{project}/users/{user}/roles/{roles[role]}")

    roles = {r["name"]: r["id"] for r in keystone.get(urls["identity"] + "/roles").json()["roles"]}
    service = make("projects", "project", name="service", domain_id="default")
    for name in ("nova", "glance", "placement"):
        user = make("users", "user", name=name, password="secret", domain_id="default")
        for role in ("admin", "service"):
            grant(service, user, role)
    projects = {}
    for name, (password, members) in USERS.items():
        user = make("users", "user", name=name, password=password, domain_id="default")
        for project in members:
            if project not in projects:
                projects[project] = make("projects", "project", name=project, domain_id="default")
            grant(projects[project], user, "member")
    for name, kind, service in (
        ("glance", "image", "image"), ("placement", "placement", "placement"), ("nova", "compute", "compute"),
        ("neutron", "network", "network"), ("cinder", "volumev3", "volume"),
    ):
        key = make("services", "service", name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            make("endpoints", "endpoint", service_id=key, interface=interface, region_id=settings.REGION,
                 url=urls[service])
    return projects


def seed_nova(urls, projects):
    cloud = admin(urls)
    for key, name, ram in FLAVORS:
        flavor = {"name": name, "ram": ram, "vcpus": 1, "disk": 1, "id": key}
        cloud.post(urls["compute"] + "/flavors", json={"flavor": flavor})
    for project, quota in (("small", {"instances": 1}), ("rouse", {"ram": -1, "cores": -1, "instances": -1})):
        cloud.put(f"{urls['compute']}/os-quota-sets/{projects[project]}", json={"quota_set": quota})
    for name, properties in IMAGES:
        image = {"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public", **properties}
        key = cloud.post(urls["image"] + "/v2/images", json=image).json()["id"]
        head = {"Content-Type": "application/octet-stream"}
        cloud.put(f"{urls['image']}/v2/images/{key}/file", data=b"x" * 1024, headers=head)
        # Glance tells the time in whole seconds, and which is newer must be plain.
        time.sleep(1.1)


def host_is_up(urls):
    from keystoneauth1.exceptions import ClientException

    cloud = admin(urls)

    def up():
        try:
            services = cloud.get(urls["compute"] + "/os-services").json()["services"]
        except ClientException:
            return False
        return sum(s["state"] == "up" for s in services) >= 3

    wait(up, "a host")


def golden(directory):
    work = Path(str(directory) + ".new")
    shutil.rmtree(work, ignore_errors=True)
    cloud = Cloud(work)
    try:
        database = f"sqlite:///{work}/db"
        user = str(os.getuid()), str(os.getgid())
        keystone = "keystone-manage", "keystone/keystone.conf"
        nova = "nova-manage", "nova/nova.conf"
        chores = [
            threading.Thread(target=run, args=(cloud.manage, *chore))
            for chore in (
                [
                    (*keystone, "db_sync"),
                    (*keystone, "fernet_setup", "--keystone-user", user[0], "--keystone-group", user[1]),
                    (*keystone, "credential_setup", "--keystone-user", user[0], "--keystone-group", user[1]),
                    (*keystone, "bootstrap", "--bootstrap-password", "secret", "--bootstrap-region-id",
                     settings.REGION, *(word for kind in ("admin", "internal", "public")
                                        for word in (f"--bootstrap-{kind}-url", cloud.urls["identity"] + "/"))),
                ],
                [("glance-manage", "glance/glance-api.conf", "db_sync")],
                [
                    (*nova, "api_db", "sync"),
                    (*nova, "cell_v2", "map_cell0", "--database_connection", f"{database}/nova_cell0.db"),
                    (*nova, "db", "sync"),
                    (*nova, "cell_v2", "create_cell", "--name", "cell1", "--transport-url", "fake:///",
                     "--database_connection", f"{database}/nova_cell1.db"),
                ],
            )
        ]
        for chore in chores:
            chore.start()
        for chore in chores:
            chore.join()
        if FAILED:
            sys.exit(FAILED[0])
        cloud.start_apis()
        projects = seed_users(cloud.urls)
        cloud.start_nova()
        seed_nova(cloud.urls, projects)
        host_is_up(cloud.urls)
        cloud.manage(*nova, "cell_v2", "discover_hosts")
    finally:
        cloud.stop()
    # Where it was made, and on which ports: `serve` puts its own in the place of both.
    (work / "made.json").write_text(json.dumps({"directory": str(work), "ports": cloud.ports}))
    work.rename(directory)


FAILED = []


def run(manage, *chore):
    for words in chore:
        try:
            manage(*words)
        except SystemExit as failure:
            FAILED.append(str(failure))
            return


def move(directory, ports):
    """Puts the new directory and ports into the databases of a copied state."""
    made = json.loads((directory / "made.json").read_text())
    with sqlite3.connect(directory / "db/keystone.db") as keystone:
        for name, port in made["ports"].items():
            keystone.execute("UPDATE endpoint SET url = replace(url, ?, ?)", (f":{port}/", f":{ports[name]}/!"))
            keystone.execute(
                "UPDATE endpoint SET url = ? WHERE url = ?",
                (f"http://127.0.0.1:{ports[name]}", f"http://127.0.0.1:{port}"),
            )
        keystone.execute("UPDATE endpoint SET url = replace(url, '/!', '/')")
    with sqlite3.connect(directory / "db/nova_api.db") as nova:
        nova.execute(
            "UPDATE cell_mappings SET database_connection = replace(database_connection, ?, ?)",
            (made["directory"], str(directory)),
        )


def serve(state, directory, guest=None):
    # Who asks Nova gives up after 35 s, and it is one process: it goes before what other tests compute. Only root may.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    directory = Path(directory).resolve()
    shutil.copytree(state, directory, dirs_exist_ok=True)
    cloud = Cloud(directory, guest)
    move(directory, cloud.ports)
    for log in (directory / "log").iterdir():
        log.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        cloud.start_apis()
        cloud.start_nova()
        host_is_up(cloud.urls)
        print(json.dumps(cloud.urls), flush=True)
        sys.stdin.read()
    finally:
        cloud.stop()


if __name__ == "__main__":
    {"golden": golden, "serve": serve}[sys.argv[1]](*sys.argv[2:])
