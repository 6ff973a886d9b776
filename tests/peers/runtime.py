"""The loop of a Lambda runtime, over one connection that is kept."""

import http.client
import json
import os
import traceback

INVOCATION = "/2018-06-01/runtime/invocation"


def serve(handler):
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    while True:
        api.request("GET", f"{INVOCATION}/next")
        invocation = api.getresponse()
        event = json.loads(invocation.read())
        try:
            outcome, answer = "response", handler(event, None)
        except Exception as error:
            traceback.print_exc()
            outcome, answer = "error", {"errorType": type(error).__name__, "errorMessage": str(error)}
        request_id = invocation.headers["Lambda-Runtime-Aws-Request-Id"]
        api.request("POST", f"{INVOCATION}/{request_id}/{outcome}", json.dumps(answer))
        api.getresponse().read()
