#!/usr/bin/env python3
"""The little S3 that the demo needs, against the stand-in at AWS_ENDPOINT_URL.

usage: scripts/s3.py make-bucket | list | show KEY
"""

import os
import sys
import urllib.request
import xml.etree.ElementTree as ElementTree


def request(method, path):
    bucket = f"{os.environ['AWS_ENDPOINT_URL']}/{os.environ['ARCHIVE_BUCKET']}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(bucket + path, method=method))


def pages():
    token = ""
    while token is not None:
        after = f"&continuation-token={token}" if token else ""
        page = ElementTree.fromstring(request("GET", f"?list-type=2{after}").read())
        yield page
        token = page.findtext("{*}NextContinuationToken")


def show(key):
    answer = request("GET", f"/{key}")
    for name, value in answer.headers.items():
        if name.lower().startswith("x-amz-meta") or name.lower() == "etag":
            print(f"{name}: {value}")
    print(answer.read().decode())


def main(arguments):
    if arguments == ["make-bucket"]:
        request("PUT", "")
    elif arguments == ["list"]:
        for page in pages():
            for content in page.iterfind("{*}Contents"):
                fields = ("Key", "ETag", "LastModified")
                print(*(content.findtext(f"{{*}}{name}") for name in fields))
    elif len(arguments) == 2 and arguments[0] == "show":
        show(arguments[1])
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
