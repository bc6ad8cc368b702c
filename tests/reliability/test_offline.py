"""Nothing calls the network; that every other test runs under this is the test of the programs."""

import socket

import pytest

CALL = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"
REFUSED = r"network: got a call to '192\.0\.2\.1', allowed none"


def test_a_call_is_refused_here():
    with pytest.raises(RuntimeError, match=REFUSED):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
    with pytest.raises(RuntimeError, match="network: got a call to 'example.org'"):
        socket.getaddrinfo("example.org", 443)


def test_a_call_is_refused_in_the_processes_that_tests_start(python):
    done = python("-c", CALL)
    assert done.returncode == 1 and "got a call to '192.0.2.1'" in done.stderr


def test_the_machine_itself_is_not_the_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
