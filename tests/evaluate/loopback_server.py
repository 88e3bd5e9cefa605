"""A completions server on loopback whose answers a test decides, with the faults that real ones have."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """What was asked (path, headers, body) and what is answered.

    answer(body, number) gives a JSON value for status 200, or a `Reply`. number counts calls from 0.
    """

    def __init__(self, answer, models=("tiny",)):
        self.answer, self.model_names = answer, models
        self.calls = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    @contextmanager
    def counted(self, path, headers, body):
        with self._lock:
            number = len(self.calls)
            self.calls.append((path, headers, body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield number
        finally:
            with self._lock:
                self._at_once -= 1

    @property
    def bodies(self):
        return [body for _, _, body in self.calls if body is not None]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away, as some tests want, is no error here."""


class Reply:
    """An answer other than a JSON value with status 200. cut: bytes promised and not sent; drip: seconds between bytes.

    chunked: sent in chunks and without a length, and with `cut` never ended.
    """

    def __init__(self, status=200, body=b"", headers=(), cut=0, wait=0.0, drip=0.0, chunked=False):
        self.status, self.headers, self.cut, self.wait, self.drip = status, dict(headers), cut, wait, drip
        self.chunked = chunked
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def choices(*texts, chat=False):
    """A well-formed answer with these texts."""
    return {
        "choices": [
            {"index": i, "finish_reason": "length", **({"message": {"role": "assistant", "content": t}} if chat else {"text": t})}
            for i, t in enumerate(texts)
        ]
    }  # fmt: skip


@contextmanager
def serving(loopback):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            with loopback.counted(self.path, dict(self.headers), None):
                if loopback.model_names is None:
                    self.reply(Reply(404, {"error": {"message": "no such path"}}))
                else:
                    self.reply(Reply(200, {"data": [{"id": name} for name in loopback.model_names]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with loopback.counted(self.path, dict(self.headers), body) as number:
                answer = loopback.answer(body, number)
                self.reply(answer if isinstance(answer, Reply) else Reply(200, answer))

        def reply(self, reply):
            time.sleep(reply.wait)
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                if reply.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(reply.body) + reply.cut))
                if reply.cut:
                    self.send_header("Connection", "close")
                self.end_headers()
                if reply.chunked:
                    pieces = [reply.body[i : i + 7] for i in range(0, len(reply.body), 7)]
                    for piece in pieces if reply.cut else [*pieces, b""]:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                elif reply.drip:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(reply.drip)
                else:
                    self.wfile.write(reply.body)
                self.close_connection = self.close_connection or bool(reply.cut)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up, as some tests want

    server = _Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield loopback
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
