"""Powertools for AWS Lambda as its documentation shows it: BatchProcessor for DynamoDB Streams, a
record handler, and process_partial_response. The record handler has psycopg: an upsert a record,
its row read back, its object put.
"""

import os

import boto3
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from botocore.config import Config

from database import database
from model import READ_ROWS, UPSERTS, change
from runtime import serve

BUCKET = os.environ.get("ARCHIVE_BUCKET")
LOCAL = "AWS_ENDPOINT_URL" in os.environ
PATH_STYLE = Config(s3={"addressing_style": "path"}) if LOCAL else None
s3 = boto3.client("s3", config=PATH_STYLE) if BUCKET else None
processor = BatchProcessor(event_type=EventType.DynamoDBStreams)


def record_handler(record: DynamoDBRecord):
    stream = record.dynamodb
    part, values = change(record.event_source_arn, stream.keys, stream.new_image)
    database().execute(UPSERTS[part], values)
    if BUCKET:
        (session_id, body), = database().execute(READ_ROWS, [values[:1]])
        s3.put_object(Bucket=BUCKET, Key=f"measurements/{session_id}.json", Body=body.encode(),
                      ContentType="application/json")


def lambda_handler(event, context):
    return process_partial_response(
        event=event, record_handler=record_handler, processor=processor, context=context
    )


if __name__ == "__main__":
    serve(lambda_handler)
