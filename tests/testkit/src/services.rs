//! The services of `scripts/with-services`, and a fresh database and bucket for each test.

use std::collections::BTreeMap;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use projector::apply::{BatchOutcome, Projector};
use projector::archive::Archive;
use projector::change::Tables;
use projector::config::{self, ArchiveConfig, ArchiveObjects, DatabaseConfig, Login, TtlRemovals};
use projector::database::Database;
use projector::deadline::Deadline;
use serde_json::Value as Json;

use crate::oracle::Rows;
use crate::records::Record;
use crate::sql::Client;

/// A variable that `scripts/with-services` sets.
///
/// # Panics
/// Where it is not set.
#[must_use]
pub fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: these tests want real services, run them with `make test` \
            or `scripts/with-services --with-dynamodb --with-sam --with-pgbouncer --with-registry \
            cargo nextest run --workspace`"
        )
    })
}

/// A database and a bucket of a test's own.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The database's URL, for its owner.
    pub database_url: String,
    /// The bucket's name.
    pub bucket: String,
}

/// Lets a row never go back, and never go: any statement that tried would fail, and with it the
/// test.
const GUARD: &str = "
    CREATE FUNCTION never_back() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF new.session_version < old.session_version OR new.left_version < old.left_version
            OR new.right_version < old.right_version
            OR (old.session_version IS NOT NULL AND new.session_version IS NULL)
            OR (old.left_version IS NOT NULL AND new.left_version IS NULL)
            OR (old.right_version IS NOT NULL AND new.right_version IS NULL)
        THEN
            RAISE EXCEPTION 'the row of % goes back', old.session_id USING ERRCODE = '58000';
        END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER never_back BEFORE UPDATE ON measurements FOR EACH ROW EXECUTE FUNCTION never_back();
    CREATE FUNCTION never_gone() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'a row is deleted' USING ERRCODE = '58000'; END $$;
    CREATE TRIGGER never_gone BEFORE DELETE ON measurements FOR EACH ROW EXECUTE FUNCTION never_gone();
";

const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

/// The objects of a bucket, by key.
pub type Objects = BTreeMap<String, Vec<u8>>;

impl Stores {
    /// A migrated database and an empty bucket.
    ///
    /// # Panics
    /// Where the services refuse.
    pub async fn fresh() -> Self {
        let stores = Self::unmigrated().await;
        stores.migrate().await;
        stores
    }

    /// Runs the migrations of this workspace; a second time they change nothing.
    ///
    /// # Panics
    /// If PostgreSQL refuses them.
    pub async fn migrate(&self) {
        self.connect().await.migrate().await;
    }

    /// An empty database and an empty bucket.
    ///
    /// # Panics
    /// Where the services refuse.
    pub async fn unmigrated() -> Self {
        let name = format!("test-{:016x}", fastrand::u64(..));
        let admin_url = service("DATABASE_URL");
        Client::connect(&admin_url).await.run(&format!("CREATE DATABASE {name:?}")).await;
        s3(&service("AWS_ENDPOINT_URL"))
            .await
            .create_bucket()
            .bucket(&name)
            .send()
            .await
            .expect("a bucket");
        let database_url = admin_url.replace("/postgres?", &format!("/{name}?"));
        Self { database_url, bucket: name }
    }

    /// From now on no row of `measurements` goes back or is deleted: the statement fails.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn forbid_going_back(&self) {
        self.change(GUARD).await;
    }

    /// Another database with the same content, as restored from a snapshot, and an empty bucket.
    /// Nobody may be connected to this one.
    ///
    /// # Panics
    /// Where the services refuse.
    pub async fn restored(&self) -> Self {
        let restored = Self::unmigrated().await;
        let mut admin = Client::connect(&service("DATABASE_URL")).await;
        let (from, to) = (&self.bucket, &restored.bucket);
        for sql in
            [format!("DROP DATABASE {to:?}"), format!("CREATE DATABASE {to:?} TEMPLATE {from:?}")]
        {
            admin.run(&sql).await;
        }
        restored
    }

    /// The same with this bucket: a restored database beside the objects of the one it was taken
    /// from. Whoever is connected to this one is disconnected.
    ///
    /// # Panics
    /// Where the services refuse.
    pub async fn restored_with_its_bucket(&self) -> Self {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.ask(end).await;
        while self.ask(OTHERS).await != "0" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let restored = self.restored().await;
        Self { bucket: self.bucket.clone(), ..restored }
    }

    /// `host:port` of the database.
    ///
    /// # Panics
    /// Where the URL names none.
    #[must_use]
    pub fn database_host(&self) -> String {
        let (_, host) = self.database_url.split_once('@').expect("a host");
        host.split('/').next().expect("a host").to_owned()
    }

    /// The same stores, where the database is reached at another `host:port`.
    #[must_use]
    pub fn with_database_at(&self, host: &str) -> Self {
        let database_url = self.database_url.replace(&self.database_host(), host);
        Self { database_url, ..self.clone() }
    }

    /// A connection as the database's owner.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.database_url).await
    }

    /// The first column of the first row.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn ask(&self, sql: &str) -> String {
        self.connect().await.ask(sql).await
    }

    /// Runs a statement, and returns how many rows it changed.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn change(&self, sql: &str) -> u64 {
        self.connect().await.run(sql).await
    }

    /// A projector of both stores.
    pub async fn projector(&self) -> Projector {
        self.projector_at(&service("AWS_ENDPOINT_URL"), 1).await
    }

    /// A projector whose S3 is at this URL, with this many connections to the database.
    pub async fn projector_at(&self, s3_url: &str, connections: usize) -> Projector {
        self.projector_at_within(s3_url, connections, None).await
    }

    /// The same, whose calls of S3 have these limits; without, they wait for an answer for ever.
    pub async fn projector_at_within(
        &self,
        s3_url: &str,
        connections: usize,
        limits: Option<TimeoutConfig>,
    ) -> Projector {
        let mut aws = aws(s3_url).await;
        if let Some(limits) = limits {
            aws = aws.into_builder().timeout_config(limits).build();
        }
        self.projector_of(&aws, connections)
    }

    /// A projector whose calls of S3 are made by this configuration.
    #[must_use]
    pub fn projector_of(&self, aws: &SdkConfig, connections: usize) -> Projector {
        let archive = self.archive(ArchiveObjects::Every);
        let mut projector = self.projector_without_archive(&self.database_url, connections);
        projector.archive = Some(Archive::new(archive, aws));
        projector
    }

    /// A projector that writes objects in this mode, and whose S3 is at this URL.
    pub async fn projector_writing(&self, objects: ArchiveObjects, s3_url: &str) -> Projector {
        let mut projector = self.projector_without_archive(&self.database_url, 1);
        projector.archive = Some(Archive::new(self.archive(objects), &aws(s3_url).await));
        projector
    }

    fn archive(&self, objects: ArchiveObjects) -> ArchiveConfig {
        let (bucket, prefix) = (self.bucket.clone(), ArchiveConfig::DEFAULT_PREFIX.to_owned());
        ArchiveConfig { bucket, prefix, objects }
    }

    /// A projector of the database alone, at this URL.
    ///
    /// # Panics
    /// Where the URL cannot be read.
    #[must_use]
    pub fn projector_without_archive(&self, database_url: &str, connections: usize) -> Projector {
        let options = config::parse_url(database_url).expect("a URL");
        let config = DatabaseConfig { url: Some(options), login: Login::Url, connections };
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        Projector::new(tables, TtlRemovals::Apply, Database::new(config, None), None)
    }

    /// Every row of `measurements`.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn rows(&self) -> Rows {
        let sql = "SELECT session_id, row_to_json(m)::text FROM measurements m";
        let rows: Vec<(String, String)> = self.connect().await.rows(sql).await;
        let json = |text: String| serde_json::from_str::<Json>(&text).expect("JSON");
        rows.into_iter().map(|(session_id, row)| (session_id, json(row))).collect()
    }

    /// Where each row lies, who wrote it and who last locked it: any write or lock of a row changes
    /// it.
    ///
    /// # Panics
    /// Where PostgreSQL refuses.
    pub async fn row_places(&self) -> Vec<(String, String, String, String)> {
        let sql =
            "SELECT session_id, xmin::text, ctid::text, xmax::text FROM measurements ORDER BY 1";
        self.connect().await.rows(sql).await
    }

    /// Every object of the bucket.
    ///
    /// # Panics
    /// Where S3 refuses.
    pub async fn objects(&self) -> Objects {
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        let mut objects = Objects::new();
        let mut pages = client.list_objects_v2().bucket(&self.bucket).into_paginator().send();
        while let Some(page) = pages.next().await {
            for object in page.expect("a page").contents() {
                let key = object.key().expect("a key");
                let body = client
                    .get_object()
                    .bucket(&self.bucket)
                    .key(key)
                    .send()
                    .await
                    .expect("an object")
                    .body;
                objects.insert(key.to_owned(), body.collect().await.expect("a body").to_vec());
            }
        }
        objects
    }

    /// How many rows `rejected_records` has.
    pub async fn rejected(&self) -> usize {
        self.ask("SELECT count(*) FROM rejected_records").await.parse().unwrap_or(usize::MAX)
    }
}

/// Objects as JSON.
///
/// # Panics
/// Where one is none.
#[must_use]
pub fn parsed(objects: &Objects) -> BTreeMap<String, Json> {
    let json = |body: &Vec<u8>| serde_json::from_slice(body).expect("JSON");
    objects.iter().map(|(key, body)| (key.clone(), json(body))).collect()
}

/// An AWS configuration whose services are all at this URL.
pub async fn aws(url: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest()).endpoint_url(url).load().await
}

/// The same, whose calls are repeated at once if they fail: faults of a test cost no seconds.
pub async fn hasty_aws(url: &str) -> SdkConfig {
    let retries = RetryConfig::standard()
        .with_max_attempts(4)
        .with_initial_backoff(std::time::Duration::from_millis(1));
    aws_config::defaults(BehaviorVersion::latest())
        .endpoint_url(url)
        .retry_config(retries)
        .load()
        .await
}

/// An S3 client.
pub async fn s3(url: &str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(&aws(url).await).force_path_style(true).build();
    aws_sdk_s3::Client::from_conf(config)
}

/// From now on a bucket keeps every version of its objects.
///
/// # Panics
/// If S3 refuses it.
pub async fn keep_versions(client: &aws_sdk_s3::Client, bucket: &str) {
    let status = aws_sdk_s3::types::BucketVersioningStatus::Enabled;
    let versions = aws_sdk_s3::types::VersioningConfiguration::builder().status(status).build();
    let request = client.put_bucket_versioning().bucket(bucket).versioning_configuration(versions);
    request.send().await.expect("it keeps versions");
}

/// Applies records in batches, and sees that nothing failed.
///
/// # Panics
/// Where something failed.
pub async fn apply_all(
    projector: &Projector,
    records: &[Record],
    batch_size: usize,
) -> Vec<BatchOutcome> {
    let mut applied = Vec::new();
    for batch in records.chunks(batch_size) {
        applied.push(apply(projector, batch).await);
    }
    applied
}

/// Applies one batch, and sees that nothing failed.
///
/// # Panics
/// Where something failed.
pub async fn apply(projector: &Projector, records: &[Record]) -> BatchOutcome {
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    let applied = Box::pin(projector.apply(&json, Deadline::NONE)).await.expect("no fatal error");
    assert_eq!(applied.failed, [0; 0], "nothing fails");
    applied
}
