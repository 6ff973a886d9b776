// What the handlers in Node that write whole batches share: the values of a record, a transaction of
// one statement a part over arrays, and objects put 32 at a time.

const { S3Client, PutObjectCommand } = require("@aws-sdk/client-s3");
const { unmarshall } = require("@aws-sdk/util-dynamodb");
const { LosslessNumber, isLosslessNumber, stringify } = require("lossless-json");
const { Pool } = require("pg");
const { ATTRIBUTES, PARTS, READ_ROWS } = require("./model.cjs");

const CONCURRENCY = 32;

const bucket = process.env.ARCHIVE_BUCKET;
const s3 = new S3Client({ forcePathStyle: Boolean(process.env.AWS_ENDPOINT_URL) });
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 1, idleTimeoutMillis: 0 });
// Without a listener the end of an idle connection would end the process.
pool.on("error", (error) => console.error(error));

const deserialize = (item) => unmarshall(item, { wrapNumbers: (text) => new LosslessNumber(text) });
const fromSet = (_, value) => (value instanceof Set ? [...value] : value);

// The rows of a statement over arrays: one parameter a column, of these types.
const fromArrays = (types) =>
  `SELECT * FROM unnest(${types.map((type, index) => `$${index + 1}::${type}[]`).join(", ")})`;

// The part that a record is about, the label of its stream, and its key and values in the order of
// the part's columns.
function change(record) {
  const keys = deserialize(record.dynamodb.Keys);
  const [, table, , label] = record.eventSourceARN.split("/");
  const part = { sessions: "session", scans: keys.side }[table];
  // What is removed becomes NULL in each column.
  const image = record.eventName === "REMOVE" ? {} : deserialize(record.dynamodb.NewImage);
  const values = Object.keys(ATTRIBUTES[part]).map((name) => {
    const value = image[name] ?? null;
    if (isLosslessNumber(value)) return value.toString();
    return name === "mesh" && value !== null ? Buffer.from(value, "base64") : value;
  });
  const known = (name) => name in keys || name in ATTRIBUTES[part];
  const others = Object.entries(image).filter(([name]) => !known(name));
  const attributes = others.length > 0 ? stringify(Object.fromEntries(others), fromSet) : null;
  return { part, label, row: [keys.session_id, ...values, attributes] };
}

// Takes each record, and answers which ones could not be taken.
function takeEach(event, take) {
  const batchItemFailures = [];
  for (const record of event.Records) {
    try {
      take(record);
    } catch (error) {
      console.error(error);
      batchItemFailures.push({ itemIdentifier: record.dynamodb.SequenceNumber });
    }
  }
  return { batchItemFailures };
}

// Writes the rows of each part, which have a column per parameter of its statement.
async function write(upserts, rows) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query("BEGIN");
    for (const part of PARTS.filter((part) => rows[part].length > 0)) {
      const arrays = rows[part][0].map((_, index) => rows[part].map((row) => row[index]));
      await client.query({ name: part, text: upserts[part], values: arrays });
    }
    await client.query("COMMIT");
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    // After a failure this closes the connection, which rolls back.
    client.release(failure);
  }
}

// Puts the objects of these sessions, if there is a bucket.
async function archive(sessionIds) {
  if (!bucket) return;
  const { rows } = await pool.query({ name: "read", text: READ_ROWS, values: [sessionIds] });
  const remaining = rows.values();
  const worker = async () => {
    for (const { session_id, body } of remaining) {
      await s3.send(new PutObjectCommand({
        Bucket: bucket,
        Key: `measurements/${session_id}.json`,
        Body: body,
        ContentType: "application/json",
      }));
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
}

module.exports = { archive, change, fromArrays, takeEach, write };
