"""A proxy before an embedding server that wants a bearer token: bearer.py PORT TARGET_PORT TOKEN

Without the token it answers as such proxies do: 401, a page, and the end of the
connection, whatever is still to be read.
"""

import http.client
import http.server
import sys

port, target, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
PAGE = b"<!DOCTYPE html><html><head><title>401 Authorization Required</title></head><body>Sign in</body></html>"


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, kind, body, *headers):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {token}":
            self.close_connection = True
            self.answer(401, "text/html", PAGE, ("WWW-Authenticate", 'Bearer realm="models"'), ("Connection", "close"))
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = http.client.HTTPConnection("127.0.0.1", target)
        server.request(self.command, self.path, body, {"Content-Type": self.headers["Content-Type"]})
        answer = server.getresponse()
        self.answer(answer.status, answer.headers["Content-Type"] or "text/plain", answer.read())
        server.close()


http.server.ThreadingHTTPServer(("127.0.0.1", port), Proxy).serve_forever()
