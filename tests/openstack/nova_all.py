"""nova_all.py DIRECTORY COMPUTE_PORT METADATA_PORT: Nova in one process, with its own code for everything.

API, conductor, scheduler, compute and the metadata API talk to each other through oslo.messaging's in-memory transport.
What is not Nova's own is the driver (steered.py): no hypervisor is there.
"""
import os
import sys
import threading
import warnings

warnings.filterwarnings("ignore")
directory, compute_port, metadata_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
os.environ["OS_NOVA_CONFIG_DIR"] = directory + "/etc/nova"
sys.argv = ["nova"]
import sqlite_files

sqlite_files.IMMEDIATE = True
# The first parses the configuration and sets up RPC and the objects.
from nova.wsgi.osapi_compute import application as compute
from nova.wsgi.metadata import application as metadata
import nova.conf
import os_brick
import os_vif
from nova import service
from nova.compute import rpcapi as compute_rpcapi
from nova.conductor import rpcapi as conductor_rpcapi
from nova.scheduler import rpcapi as scheduler_rpcapi

os_vif.initialize()
os_brick.setup(nova.conf.CONF)
import steered

steered.METADATA_PORT = metadata_port
# Nova looks for drivers below nova.virt only.
sys.modules["nova.virt.steered"] = steered
running = []
for binary, topic, more in (
    ("nova-conductor", conductor_rpcapi.RPC_TOPIC, {}),
    ("nova-scheduler", scheduler_rpcapi.RPC_TOPIC, {}),
    ("nova-compute", compute_rpcapi.RPC_TOPIC, {"topic_alt": compute_rpcapi.RPC_TOPIC_ALT}),
):
    one = service.Service.create(binary=binary, topic=topic, **more)
    one.start()
    running.append(one)

import waitress


def serve(application, port):
    waitress.serve(application, host="127.0.0.1", port=port, threads=8)


threading.Thread(target=serve, args=(metadata, metadata_port), daemon=True).start()
serve(compute, compute_port)
