//! `backfill stream` applies two batches at once: what is stored early is no checkpoint, what is
//! read ahead is bounded, and rows become visible as they come.

use std::time::Duration;

use testkit::records::{LABEL, Record, Table, session};
use testkit::runs::{assert_code, assert_equal, backfill, signal, stream, text, until};
use testkit::services::Stores;
use testkit::sql::Client;
use testkit::stream_server::StreamServer;

/// Sessions' records of two shards of one stream, and the empty stream of the scans.
struct Shards {
    server: StreamServer,
    arn: String,
    /// In the shard that is read first.
    locked: Record,
    /// For the other one.
    others: Vec<Record>,
}

impl Shards {
    async fn start() -> Self {
        let server = StreamServer::start().await;
        let arn = server.add_stream(Table::Sessions, LABEL);
        let scans = server.add_stream(Table::Scans, LABEL);
        server.set_page_size(1);
        server.open_shard(&scans, "scans", None);
        server.open_shard(&arn, "first", None);
        server.open_shard(&arn, "other", None);
        let locked = session("locked", "u").place(LABEL, 1);
        server.put(&arn, "first", std::slice::from_ref(&locked));
        let others = (2..).zip(["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"]);
        let others = others.map(|(place, id)| session(id, "u").place(LABEL, place)).collect();
        Self { server, arn, locked, others }
    }

    /// Adds the records of the other shard.
    fn put_others(&self, records: &[Record]) {
        self.server.put(&self.arn, "other", records);
    }

    fn all(&self) -> Vec<Record> {
        std::iter::once(&self.locked).chain(&self.others).cloned().collect()
    }
}

/// Locks the row of the first shard's record, until the connection is closed.
async fn lock(stores: &Stores) -> Client {
    let mut owner = stores.connect().await;
    owner.run("INSERT INTO measurements (session_id) VALUES ('locked')").await;
    owner.run("BEGIN; SELECT 1 FROM measurements WHERE session_id = 'locked' FOR UPDATE").await;
    owner
}

/// Waits until a statement waits for that row.
async fn until_a_batch_waits(stores: &Stores) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND \
         datname = current_database()";
    until("a batch that waits for a lock", async || stores.ask(waiting).await == "1").await;
}

async fn until_stored(stores: &Stores, session: &str) {
    until(session, async || stores.rows().await.contains_key(session)).await;
}

/// How many shards have a checkpoint after a record.
async fn checkpoints(stores: &Stores) -> String {
    let sql = "SELECT count(*) FROM backfill_checkpoints WHERE sequence_number IS NOT NULL";
    stores.ask(sql).await
}

/// Ends a run in good order, whether it has reached its cutoff yet or not, and writes the objects
/// that it has left.
async fn stop(run: tokio::process::Child, stores: &Stores) {
    signal(&run, "TERM");
    let ended = run.wait_with_output().await.expect("it ends");
    assert!(text(&ended.stdout).contains("stopped by a signal"), "{ended:?}");
    assert_code(&backfill(stores, &["objects", "--pending"]), 0);
}

/// Follows, and applies each record as a batch of its own.
const ONE_BY_ONE: [&str; 5] = ["--follow", "--batch-size", "1", "--parallel", "2"];

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_stored_before_an_earlier_one_and_no_checkpoint_passes_either() {
    let (stores, shards) = (Stores::fresh().await, Shards::start().await);
    stores.forbid_going_back().await;
    let owner = lock(&stores).await;
    let mut run = stream(&stores, &shards.server, &ONE_BY_ONE).spawn().expect("backfill runs");
    until_a_batch_waits(&stores).await;
    shards.put_others(&shards.others);
    until_stored(&stores, "b1").await;
    assert_eq!(checkpoints(&stores).await, "0", "the batch before it is not stored");
    run.kill().await.expect("it is killed");
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT \
                oid FROM pg_database WHERE datname = current_database())";
    until("the end of its session", async || stores.ask(held).await == "0").await;

    let run = stream(&stores, &shards.server, &ONE_BY_ONE).spawn().expect("backfill runs");
    until_a_batch_waits(&stores).await;
    owner.close().await;
    until("both checkpoints", async || checkpoints(&stores).await == "2").await;
    until_stored(&stores, "b8").await;
    stop(run, &stores).await;
    assert_equal(&stores, &shards.all()).await;
}

/// The newer change of a session is stored while the batch of the older one waits for a lock. When
/// that one goes on, what it knew of the row is old.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_batch_of_the_same_session_is_stored_first_and_is_not_taken_back() {
    let (stores, shards) = (Stores::fresh().await, Shards::start().await);
    stores.forbid_going_back().await;
    shards.server.set_page_size(2);
    let owner = lock(&stores).await;
    let shared = |user, place| session("shared", user).place(LABEL, place);
    // One batch with the locked row, which comes first by its key; another one after it.
    let of_first = [shared("older", 2), shared("newer", 3)];
    shards.server.put(&shards.arn, "first", &of_first);
    let two_by_two = ["--follow", "--batch-size", "2"];
    let run = stream(&stores, &shards.server, &two_by_two).spawn().expect("backfill runs");
    until_stored(&stores, "shared").await;
    assert_eq!(stores.rows().await["shared"]["user_id"], "newer");
    assert_eq!(checkpoints(&stores).await, "0", "the batch before it is not stored");
    owner.close().await;
    until("the checkpoint", async || checkpoints(&stores).await == "1").await;
    stop(run, &stores).await;
    assert_equal(&stores, &[std::slice::from_ref(&shards.locked), &of_first[..]].concat()).await;
}

/// Two batches under way, one that is gathered, and the pages of `--parallel`.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_read_ahead_than_the_bound_while_the_database_waits() {
    let (stores, shards) = (Stores::fresh().await, Shards::start().await);
    let owner = lock(&stores).await;
    let run = stream(&stores, &shards.server, &ONE_BY_ONE).spawn().expect("backfill runs");
    until_a_batch_waits(&stores).await;
    let asked = || {
        let calls = shards.server.calls();
        calls.iter().filter(|call| call.operation == "GetRecords" && call.shard == "other").count()
    };
    let before = asked();
    shards.put_others(&shards.others);
    until_stored(&stores, "b1").await;
    // Time enough to read all of them, were there no bound: one more batch is gathered, and no
    // reader has a permit for more than two pages.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let read = asked() - before;
    let rows = stores.rows().await;
    assert!(!rows.contains_key("b2"), "a third batch was begun: {:?}", rows.keys());
    assert!((3..=5).contains(&read), "{read} pages were read while nothing could be stored");
    owner.close().await;
    until_stored(&stores, "b8").await;
    stop(run, &stores).await;
    assert_equal(&stores, &shards.all()).await;
}

/// The set-up turns out to be wrong while an earlier batch is in the database: that one still gets
/// its checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_ends_the_run_after_the_one_before_it() {
    let (stores, shards) = (Stores::fresh().await, Shards::start().await);
    let owner = lock(&stores).await;
    let run = stream(&stores, &shards.server, &ONE_BY_ONE).spawn().expect("backfill runs");
    until_a_batch_waits(&stores).await;
    let mut foreign = session("foreign", "u").place(LABEL, 9);
    foreign.json = foreign.json.replace("NEW_IMAGE", "KEYS_ONLY");
    shards.put_others(&[foreign, shards.others[0].clone()]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(checkpoints(&stores).await, "0");
    owner.close().await;
    let ended = run.wait_with_output().await.expect("it ends");
    assert_code(&ended, 2);
    assert!(text(&ended.stderr).contains("enable it with NEW_IMAGE"), "{ended:?}");
    let sql = "SELECT string_agg(shard_id, ',') FROM backfill_checkpoints WHERE sequence_number \
               IS NOT NULL";
    assert_eq!(stores.ask(sql).await, "first");
    assert!(stores.rows().await["locked"]["session_version"].is_string());
}

/// The source hands out a page only once the rows of the page before it are there.
#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_page_are_visible_before_the_next_page_is_handed_out() {
    const PAGES: usize = 8;
    const PAGE: usize = 50;
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let of_page = |page: usize| (page * PAGE + 1)..=((page + 1) * PAGE);
    let records: Vec<Record> = (0..PAGES)
        .flat_map(of_page)
        .map(|place| session(&format!("s{place}"), "u").place(LABEL, place as u128))
        .collect();
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.open_shard(&arn, "shard", None);
    server.add_stream(Table::Scans, LABEL);
    server.set_page_size(PAGE);
    let run = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    for (page, of_page) in (1..).zip(records.chunks(PAGE)) {
        server.put(&arn, "shard", of_page);
        let rows = format!("the rows of page {page}");
        until(&rows, async || stores.rows().await.len() == page * PAGE).await;
    }
    stop(run, &stores).await;
    assert_equal(&stores, &records).await;
}
