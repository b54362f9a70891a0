"""EC2 for tests: moto's server with additions that it lacks, and a metadata service (IMDSv2) for each instance.

    server.py        prints {"port": N} once it serves, and ends when its standard input does
    server.py PATH   prints {} once it listens at this unix socket; whoever connects gets {"port": N} of a server of its
                     own, which has its own state and ends with the connection. moto is loaded once for all of them.

What is moto's is close to AWS where tests have compared it; what is patched here is OURS, not AWS's, and a test that rests
on it tests rouse against our reading of AWS's documentation:
  - client tokens: the same token with the same call is the same instance, with another call IdempotentParameterMismatch;
  - states that take time, and instances that are listed late (AWS's eventual consistency);
  - spot: recent prices that can be set; RunInstances below the market price is refused (SpotMaxPriceTooLow), and leaves a
    spot request behind; AWS's own request may close by itself where ours stays open until it is cancelled;
  - credentials: one key works, every other is AuthFailure;
  - console output, images added while it runs, StateReason of an instance that was shut down from inside;
  - an instance "boots" by running a command of the test's; the instance ends with it, as with a shutdown from inside;
    a stopped one is killed, a hibernated one gets SIGSTOP, and SIGCONT when it is started again;
  - what may be stopped, started and given other user data in which state, and who may be hibernated;
  - identity documents are signed by an authority of the test's.

PUT /_ctl takes settings as JSON (see DEFAULTS), DELETE /_ctl restores them, GET /_instances tells what was made,
POST /_images adds an image, and POST /_imds starts a metadata service that says what it is given (path to text).
"""

import base64
import copy
import datetime
import http.server
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

os.environ["MOTO_AMIS_PATH"] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images.json")
os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "1"
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "1"
os.environ["MOTO_ENABLE_KEYPAIR_VALIDATION"] = "1"
os.environ.setdefault("AWS_ACCESS_KEY_ID", "unused")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "unused")

from moto.core.responses import ActionResult  # noqa: E402
from moto.core.utils import utcnow  # noqa: E402
from moto.ec2 import utils as ec2_utils  # noqa: E402
from moto.ec2.exceptions import EC2ClientError  # noqa: E402
from moto.ec2.models import ec2_backends  # noqa: E402
from moto.ec2.models import amis, instances, spot_requests  # noqa: E402
from moto.ec2.responses import general as general_api  # noqa: E402
from moto.ec2.responses import instances as instances_api  # noqa: E402
from moto.ec2.responses import spot_instances as spot_api  # noqa: E402
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

ACCOUNT = "123456789012"
DEFAULTS = {
    # Seconds that each passing state takes.
    "delay": {"pending": 0.3, "stopping": 0.3, "shutting-down": 0.3},
    # Seconds until a new instance is listed.
    "lag": 0,
    # Prices of the last 24 hours by type, oldest first.
    "spot_prices": {},
    # Status of spot requests that are refused whatever they bid.
    "spot_status": None,
    # The one access key that works; none: every key.
    "key": None,
    # What an instance runs, and with which environment; {imds} and {instance} are filled in.
    "boot": None,
    "console": "",
    # Whether AWS says that no instance is ready to be hibernated.
    "hibernation_refused": False,
    # PEM files that identity documents are signed with.
    "signer": None,
    # What the metadata service of an instance says beside the usual: path to text, by instance id, or by * for all.
    "metadata": {},
}
settings = copy.deepcopy(DEFAULTS)
lock = threading.RLock()


# ------------------------------------------------------------------------------------------------------- states in time

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
VIA = {"running": "pending", "stopped": "stopping", "terminated": "shutting-down"}


class PlainState:
    def __init__(self, name, code):
        self.name, self.code = name, code


class TimedState:
    """Goes to the state that it was set to, through the one that comes before."""

    def __init__(self, name="pending", _code=0):
        self.target, self.due = None, 0
        self.name = name

    def __copy__(self):
        return PlainState(self.name, self.code)

    @property
    def name(self):
        passing = VIA.get(self.target)
        return passing if passing and time.monotonic() < self.due else self.target

    @name.setter
    def name(self, target):
        if target != self.target:
            self.target = target
            self.due = time.monotonic() + settings["delay"].get(VIA.get(target), 0)

    @property
    def code(self):
        return CODES[self.name]

    @code.setter
    def code(self, _code):
        pass


instances.InstanceState = TimedState


# ------------------------------------------------------------------------------------- metadata, and what instances run


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2 of one instance: nothing without a token, and no token without its time to live."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, text="", headers=()):
        body = text.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:
            # It was asked by an instance that was ended meanwhile.
            pass

    def do_PUT(self):
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if self.path != "/latest/api/token":
            self.answer(404)
        elif not ttl or not ttl.isdigit() or not 0 < int(ttl) <= 21600:
            self.answer(400)
        else:
            token = base64.b64encode(os.urandom(18)).decode()
            self.server.tokens.add(token)
            self.answer(200, token, [("X-aws-ec2-metadata-token-ttl-seconds", ttl)])

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            self.answer(401)
            return
        text = self.server.tell(self.path.removeprefix("/latest/").rstrip("/"))
        if text is None:
            self.answer(404, "404 - Not Found")
        else:
            self.answer(200, text)


def serve_metadata(tell):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.daemon_threads = True
    server.tokens, server.tell = set(), tell
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Machine:
    """What an instance is beside its record in moto: its metadata service, and the process that it runs."""

    def __init__(self, instance):
        self.instance = instance
        self.process = None
        self.hibernates = self.frozen = False
        self.boots = 0
        self.server = serve_metadata(self.tell)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def user_data(self):
        return user_data_of(self.instance)

    def tell(self, path):
        special = {**settings["metadata"].get("*", {}), **settings["metadata"].get(self.instance.id, {})}
        if path in special:
            return special[path]
        region = self.instance.region_name
        document = json.dumps(
            {
                "accountId": ACCOUNT,
                "architecture": "x86_64",
                "availabilityZone": self.instance.placement["AvailabilityZone"]
                if isinstance(self.instance.placement, dict)
                else region + "a",
                "imageId": self.instance.image_id,
                "instanceId": self.instance.id,
                "instanceType": self.instance.instance_type,
                "pendingTime": "2026-01-01T00:00:00Z",
                "region": region,
                "version": "2017-09-30",
            },
            indent=2,
        )
        return {
            "": "dynamic\nmeta-data\nuser-data",
            "meta-data": "instance-id\nplacement/",
            "meta-data/instance-id": self.instance.id,
            "meta-data/placement/region": region,
            "user-data": self.user_data(),
            "dynamic/instance-identity/document": document,
            "dynamic/instance-identity/rsa2048": sign(document),
        }.get(path)

    def boot(self):
        self.boots += 1
        boot = settings["boot"]
        if not boot:
            return
        def fill(text):
            return text.replace("{imds}", self.address).replace("{instance}", self.instance.id)
        env = dict(os.environ, **{name: fill(value) for name, value in boot.get("env", {}).items()})
        log = open(fill(boot["log"]), "ab") if boot.get("log") else subprocess.DEVNULL
        self.process = subprocess.Popen(
            [fill(word) for word in boot["argv"]],
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        threading.Thread(target=self.watch, args=(self.process,), daemon=True).start()

    def watch(self, process):
        process.wait()
        if self.process is process:
            # A shutdown from inside: what it means was said when the instance was made; spot instances always end.
            ends = self.instance.instance_initiated_shutdown_behavior == "terminate" or self.instance.is_spot
            (self.instance.terminate if ends else self.instance.stop)()
            reason = "Client.InstanceInitiatedShutdown"
            self.instance.state_reason = instances.StateReason(f"{reason}: Instance initiated shutdown", reason)

    def signal(self, number):
        if self.process:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass

    def sleep(self):
        self.frozen = self.hibernates
        if self.frozen:
            self.signal(signal.SIGSTOP)
        else:
            self.halt()

    def wake(self):
        if self.frozen:
            self.frozen = False
            self.signal(signal.SIGCONT)
        else:
            self.boot()

    def halt(self):
        process, self.process = self.process, None
        if process:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


machines = {}


def user_data_of(instance):
    data = instance.user_data
    if not data:
        return None
    text = data if isinstance(data, str) else data.decode()
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return text


def sign(document):
    signer = settings["signer"]
    if not signer:
        return None
    done = subprocess.run(
        ["openssl", "cms", "-sign", "-binary", "-nodetach", "-nocerts", "-md", "sha256", "-outform", "DER"]
        + ["-signer", signer["certificate"], "-inkey", signer["key"]],
        input=document.encode(),
        capture_output=True,
        check=True,
    )
    text = base64.b64encode(done.stdout).decode()
    return "\n".join(text[i : i + 64] for i in range(0, len(text), 64))


plain_init = instances.Instance.__init__
plain_stop, plain_start, plain_terminate = instances.Instance.stop, instances.Instance.start, instances.Instance.terminate


def init(self, *args, **kwargs):
    self.is_spot = False
    self.made = time.monotonic()
    plain_init(self, *args, **kwargs)
    with lock:
        machines[self.id] = Machine(self)


def stop(self, *args, **kwargs):
    machines[self.id].sleep()
    return plain_stop(self, *args, **kwargs)


def terminate(self, *args, **kwargs):
    machines[self.id].halt()
    return plain_terminate(self, *args, **kwargs)


def start(self, *args, **kwargs):
    # One that runs is left as it is.
    sleeps = self._state.name == "stopped"
    result = plain_start(self, *args, **kwargs) if sleeps else copy.copy(self._state)
    if sleeps:
        machines[self.id].wake()
    return result


instances.Instance.__init__ = init
instances.Instance.stop = stop
instances.Instance.terminate = terminate
instances.Instance.start = start


# ------------------------------------------------------------------------------------------- what may be done in which state


def named(self):
    many = self._get_param("InstanceIds", [])
    return [machines[i] for i in many or [self._get_param("InstanceId")] if i in machines]


def only_in(self, states, what):
    for machine in named(self):
        state = machine.instance._state.name
        if state not in states:
            text = f"The instance '{machine.instance.id}' is not in a state from which it can be {what}: {state}."
            raise EC2ClientError("IncorrectInstanceState", text)


plain_stop_call = instances_api.InstanceResponse.stop_instances
plain_start_call = instances_api.InstanceResponse.start_instances
plain_modify_call = instances_api.InstanceResponse.modify_instance_attribute


def stop_call(self):
    only_in(self, ["running", "stopping", "stopped"], "stopped")
    hibernate = str(self._get_param("Hibernate")).lower() == "true"
    for machine in named(self):
        if machine.instance.is_spot:
            text = f"You can't stop the Spot Instance '{machine.instance.id}': its request is a one-time request."
            raise EC2ClientError("UnsupportedOperation", text)
        configured = str((machine.instance.hibernation_options or {}).get("Configured")).lower() == "true"
        if hibernate and (settings["hibernation_refused"] or not configured):
            text = "The instance is not ready to hibernate yet, or was not started so that it can."
            raise EC2ClientError("UnsupportedOperation", text)
        if machine.instance._state.name == "running":
            machine.hibernates = hibernate
    return plain_stop_call(self)


def start_call(self):
    only_in(self, ["stopped", "pending", "running"], "started")
    return plain_start_call(self)


def modify_call(self):
    if self._get_param("Attribute") == "userData" or self._get_param("UserData.Value") is not None:
        only_in(self, ["stopped"], "given other user data")
    return plain_modify_call(self)


instances_api.InstanceResponse.stop_instances = stop_call
instances_api.InstanceResponse.start_instances = start_call
instances_api.InstanceResponse.modify_instance_attribute = modify_call


# ------------------------------------------------------------------------------------------------------ eventual listing


def is_listed(instance):
    return time.monotonic() - instance.made >= settings["lag"]


plain_describe = instances_api.InstanceResponse.describe_instances
plain_reservations = instances.InstanceBackend.describe_instances
plain_get_multi = instances.InstanceBackend.get_multi_instances_by_id


def listed_only(self, *args, **kwargs):
    return [r for r in plain_reservations(self, *args, **kwargs) if all(is_listed(i) for i in r.instances)]


def known_only(self, instance_ids, *args, **kwargs):
    found = plain_get_multi(self, instance_ids, *args, **kwargs)
    hidden = [i.id for i in found if not is_listed(i)]
    if hidden:
        raise EC2ClientError("InvalidInstanceID.NotFound", f"The instance ID '{hidden[0]}' does not exist")
    return found


instances.InstanceBackend.describe_instances = listed_only
instances.InstanceBackend.get_multi_instances_by_id = known_only


# --------------------------------------------------------------------------------------------------------------- spot


def prices_of(kind):
    prices = settings["spot_prices"].get(kind, ["0.0400"])
    return prices if isinstance(prices, list) else [prices]


class SpotRequest(spot_requests.TaggedEC2Resource):
    """The request that AWS keeps for a RunInstances with market options."""

    # moto looks here for the service that a model belongs to.
    __module__ = spot_requests.__name__

    def __init__(self, backend, call, instance_id):
        self.ec2_backend = backend
        self.id = ec2_utils.random_spot_request_id()
        self.spot_price = call._get_param("InstanceMarketOptions.SpotOptions.MaxPrice")
        self.type = "one-time"
        self.state = "active" if instance_id else "open"
        self.code = "fulfilled" if instance_id else refusal(call)[0]
        self.instance_id = instance_id
        self.product_description = "Linux/UNIX"
        self.create_time = utcnow()
        self.add_tags(call._parse_tag_specification().get("spot-instances-request", {}))

    @property
    def spot_instance_request_id(self):
        return self.id

    @property
    def status(self):
        return {"Code": self.code, "Message": f"Your request is {self.code}.", "UpdateTime": utcnow()}

    def get_filter_value(self, name, _method=None):
        plain = {"state": self.state, "spot-instance-request-id": self.id}
        return plain[name] if name in plain else super().get_filter_value(name, "DescribeSpotInstanceRequests")


def refusal(call):
    """Status, code and message of a spot request that is refused; None where it is taken."""
    if settings["spot_status"]:
        status = settings["spot_status"]
        code = "InsufficientInstanceCapacity" if status == "capacity-not-available" else "SpotMaxPriceTooLow"
        return status, code, f"The request was not fulfilled: {status}."
    bid = call._get_param("InstanceMarketOptions.SpotOptions.MaxPrice")
    market = float(prices_of(call._get_param("InstanceType"))[-1])
    if bid and float(bid) < market:
        text = f"Your Spot request price of {bid} is lower than the minimum required Spot request fulfillment price of {market}."
        return "price-too-low", "SpotMaxPriceTooLow", text
    return None


plain_run = instances_api.InstanceResponse.run_instances


def run_instances(self):
    spot = self._get_param("InstanceMarketOptions.MarketType") == "spot"
    dry = str(self._get_param("DryRun")).lower() == "true"
    if spot and self._get_param("InstanceInitiatedShutdownBehavior"):
        raise EC2ClientError("InvalidParameterCombination", "You cannot specify shutdown behavior for a one-time request.")
    if spot and not dry and (refused := refusal(self)):
        request = SpotRequest(self.ec2_backend, self, None)
        self.ec2_backend.spot_instance_requests[request.id] = request
        raise EC2ClientError(refused[1], refused[2])
    result = plain_run(self)
    for instance in result._result.instances if hasattr(result, "_result") else result.result.instances:
        instance.is_spot = spot
        if spot:
            request = SpotRequest(self.ec2_backend, self, instance.id)
            self.ec2_backend.spot_instance_requests[request.id] = request
        machines[instance.id].boot()
    return result


def price_history(self):
    kinds = self._get_param("InstanceTypes", [])
    zone = self._get_param("AvailabilityZone")
    products = self._get_param("ProductDescriptions", []) or ["Linux/UNIX"]
    now = datetime.datetime.now(datetime.timezone.utc)
    rows = []
    for offer in self.ec2_backend.describe_spot_price_history(kinds, self._filters_from_querystring()):
        if zone and offer["Location"] != zone:
            continue
        prices = prices_of(offer["InstanceType"])
        for n, price in enumerate(prices):
            age = datetime.timedelta(hours=24 * (len(prices) - n) / (len(prices) + 1))
            for product in products:
                if product == "Linux/UNIX":
                    rows.append(
                        {
                            "InstanceType": offer["InstanceType"],
                            "ProductDescription": product,
                            "SpotPrice": price,
                            "AvailabilityZone": offer["Location"],
                            "Timestamp": now - age,
                        }
                    )
    return ActionResult({"SpotPriceHistory": rows})


def cancel_requests(self, ids):
    found = []
    for request_id in ids:
        request = self.spot_instance_requests.get(request_id)
        if request is None:
            text = f"The spot instance request ID '{request_id}' does not exist"
            raise EC2ClientError("InvalidSpotInstanceRequestID.NotFound", text)
        request.state = "cancelled"
        found.append(request)
    return found


spot_api.SpotInstances.describe_spot_price_history = price_history
spot_requests.SpotRequestBackend.cancel_spot_instance_requests = cancel_requests


# ------------------------------------------------------------------------------------------------------- client tokens

tokens = {}


def once(self):
    token = self._get_param("ClientToken")
    if not token or str(self._get_param("DryRun")).lower() == "true":
        return run_instances(self)
    call = json.dumps(sorted((k, v) for k, v in self.querystring.items()), default=str)
    with lock:
        key = (self.current_account, self.region, token)
        if key in tokens:
            before, result = tokens[key]
            if before != call:
                text = "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                raise EC2ClientError("IdempotentParameterMismatch", text)
            return result
        result = run_instances(self)
        # A call that was refused is none: the next one with its token is tried.
        tokens[key] = (call, result)
        return result


instances_api.InstanceResponse.run_instances = once


# ------------------------------------------------------------------------------------------- images, filters, the console

ec2_utils.filter_dict_attribute_mapping["client-token"] = "client_token"
plain_ami_filter = amis.Ami.get_filter_value


def ami_filter(self, name, *args):
    return self.image_location if name == "image-location" else plain_ami_filter(self, name, *args)


def console(self):
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    output = base64.b64encode(settings["console"].encode()).decode()
    return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": output})


amis.Ami.get_filter_value = ami_filter
for name in dir(general_api):
    kind = getattr(general_api, name)
    if isinstance(kind, type) and "get_console_output" in vars(kind):
        kind.get_console_output = console


def add_image(image):
    region = image.pop("region", "us-west-2")
    backend = ec2_backends[ACCOUNT][region]
    base = {
        "state": "available",
        "public": False,
        "owner_id": ACCOUNT,
        "description": "",
        "image_type": "machine",
        "platform": None,
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "root_device_type": "ebs",
        "root_device_name": "/dev/xvda",
        "sriov": "simple",
        "creation_date": utcnow(),
    }
    base.update(image)
    base.setdefault("name", base["ami_id"])
    backend.amis[base["ami_id"]] = amis.Ami(backend, **base)


# ------------------------------------------------------------------------------------------------------------ the server

AUTH_FAILURE = """<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>AuthFailure</Code><Message>AWS was not able to validate the provided access credentials</Message>
</Error></Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"""

moto_app = DomainDispatcherApplication(create_backend_app)


def tell(instance):
    return {
        "id": instance.id,
        "state": instance._state.name,
        "region": instance.region_name,
        "image": instance.image_id,
        "type": instance.instance_type,
        "zone": instance._placement.zone if hasattr(instance, "_placement") else None,
        "spot": instance.is_spot,
        "shutdown": instance.instance_initiated_shutdown_behavior,
        "http_tokens": instance.metadata_options.http_tokens,
        "key": instance.key_name,
        "tags": {tag["key"]: tag["value"] for tag in instance.get_tags()},
        "user_data": user_data_of(instance),
        "imds": machines[instance.id].address,
        "token": instance.client_token,
        "boots": machines[instance.id].boots,
        "hibernated": machines[instance.id].frozen,
    }


def app(environ, start_response):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]

    def body():
        return json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))

    def answer(value):
        text = json.dumps(value).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]

    if path == "/_ctl":
        with lock:
            if method == "PUT":
                for name, value in body().items():
                    if isinstance(settings[name], dict) and isinstance(value, dict):
                        settings[name].update(value)
                    else:
                        settings[name] = value
            elif method == "DELETE":
                settings.clear()
                settings.update(copy.deepcopy(DEFAULTS))
        return answer(settings)
    if path == "/_images":
        add_image(body())
        return answer(True)
    if path == "/_imds":
        served = body()
        server = serve_metadata(served.get)
        return answer(f"http://127.0.0.1:{server.server_address[1]}")
    if path == "/_instances":
        return answer([tell(machine.instance) for machine in list(machines.values())])
    if path == "/_kill":
        # As if the machine had gone by itself.
        machines[body()["instance"]].instance.terminate()
        return answer(True)
    key = settings["key"]
    if key and f"Credential={key}/" not in environ.get("HTTP_AUTHORIZATION", ""):
        # Unread, it would be answered by a reset.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        length = str(len(AUTH_FAILURE))
        start_response("401 Unauthorized", [("Content-Type", "text/xml"), ("Content-Length", length)])
        return [AUTH_FAILURE.encode()]
    return moto_app(environ, start_response)


def serve(until_the_end, say):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(json.dumps({"port": server.server_port}) + "\n")
    # Ends with whoever started it, and takes along what it started.
    until_the_end()
    for machine in list(machines.values()):
        machine.halt()


def serve_each(path):
    """A process for each connection. Nothing here has threads before it forks."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("{}", flush=True)
    # It ends with its standard input, too.
    while select.select([listener, sys.stdin], [], [])[0] == [listener]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(lambda: connection.recv(1), lambda text: connection.sendall(text.encode()))
            os._exit(0)
        connection.close()


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    if len(sys.argv) > 1:
        serve_each(sys.argv[1])
    else:
        serve(sys.stdin.buffer.read, lambda text: print(text, end="", flush=True))


main()
