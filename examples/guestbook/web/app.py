"""The guestbook's middle tier: JSON over HTTP, kept in Redis."""

import json
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST, PORT = os.environ["REDIS_ADDR"].rsplit(":", 1)


def redis(*words):
    """Sends one command on a connection of its own and returns the reply."""
    with socket.create_connection((HOST, int(PORT)), timeout=3) as conn:
        parts = [w.encode() for w in words]
        conn.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        with conn.makefile("rb") as f:
            return reply(f)


def reply(f):
    line = f.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"+":
        return rest.decode()
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else f.read(int(rest) + 2)[:-2].decode()
    if kind == b"*":
        return [reply(f) for _ in range(int(rest))]
    raise OSError(rest.decode() or "Redis closed the connection")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_safely(self, fn):
        try:
            self.answer(200, fn())
        except OSError as e:
            self.answer(503, {"error": f"redis: {e}"})

    def messages(self):
        return {
            "messages": redis("LRANGE", "messages", "0", "49"),
            "visits": redis("INCR", "visits"),
            "pod": socket.gethostname(),
        }

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, "ok")
        elif self.path == "/readyz":
            self.handle_safely(lambda: redis("PING"))
        elif self.path == "/api/messages":
            self.handle_safely(self.messages)
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(min(length, 1000)).decode(errors="replace").strip()
        if self.path != "/api/messages":
            self.answer(404, {"error": "not found"})
        elif not text or length > 1000:
            self.answer(400, {"error": "a message has 1 to 1000 bytes"})
        else:
            self.handle_safely(lambda: redis("LPUSH", "messages", text))

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False  # requests under way are finished


server = Server(("", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("guestbook listens on", os.environ["PORT"])
server.serve_forever()
server.server_close()
