"""The handler as most begin: a statement a record, its row read back, its object put."""

import base64
import os
import traceback

import boto3
import psycopg
import simplejson
from boto3.dynamodb.types import TypeDeserializer
from botocore.config import Config

from runtime import serve

SESSION = ["user_id", "device_model", "os_version", "app_version", "started_at"]
SCAN = ["scanned_at", "foot_length_mm", "foot_breadth_mm", "ball_girth_mm",
        "heel_breadth_mm", "instep_height_mm", "arch_length_mm", "mesh"]
ATTRIBUTES = {"session": SESSION, "left": SCAN, "right": SCAN}
COLUMNS = {
    "session": [*SESSION, "session_attributes"],
    "left": [f"left_{name}" for name in [*SCAN, "attributes"]],
    "right": [f"right_{name}" for name in [*SCAN, "attributes"]],
}


def upsert(columns):
    return f"""
        INSERT INTO measurements (session_id, {", ".join(columns)})
        VALUES (%s, {", ".join(["%s"] * len(columns))})
        ON CONFLICT (session_id) DO UPDATE SET {", ".join(f"{name} = EXCLUDED.{name}" for name in columns)}"""


def in_object(column):
    # encode() breaks its lines.
    return rf"replace(encode({column}, 'base64'), E'\n', '') AS {column}" if column.endswith("_mesh") else column


UPSERTS = {part: upsert(columns) for part, columns in COLUMNS.items()}
# PostgreSQL makes the JSON: Python's own would make floats, or text, of the numbers.
READ_ROW = f"""
    SELECT row_to_json(measurement)::text FROM (
        SELECT session_id, {", ".join(in_object(name) for columns in COLUMNS.values() for name in columns)}, complete
        FROM measurements WHERE session_id = %s
    ) AS measurement"""

BUCKET = os.environ.get("ARCHIVE_BUCKET")
PATH_STYLE = Config(s3={"addressing_style": "path"}) if "AWS_ENDPOINT_URL" in os.environ else None
s3 = boto3.client("s3", config=PATH_STYLE) if BUCKET else None
connection = None


class FromEvent(TypeDeserializer):
    """Binary stands in an event as base64, which boto3's own deserializer refuses. It stays text here."""

    def _deserialize_b(self, value):
        return value


deserializer = FromEvent()


def deserialize(item):
    return {name: deserializer.deserialize(value) for name, value in item.items()}


def database():
    global connection
    if connection is None or connection.closed:
        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    return connection


def change(record):
    """The part that a record is about, and the values for its statement."""
    keys = deserialize(record["dynamodb"]["Keys"])
    table = record["eventSourceARN"].split("/")[1]
    part = {"sessions": "session", "scans": keys.get("side")}[table]
    # What is removed becomes NULL in each column.
    image = {} if record["eventName"] == "REMOVE" else deserialize(record["dynamodb"]["NewImage"])
    values = {name: image.pop(name, None) for name in ATTRIBUTES[part]}
    if values.get("mesh"):
        values["mesh"] = base64.b64decode(values["mesh"])
    others = {name: value for name, value in image.items() if name not in keys}
    attributes = simplejson.dumps(others, iterable_as_array=True) if others else None
    return part, keys["session_id"], [keys["session_id"], *values.values(), attributes]


def handle(record):
    part, session_id, values = change(record)
    database().execute(UPSERTS[part], values)
    if BUCKET:
        body, = database().execute(READ_ROW, [session_id]).fetchone()
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
