"""A mail relay for tests: aiosmtpd, with faults that a test can request.

    relay.py DIR PORT [--tls implicit|starttls] [--cert FILE --key FILE] [--login USER:PASSWORD]

Listens on 127.0.0.1 and prints `ready`. Each mail that it takes is a file N.json in DIR: from, to, tls, login, the name
that it was greeted with as `hello`, and the message as `text`. Every connection is a line in DIR/connections, every refused login one in DIR/refused.

DIR/rules.json, read anew for each command, says how it answers: {"mail": "550 …", "rcpt": {"ADDRESS": "550 …"},
"data": "451 …"} answers so; "hang" never answers; for data, "mute" takes the mail and never says so, and "cut" takes it
and closes the connection instead. {"full_names": true} takes recipients only from who greets it with a full name, as
Postfix does with reject_non_fqdn_helo_hostname. {"auth": "AUTH LOGIN"} offers that, whatever else it could do, and
{"prompts": ["334 ", …]} are its lines of AUTH LOGIN, sent as they are.
"""

import argparse
import asyncio
import base64
import json
import os
import pathlib
import ssl

from aiosmtpd.smtp import MISSING, SMTP, AuthResult, LoginPassword


class Server(SMTP):
    """As aiosmtpd, with prompts of the test's choice."""

    prompts = ()

    async def challenge_auth(self, challenge, *arguments, **options):
        if not self.prompts:
            return await super().challenge_auth(challenge, *arguments, **options)
        prompt, *self.prompts = self.prompts
        self._writer.write(prompt.encode() + b"\r\n")
        line = (await self._reader.readline()).strip()
        return MISSING if line == b"*" else base64.b64decode(line, validate=True)


class Relay:
    def __init__(self, directory, login):
        self.directory = directory
        self.login = login
        self.taken = len(list(directory.glob("[0-9]*.json")))

    async def rule(self, command):
        try:
            answer = json.loads((self.directory / "rules.json").read_text()).get(command)
        except FileNotFoundError:
            return None
        if answer == "hang":
            await asyncio.Event().wait()
        return answer

    def note(self, name, text):
        with open(self.directory / name, "a", encoding="utf-8") as file:
            print(text, file=file)

    def authenticate(self, server, session, envelope, mechanism, data):
        given = data.login + b":" + data.password if isinstance(data, LoginPassword) else b""
        if given == self.login.encode():
            return AuthResult(success=True, auth_data=data.login.decode())
        self.note("refused", mechanism)
        return AuthResult(success=False, handled=False)

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        server.prompts = await self.rule("prompts") or ()
        offered = await self.rule("auth")
        if offered is None:
            return responses
        return [line for line in responses[:-1] if not line.startswith("250-AUTH")] + [f"250-{offered}", responses[-1]]

    async def handle_MAIL(self, server, session, envelope, address, options):
        answer = await self.rule("mail")
        if answer is None:
            envelope.mail_from = address
        return answer or "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        answer = (await self.rule("rcpt") or {}).get(address)
        if await self.rule("full_names") and "." not in session.host_name:
            answer = f"504 5.5.2 <{session.host_name}>: Helo command rejected: need fully-qualified hostname"
        if answer == "hang":
            await asyncio.Event().wait()
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server, session, envelope):
        answer = await self.rule("data")
        if answer not in (None, "mute", "cut"):
            return answer
        self.taken += 1
        mail = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None,
            "login": session.auth_data,
            "hello": session.host_name,
            "text": envelope.original_content.decode(),
        }
        # Whole or not there: the test may look at any time.
        partial = self.directory / f"{self.taken}.part"
        partial.write_text(json.dumps(mail))
        partial.rename(self.directory / f"{self.taken}.json")
        if answer == "mute":
            await asyncio.Event().wait()
        if answer == "cut":
            server.transport.abort()
        return f"250 it is mail {self.taken}"


async def serve(options):
    directory = pathlib.Path(options.directory)
    directory.mkdir(exist_ok=True)
    relay = Relay(directory, options.login)
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert, options.key)

    def connection():
        relay.note("connections", os.getpid())
        return Server(
            relay,
            hostname="relay.example.org",
            tls_context=context if options.tls == "starttls" else None,
            authenticator=relay.authenticate if options.login else None,
            auth_required=options.login is not None,
            auth_require_tls=options.tls == "starttls",
        )

    loop = asyncio.get_running_loop()
    implicit = context if options.tls == "implicit" else None
    server = await loop.create_server(connection, "127.0.0.1", options.port, ssl=implicit)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", choices=["implicit", "starttls"])
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--login")
    asyncio.run(serve(parser.parse_args()))
