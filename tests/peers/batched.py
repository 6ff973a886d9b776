"""The handler of a team that has measured: a transaction a batch, pipelined, and objects put by threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import boto3
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from botocore.config import Config

from database import database
from model import COLUMNS, READ_ROWS, UPSERTS, change
from runtime import serve

CONCURRENCY = 32

BUCKET = os.environ.get("ARCHIVE_BUCKET")
CONFIG = Config(max_pool_connections=CONCURRENCY,
                s3={"addressing_style": "path"} if "AWS_ENDPOINT_URL" in os.environ else None)
s3 = boto3.client("s3", config=CONFIG) if BUCKET else None
threads = ThreadPoolExecutor(CONCURRENCY)
processor = BatchProcessor(event_type=EventType.DynamoDBStreams)


def put(row):
    session_id, body = row
    s3.put_object(Bucket=BUCKET, Key=f"measurements/{session_id}.json", Body=body.encode(),
                  ContentType="application/json")


def handler(event, context):
    rows = {part: [] for part in COLUMNS}

    def gather(record: DynamoDBRecord):
        stream = record.dynamodb
        part, values = change(record.event_source_arn, stream.keys, stream.new_image)
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
