import socket

import pytest

from mindtwins.distribution.messages import Channel, Message


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    channels = Channel(near), Channel(far)
    yield channels
    for channel in channels:
        channel.close()


def test_message_arrives_whole(ends):
    near, far = ends
    payload = bytes(range(256)) * 3
    assert near.send("scores", payload, rank=3, name="ü")
    assert far.receive() == Message("scores", {"rank": 3, "name": "ü"}, payload)


def test_messages_arrive_in_order(ends):
    near, far = ends
    for number in range(5):
        near.send("count", number=number)
    assert [far.receive().fields["number"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_end_of_the_other_side_is_no_message(ends):
    near, far = ends
    near.close()
    assert far.receive() is None


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2\0\0\0\0[]", b"\0" * 8])
def test_what_is_not_ours_is_no_message(ends, noise):
    near, far = ends
    near._socket.sendall(noise)
    assert far.receive() is None
