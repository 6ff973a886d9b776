//! DynamoDB Local: tables, their streams, and a clock that closes shards.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value as Json, json};

use crate::aws_json;
use crate::services::service;

/// The age at which DynamoDB closes a shard, and a moment more.
const SHARD_SECONDS: i64 = 4 * 60 * 60 + 1;

/// What a table's key is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// `session_id`.
    Sessions,
    /// `session_id` and `side`.
    Scans,
}

/// One write of a batch.
#[derive(Clone, Debug)]
pub enum Write {
    /// Puts this item, in DynamoDB's JSON.
    Put(Json),
    /// Deletes the item of this key, in DynamoDB's JSON.
    Delete(Json),
}

/// A DynamoDB Local, which all tests of a run share.
#[derive(Clone, Debug)]
pub struct DynamoDb {
    address: String,
}

impl DynamoDb {
    /// The one at this URL (`http://host:port`).
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { address: url.trim_start_matches("http://").to_owned() }
    }

    /// Calls an operation of DynamoDB or of DynamoDB Streams, by its name in the API.
    ///
    /// # Errors
    /// Where there is no answer, or a refusal: the text has its type
    /// (`…#TrimmedDataAccessException`).
    pub async fn call(&self, operation: &str, body: &Json) -> anyhow::Result<Json> {
        let service = match operation {
            "DescribeStream" | "GetRecords" | "GetShardIterator" | "ListStreams" => {
                "DynamoDBStreams_20120810"
            }
            _ => "DynamoDB_20120810",
        };
        aws_json::call(&self.address, &format!("{service}.{operation}"), body).await
    }

    async fn expect(&self, operation: &str, body: Json) -> Json {
        self.call(operation, &body).await.expect("DynamoDB Local does it")
    }

    /// Creates a table with a stream of this view type (`NEW_AND_OLD_IMAGES`, `NEW_IMAGE`), and
    /// gives the stream's ARN.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn create_table(&self, name: &str, kind: Kind, view_type: &str) -> String {
        let keys: &[(&str, &str)] = match kind {
            Kind::Sessions => &[("session_id", "HASH")],
            Kind::Scans => &[("session_id", "HASH"), ("side", "RANGE")],
        };
        let attribute =
            |(name, _): &(&str, &str)| json!({"AttributeName": name, "AttributeType": "S"});
        let key = |(name, role): &(&str, &str)| json!({"AttributeName": name, "KeyType": role});
        let table = json!({
            "TableName": name,
            "AttributeDefinitions": keys.iter().map(attribute).collect::<Json>(),
            "KeySchema": keys.iter().map(key).collect::<Json>(),
            "BillingMode": "PAY_PER_REQUEST",
            "StreamSpecification": {"StreamEnabled": true, "StreamViewType": view_type},
        });
        let created = self.expect("CreateTable", table).await;
        created["TableDescription"]["LatestStreamArn"].as_str().expect("an ARN").to_owned()
    }

    /// Puts an item, in DynamoDB's JSON.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn put_item(&self, table: &str, item: &Json) {
        self.expect("PutItem", json!({"TableName": table, "Item": item})).await;
    }

    /// Deletes the item of a key, in DynamoDB's JSON.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn delete_item(&self, table: &str, key: &Json) {
        self.expect("DeleteItem", json!({"TableName": table, "Key": key})).await;
    }

    /// Writes many items fast, and in no order: no key may come twice.
    ///
    /// A write takes the longer the more records there are of other tables, of deleted ones too:
    /// ten thousand cost each write a millisecond or two. So few tests should write thousands.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn write_all(&self, table: &str, writes: &[Write]) {
        let request = |write: &Write| match write {
            Write::Put(item) => json!({"PutRequest": {"Item": item}}),
            Write::Delete(key) => json!({"DeleteRequest": {"Key": key}}),
        };
        // As many as DynamoDB takes at once.
        let batch_of = |batch: &[Write]| json!({"RequestItems": {table: batch.iter().map(request).collect::<Json>()}});
        // Collected, so that a task may do it: a future that holds closures over slices is not
        // `Send`.
        let batches: Vec<Json> = writes.chunks(25).map(batch_of).collect();
        let send = async |batch| {
            let answer = self.call("BatchWriteItem", &batch).await?;
            anyhow::ensure!(
                answer["UnprocessedItems"] == json!({}),
                "not all was written: {answer}"
            );
            Ok(())
        };
        stream::iter(batches.into_iter().map(send))
            .buffer_unordered(8)
            .try_collect::<()>()
            .await
            .expect("DynamoDB Local writes it");
    }

    /// Every item of a table.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn scan(&self, table: &str) -> Vec<Json> {
        let mut items = Vec::new();
        let mut scan = json!({"TableName": table});
        loop {
            let mut page = self.expect("Scan", scan.clone()).await;
            items.append(page["Items"].as_array_mut().expect("items"));
            match page["LastEvaluatedKey"].take() {
                Json::Null => return items,
                last => scan["ExclusiveStartKey"] = last,
            }
        }
    }

    /// Every shard of a stream, as `DescribeStream` gives it.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn shards(&self, stream_arn: &str) -> Vec<Json> {
        let mut shards = Vec::new();
        let mut describe = json!({"StreamArn": stream_arn});
        loop {
            let mut page = self.expect("DescribeStream", describe.clone()).await;
            let page = &mut page["StreamDescription"];
            shards.append(page["Shards"].as_array_mut().expect("shards"));
            match page["LastEvaluatedShardId"].take() {
                Json::Null => return shards,
                last => describe["ExclusiveStartShardId"] = last,
            }
        }
    }

    /// Every record of a shard, from its beginning to its end or, where it is open, to where there
    /// are none now; and whether it ended there.
    ///
    /// # Panics
    /// Where DynamoDB Local refuses.
    pub async fn records(&self, stream_arn: &str, shard_id: &str) -> (Vec<Json>, bool) {
        let mut records = Vec::new();
        let begin = json!({"StreamArn": stream_arn, "ShardId": shard_id, "ShardIteratorType": "TRIM_HORIZON"});
        let mut iterator = self.expect("GetShardIterator", begin).await["ShardIterator"].take();
        loop {
            let mut page = self.expect("GetRecords", json!({"ShardIterator": iterator})).await;
            let found = page["Records"].as_array_mut().expect("records");
            let none = found.is_empty();
            records.append(found);
            iterator = page["NextShardIterator"].take();
            if none || iterator.is_null() {
                return (records, iterator.is_null());
            }
        }
    }

    /// Closes the open shard of each of these streams, and waits for its child.
    ///
    /// The clock goes forward by a shard's four hours, and that for all tables of the run: their
    /// shards close too, iterators expire (after 15 minutes), and what is older than 24 hours, six
    /// rolls, is trimmed. A test that rolls twice leaves room for two more such beside it.
    ///
    /// # Panics
    /// Where no child comes.
    pub async fn roll_shards(&self, stream_arns: &[&str]) {
        let mut before = Vec::new();
        for arn in stream_arns {
            before.push(self.shards(arn).await.len());
        }
        put_clock_forward(SHARD_SECONDS).expect("the clock's file is there");
        for (arn, before) in stream_arns.iter().zip(before) {
            let mut tries = 0;
            while self.shards(arn).await.len() == before {
                tries += 1;
                assert!(
                    tries < 1000,
                    "the shard stays open: does a Java of version 17 or later run it?"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Adds to the integer that `scripts/services/dynamodb-local.c` reads. The file keeps its length,
/// for it is mapped there.
fn put_clock_forward(seconds: i64) -> std::io::Result<()> {
    let path = service("DYNAMODB_LOCAL_CLOCK");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // Tests are processes of their own.
    file.lock()?;
    let mut ahead = [0; 8];
    file.read_exact_at(&mut ahead, 0)?;
    file.write_all_at(&(i64::from_ne_bytes(ahead) + seconds).to_ne_bytes(), 0)
}
