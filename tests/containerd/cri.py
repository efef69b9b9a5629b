#!/usr/bin/env python3
"""Calls one method of the Container Runtime Interface, as kubelet does.

    cri.py DIRECTORY SOCKET METHOD < request.json > response.json

DIRECTORY holds cri_pb2.py, which protoc makes of cri.proto. A call that fails prints its status and ends with 1.
"""

import sys

directory, socket, method = sys.argv[1:]
sys.path.insert(0, directory)

import cri_pb2  # noqa: E402
import grpc  # noqa: E402
from google.protobuf import json_format  # noqa: E402

request = json_format.Parse(sys.stdin.read(), getattr(cri_pb2, method + "Request")())
response = getattr(cri_pb2, method + "Response")
with grpc.insecure_channel("unix://" + socket) as channel:
    call = channel.unary_unary(
        f"/runtime.v1.RuntimeService/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    try:
        answer = call(request, timeout=300)
    except grpc.RpcError as e:
        print(f"{e.code().name}: {e.details()}", file=sys.stderr)
        sys.exit(1)
print(json_format.MessageToJson(answer, including_default_value_fields=True))
