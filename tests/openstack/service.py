"""service.py NAME PORT DIRECTORY: one service's API under waitress, in one process.

waitress rather than a server of many processes: the databases are files of SQLite, and all state must be in one place.
"""
import os
import sys
import warnings

warnings.filterwarnings("ignore")
name, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# The services parse the command line themselves.
sys.argv = [name]
import sqlite_files

if name == "keystone":
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = directory + "/etc/keystone/keystone.conf"
    from keystone.wsgi.api import application
elif name == "glance":
    os.environ["OS_GLANCE_CONFIG_DIR"] = directory + "/etc/glance"
    from glance.wsgi.api import application
elif name == "placement":
    os.environ["OS_PLACEMENT_CONFIG_DIR"] = directory + "/etc/placement"
    from placement.wsgi.api import application
else:
    sys.exit(f"unknown service {name}")

import waitress

# One thread, where a transaction reads before it writes (Keystone) or has another within (Placement): SQLite would have
# two of them wait for each other.
waitress.serve(application, host="127.0.0.1", port=port, threads=4 if name == "glance" else 1)
