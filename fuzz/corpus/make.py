"""Writes the inputs that the fuzzer begins with: well-formed conversations, and a few that are nearly so."""

import pathlib
import struct

here = pathlib.Path(__file__).parent / "peer"
PREFACE = b"MDLT\x01"


def frame(kind, id=0, body=b"", flags=0):
    return struct.pack("<IBBQ", 10 + len(body), kind, flags, id) + body


def call(id, payload, remaining_ms=1000, flags=0):
    return frame(4, id, struct.pack("<I", remaining_ms) + payload, flags)


hello = bytes(32) + bytes(32) + bytes(16) + struct.pack("<H", 4) + b"fuzz" + b"about"
answers = frame(5, 0, b"one") + frame(5, 1, b"two") + frame(5, 2, b"three")
every = b"".join(frame(kind, 1, bytes(40)) for kind in range(1, 19))
inputs = {
    "frames-every-kind": b"\x00\x07" + every,
    "frames-call": b"\x00\x03" + call(7, b"payload", flags=1) + call(8, bytes(300)),
    "frames-short": b"\x00\x02" + bytes([9, 0, 0, 0]),
    "frames-long": b"\x00\x01" + b"\xff" * 20,
    "frames-flags": b"\x00\x00" + frame(9, 0, b"", 0x80),
    "served-nothing": b"\x01",
    "served-preface": b"\x01" + PREFACE,
    "served-version": b"\x01MDLT\x09",
    "served-hello": b"\x01" + PREFACE + frame(2, 0, hello),
    "served-http": b"\x01GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "served-tls": b"\x01\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "served-refused": b"\x01" + PREFACE + frame(3, 0, b"no"),
    "calls": b"\x02" + b"".join(call(id, bytes([id % 4]) + bytes(20)) for id in range(20)),
    "calls-cancelled": b"\x02" + call(1, b"\x02wait") + frame(8, 1) + call(1, b"\x01again"),
    "calls-same-id": b"\x02" + call(1, b"\x02") + call(1, b"\x02"),
    "calls-pings": b"\x02" + frame(9) * 50 + frame(10) + frame(12, 3, b"withdrawn"),
    "calls-every-kind": b"\x02" + every,
    "calls-large": b"\x02" + call(1, bytes(3000)) + call(2, b"\x02" * 3000) + call(3, b"\x01" * 3000),
    "calls-cut": b"\x02" + call(1, bytes(100))[:50],
    "calls-no-time": b"\x02" + call(1, b"", 0),
    "calling-challenge": b"\x03" + PREFACE + frame(1, 0, bytes(32)),
    "calling-hello": b"\x03" + PREFACE + frame(1, 0, bytes(32)) + frame(2, 0, hello),
    "calling-refused": b"\x03" + PREFACE + frame(3, 0, "nicht f\u00fcr dich".encode()),
    "calling-version": b"\x03MDLT\x02" + frame(3, 0, b"version"),
    "calls-in-parts": b"\x02"
    + frame(4, 5, struct.pack("<II", 900, 70000), 2)
    + frame(13, 5, b"\x01" * 3000)
    + call(6, b"between")
    + frame(13, 5, b"\x01" * 3000)
    + frame(16, 5, b"broken off"),
    "calls-streamed": b"\x02"
    + call(5, b"\x03echo", flags=4)
    + frame(14, 5, b"one")
    + frame(15, 5, struct.pack("<I", 1000))
    + frame(14, 5, b"two", 8)
    + call(6, b"\x03", flags=4)
    + frame(17, 6)
    + frame(14, 6, b"", 8),
    "calls-windows": b"\x02" + call(5, b"\x03", flags=4) + frame(15, 5, b"\xff" * 4) * 3,
    "answers-in-parts": b"\x04" + frame(5, 0, struct.pack("<I", 5), 2) + frame(13, 0, b"abc") + frame(13, 0, b"de"),
    "answers-streamed": b"\x04"
    + frame(5, 0, b"head", 4)
    + frame(14, 0, b"piece")
    + frame(14, 0, b"", 8)
    + frame(15, 2, struct.pack("<I", 65536))
    + frame(17, 1)
    + frame(5, 2, b"head", 4)
    + frame(16, 2, b"broken"),
    "answers": b"\x04" + answers,
    "answers-twice": b"\x04" + answers + answers,
    "answers-others": b"\x04" + frame(6, 0, b"\xff\xff\xff\xffno") + frame(7, 1, b"panicked") + frame(11, 0, b"draining"),
    "answers-unasked": b"\x04" + frame(5, 77, b""),
    "answers-pings": b"\x04" + frame(9) * 50 + frame(10),
    "answers-every-kind": b"\x04" + every,
    "answers-cut": b"\x04" + answers[:20],
}
for name, content in inputs.items():
    (here / name).write_bytes(content)
