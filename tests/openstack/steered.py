"""Nova's fake driver, steered by a server's own metadata, with guests that are processes.

    fake_spawn_delay=SECONDS   how long it takes to boot
    fake_spawn_error=TEXT      it does not boot: state ERROR, with a fault of Nova's own making

    fake_guest=KIND            what runs on it

Where the environment has ROUSE_TESTS_GUEST, that program is run as the guest: its arguments are the server's UUID, the
address of its metadata service (Nova's own, behind a proxy that does what Neutron's does), the file of its config drive
(made by Nova's code; empty where none was asked for), and the kind. What it prints is the console; when it ends the
server is powered off.
"""
import ctypes
import hashlib
import hmac
import http.client
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nova.conf
from nova import exception
from nova.api.metadata import base as instance_metadata
from nova.compute import power_state
from nova.virt import configdrive, fake, hardware

import settings

METADATA_PORT = 0
PR_SET_PDEATHSIG = 1


def with_parent():
    """In a new process: end when Nova does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class MetadataProxy(BaseHTTPRequestHandler):
    """Says to Nova whose request it is, as Neutron's metadata agent does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        signature = hmac.new(settings.PROXY_SECRET.encode(), server.uuid.encode(), hashlib.sha256).hexdigest()
        nova = http.client.HTTPConnection("127.0.0.1", METADATA_PORT, timeout=30)
        headers = {
            "X-Instance-ID": server.uuid,
            "X-Instance-ID-Signature": signature,
            "X-Tenant-ID": server.project,
            "X-Forwarded-For": "127.0.0.1",
        }
        nova.request("GET", self.path, headers=headers)
        answer = nova.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type") or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Guest:
    """A process in the place of a virtual machine."""

    def __init__(self, program, instance, drive, kind):
        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), MetadataProxy)
        self.proxy.uuid, self.proxy.project = instance.uuid, instance.project_id
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        home = Path(nova.conf.CONF.state_path) / "instances" / instance.uuid
        home.mkdir(exist_ok=True)
        self.console = home / "console"
        with open(self.console, "wb") as out:
            self.process = subprocess.Popen(
                [program, instance.uuid, f"http://127.0.0.1:{self.proxy.server_port}", drive, kind],
                cwd=home,
                start_new_session=True,
                preexec_fn=with_parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.proxy.shutdown()
        self.proxy.server_close()


class SteeredDriver(fake.FakeDriver):
    guests = {}

    # The same identity at every start, so that Nova can be started again on the same database.
    def get_available_resource(self, nodename):
        return dict(super().get_available_resource(nodename), uuid=settings.node_uuid())

    def get_nodenames_by_uuid(self, refresh=False):
        return {settings.node_uuid(): name for name in self._nodes}

    def spawn(self, context, instance, image_meta, injected_files, admin_password, allocations, **more):
        wishes = instance.metadata or {}
        time.sleep(float(wishes.get("fake_spawn_delay", 0)))
        if wishes.get("fake_spawn_error"):
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason=wishes["fake_spawn_error"])
        super().spawn(context, instance, image_meta, injected_files, admin_password, allocations, **more)
        program = os.environ.get("ROUSE_TESTS_GUEST")
        if program:
            drive = ""
            if configdrive.required_by(instance):
                drive = str(Path(nova.conf.CONF.state_path) / "instances" / (instance.uuid + ".config"))
                about = instance_metadata.InstanceMetadata(
                    instance, content=injected_files, extra_md={}, network_info=more.get("network_info")
                )
                with configdrive.ConfigDriveBuilder(instance_md=about) as builder:
                    builder.make_drive(drive)
            self.guests[instance.uuid] = Guest(program, instance, drive, wishes.get("fake_guest", ""))

    def destroy(self, context, instance, *rest, **more):
        guest = self.guests.pop(instance.uuid, None)
        if guest:
            guest.end()
        return super().destroy(context, instance, *rest, **more)

    def get_info(self, instance, use_cache=True):
        guest = self.guests.get(instance.uuid)
        if guest and guest.process.poll() is not None:
            return hardware.InstanceInfo(state=power_state.SHUTDOWN)
        return super().get_info(instance, use_cache)

    def get_console_output(self, context, instance):
        guest = self.guests.get(instance.uuid)
        return guest.console.read_bytes() if guest else super().get_console_output(context, instance)
