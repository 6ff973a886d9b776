"""The handler of a team that has measured: a transaction a batch, pipelined, and objects put by threads."""

import base64
import os
from concurrent.futures import ThreadPoolExecutor

import boto3
import psycopg
import simplejson
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord, DynamoDBRecordEventName
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
CONCURRENCY = 32


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
READ_ROWS = f"""
    SELECT session_id, row_to_json(measurement)::text FROM (
        SELECT session_id, {", ".join(in_object(name) for columns in COLUMNS.values() for name in columns)}, complete
        FROM measurements WHERE session_id = ANY(%s)
    ) AS measurement"""

BUCKET = os.environ.get("ARCHIVE_BUCKET")
CONFIG = Config(max_pool_connections=CONCURRENCY,
                s3={"addressing_style": "path"} if "AWS_ENDPOINT_URL" in os.environ else None)
s3 = boto3.client("s3", config=CONFIG) if BUCKET else None
threads = ThreadPoolExecutor(CONCURRENCY)
processor = BatchProcessor(event_type=EventType.DynamoDBStreams)
connection = None


def database():
    global connection
    if connection is None or connection.closed:
        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    return connection


def change(record: DynamoDBRecord):
    """The part that a record is about, and the values for its statement."""
    stream = record.dynamodb
    keys = stream.keys
    table = record.event_source_arn.split("/")[1]
    part = {"sessions": "session", "scans": keys.get("side")}[table]
    # What is removed becomes NULL in each column.
    image = {} if record.event_name == DynamoDBRecordEventName.REMOVE else stream.new_image
    values = {name: image.pop(name, None) for name in ATTRIBUTES[part]}
    if values.get("mesh"):
        values["mesh"] = base64.b64decode(values["mesh"])
    others = {name: value for name, value in image.items() if name not in keys}
    attributes = simplejson.dumps(others, iterable_as_array=True) if others else None
    return part, [keys["session_id"], *values.values(), attributes]


def put(row):
    session_id, body = row
    s3.put_object(Bucket=BUCKET, Key=f"measurements/{session_id}.json", Body=body.encode(),
                  ContentType="application/json")


def handler(event, context):
    rows = {part: [] for part in COLUMNS}

    def gather(record: DynamoDBRecord):
        part, values = change(record)
        rows[part].append(values)

    with processor(records=event["Records"], handler=gather):
        processor.process()
    # A failure from here on fails the invocation, and Lambda retries the whole batch.
    with database().transaction(), database().cursor() as cursor:
        for part, values in rows.items():
            cursor.executemany(UPSERTS[part], values)
    if BUCKET:
        session_ids = list({values[0] for part in rows.values() for values in part})
        list(threads.map(put, database().execute(READ_ROWS, [session_ids])))
    return processor.response()


if __name__ == "__main__":
    serve(handler)
