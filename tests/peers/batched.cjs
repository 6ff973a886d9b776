// The same in Node: a statement a part over arrays, in one transaction, and objects put 32 at a time.

const { S3Client, PutObjectCommand } = require("@aws-sdk/client-s3");
const { unmarshall } = require("@aws-sdk/util-dynamodb");
const { LosslessNumber, isLosslessNumber, stringify } = require("lossless-json");
const { Pool } = require("pg");
const { ATTRIBUTES, PARTS, READ_ROWS, assignments, columns } = require("./model.cjs");
const { serve } = require("./runtime.cjs");

const CONCURRENCY = 32;

function upsert(part) {
  const types = ["text", ...Object.values(ATTRIBUTES[part]), "json"];
  return `
    INSERT INTO measurements (session_id, ${columns(part).join(", ")})
    SELECT * FROM unnest(${types.map((type, index) => `$${index + 1}::${type}[]`).join(", ")})
    ON CONFLICT (session_id) DO UPDATE SET ${assignments(columns(part))}`;
}

const UPSERTS = Object.fromEntries(PARTS.map((part) => [part, upsert(part)]));
const bucket = process.env.ARCHIVE_BUCKET;
const s3 = new S3Client({ forcePathStyle: Boolean(process.env.AWS_ENDPOINT_URL) });
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 1, idleTimeoutMillis: 0 });
// Without a listener the end of an idle connection would end the process.
pool.on("error", (error) => console.error(error));

const deserialize = (item) => unmarshall(item, { wrapNumbers: (text) => new LosslessNumber(text) });

// The part that a record is about, and its values in the order of the statement.
function change(record) {
  const keys = deserialize(record.dynamodb.Keys);
  const table = record.eventSourceARN.split("/")[1];
  const part = { sessions: "session", scans: keys.side }[table];
  // What is removed becomes NULL in each column.
  const image = record.eventName === "REMOVE" ? {} : deserialize(record.dynamodb.NewImage);
  const values = Object.keys(ATTRIBUTES[part]).map((name) => {
    const value = image[name] ?? null;
    if (isLosslessNumber(value)) return value.toString();
    return name === "mesh" && value !== null ? Buffer.from(value, "base64") : value;
  });
  const others = Object.entries(image).filter(([name]) => !(name in keys) && !(name in ATTRIBUTES[part]));
  const fromSet = (_, value) => (value instanceof Set ? [...value] : value);
  const attributes = others.length > 0 ? stringify(Object.fromEntries(others), fromSet) : null;
  return { part, row: [keys.session_id, ...values, attributes] };
}

async function write(rows) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query("BEGIN");
    for (const part of PARTS.filter((part) => rows[part].size > 0)) {
      const list = [...rows[part].values()];
      const arrays = ["session_id", ...columns(part)].map((_, index) => list.map((row) => row[index]));
      await client.query({ name: part, text: UPSERTS[part], values: arrays });
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

async function archive(sessionIds) {
  const { rows } = await pool.query({ name: "read", text: READ_ROWS, values: [sessionIds] });
  const remaining = rows.values();
  const worker = async () => {
    for (const { session_id, body } of remaining) {
      const key = `measurements/${session_id}.json`;
      await s3.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: body, ContentType: "application/json" }));
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
}

serve(async (event) => {
  // One statement cannot write a row twice: the last of the batch counts.
  const rows = { session: new Map(), left: new Map(), right: new Map() };
  const batchItemFailures = [];
  for (const record of event.Records) {
    try {
      const { part, row } = change(record);
      rows[part].set(row[0], row);
    } catch (error) {
      console.error(error);
      batchItemFailures.push({ itemIdentifier: record.dynamodb.SequenceNumber });
    }
  }
  await write(rows);
  if (bucket) await archive([...new Set(PARTS.flatMap((part) => [...rows[part].keys()]))]);
  return { batchItemFailures };
});
