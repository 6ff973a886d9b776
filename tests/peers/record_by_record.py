"""The handler as most begin: a statement a record, its row read back, its object put."""

import os
import traceback

import boto3
from boto3.dynamodb.types import TypeDeserializer
from botocore.config import Config

from database import database
from model import READ_ROWS, UPSERTS, change
from runtime import serve

BUCKET = os.environ.get("ARCHIVE_BUCKET")
PATH_STYLE = Config(s3={"addressing_style": "path"}) if "AWS_ENDPOINT_URL" in os.environ else None
s3 = boto3.client("s3", config=PATH_STYLE) if BUCKET else None


class FromEvent(TypeDeserializer):
    """Binary stands in an event as base64, which boto3's own deserializer refuses. It stays text here."""

    def _deserialize_b(self, value):
        return value


deserializer = FromEvent()


def deserialize(item):
    return {name: deserializer.deserialize(value) for name, value in item.items()}


def handle(record):
    stream = record["dynamodb"]
    keys, image = deserialize(stream["Keys"]), deserialize(stream.get("NewImage", {}))
    part, values = change(record["eventSourceARN"], keys, image)
    database().execute(UPSERTS[part], values)
    if BUCKET:
        (session_id, body), = database().execute(READ_ROWS, [values[:1]])
        s3.put_object(Bucket=BUCKET, Key=f"measurements/{session_id}.json", Body=body.encode(),
                      ContentType="application/json")


def handler(event, context):
    for record in event["Records"]:
        try:
            handle(record)
        except Exception:
            traceback.print_exc()
            # Lambda retries a stream from its first failure on: what follows comes again anyway.
            return {"batchItemFailures": [{"itemIdentifier": record["dynamodb"]["SequenceNumber"]}]}
    return {"batchItemFailures": []}


if __name__ == "__main__":
    serve(handler)
