"""Gives tokens for a registry: to everybody for pulling, to `spark` with the password `secret` for more.

usage: tokens.py PORT, with key.pem and cert.pem in the working directory
"""

import base64
import http.server
import json
import ssl
import subprocess
import sys
import time
import urllib.parse


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(claims):
    der = ssl.PEM_cert_to_DER_cert(open("cert.pem").read())
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    text = encode(json.dumps(header).encode()) + b"." + encode(json.dumps(claims).encode())
    command = ["openssl", "dgst", "-sha256", "-sign", "key.pem"]
    return (text + b"." + encode(subprocess.run(command, input=text, capture_output=True, check=True).stdout)).decode()


class Tokens(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        login = self.headers.get("Authorization")
        known = login == "Basic " + base64.b64encode(b"spark:secret").decode()
        if login and not known:
            self.send_error(401)
            return
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = [a for a in actions.split(",") if known or a == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {"iss": "i", "sub": "", "aud": "s", "exp": now + 300, "nbf": now - 10, "iat": now}
        body = json.dumps({"token": signed({**claims, "jti": "1", "access": access})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Tokens).serve_forever()
