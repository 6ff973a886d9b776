"""The one connection that each handler in Python has: made when it is first needed, or has ended."""

import os

import psycopg

connection = None


def database():
    global connection
    if connection is None or connection.closed:
        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    return connection
