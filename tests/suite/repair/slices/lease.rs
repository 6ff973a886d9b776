//! The lease of a repair by slices keeps others away while it lives; once it is taken over, its
//! slices write nothing any more.

use std::sync::Arc;
use std::time::Duration;

use projector::database::Database;
use projector::error::Error;
use serde_json::json;
use testkit::records::{LABEL, session};
use testkit::runs::{assert_code, text, until};
use testkit::services::{Stores, apply};

use super::super::{QUICK, World};
use super::{Caller, Files, Following, TIMEOUT, changes};

/// The heartbeat of eleven minutes ago.
const DIES: &str = "UPDATE repairs SET heartbeat_at = clock_timestamp() - interval '11 minutes' \
                    WHERE ended_at IS NULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_lives_refuses_everybody_else_and_a_dead_one_is_ended() {
    let world = World::with_sessions(4).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin("arn:execution:one").await;
    assert_eq!(caller.begin("arn:execution:one").await, begun, "a call that is repeated");
    let (run, repair) = (begun.run, begun.id());
    let other = json!({"begin": {"source": "reconcile", "owner": "two", "repair": true}});
    let said = caller.refused(&other, "HeldByAnother").await;
    let owner = format!("repair {repair} of \"arn:execution:one\"");
    assert!(said.contains(&owner) && said.contains("last heartbeat"), "{said}");
    assert!(said.contains("ends 10 min 0 s after its last heartbeat"), "{said}");
    let peer = Stores::fresh().await;
    for command in [
        &[&["repair", "--scan"], &QUICK[..]].concat()[..],
        &["redrive"],
        &["merge", "--from", &peer.database_url],
    ] {
        let refused = world.run(command).await;
        assert_code(&refused, 1);
        let said = text(&refused.stderr);
        assert!(said.contains(&owner), "{command:?}: {said}");
    }
    for command in ["status", "doctor"] {
        let shown = text(&world.run(&[command]).await.stdout);
        assert!(shown.contains(&owner), "{command}: {shown}");
    }

    world.stores.change(DIES).await;
    let repaired = world.run(&[&["repair", "--scan"], &QUICK[..]].concat()).await;
    assert_code(&repaired, 0);
    let said = text(&repaired.stderr);
    assert!(said.contains("is dead, and is ended"), "{said}");
    let kept = "SELECT string_agg(concat_ws(' ', source, ended_at IS NOT NULL, complete), ', ' \
                ORDER BY id) FROM repairs";
    assert_eq!(world.stores.ask(kept).await, "reconcile t f, scan t t");
    let owner = "arn:execution:one";
    let end = json!({"run": run, "repair": repair, "owner": owner, "complete": true});
    let end = json!({ "end": end });
    let said = caller.refused(&end, "LeaseEnded").await;
    assert!(said.contains("another one has taken over"), "{said}");
}

/// Another owner takes over while a slice holds an image back.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_whose_lease_was_taken_over_writes_nothing() {
    let world = World::with_sessions(10).await;
    let of_each: Vec<_> = (0..10).flat_map(|number| changes(number..number + 1)).collect();
    world.write_and_forget(&of_each).await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin("one").await;
    let following = Following::start(world.starter(), (begun.id(), "one"), TIMEOUT);
    world.streams_are_read().await;
    following.stop().await;
    let before = world.stores.rows().await;
    // Nobody follows the streams, so what the slice reads waits.
    let slice = files.slices(begun).remove(0);
    let mut of_slice = Caller::start(world.function()).await;
    let asking = tokio::spawn(async move { of_slice.try_ask(&slice).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.stores.change(DIES).await;
    let second = caller.begin("two").await;
    assert!(second.id() > begun.id());
    let error = asking.await.expect("it answers").expect_err("its lease is gone");
    // Or it sees that nobody follows the streams, just before.
    assert!(["LeaseEnded", "Failed"].iter().any(|name| error["errorType"] == *name), "{error}");
    assert!(world.stores.rows().await == before);
    let said = caller.refused(&files.slices(begun)[0], "LeaseEnded").await;
    assert!(said.contains("begin a new one"), "{said}");
}

/// A database with a row, a lease, and two users of it.
struct Fence {
    stores: Stores,
    database: Arc<Database>,
    repair: i64,
}

const UPDATE: &str = "UPDATE measurements SET user_id = 'slice' RETURNING 1";

impl Fence {
    async fn new() -> Self {
        let stores = Stores::fresh().await;
        let projector = stores.projector().await;
        apply(&projector, &[session("s1", "u").place(LABEL, 1)]).await;
        let sql = "INSERT INTO repairs (source, owner, heartbeat_at) \
                   VALUES ('reconcile', 'one', clock_timestamp())";
        stores.change(sql).await;
        let repair = stores.ask("SELECT id FROM repairs").await.parse().expect("an id");
        Self { stores, database: Arc::new(projector.database), repair }
    }

    /// What a slice writes over its connection.
    async fn write(&self) -> Result<Vec<(i32,)>, Error> {
        let connection = self.database.connect().await?;
        let mut connection = connection.fenced(self.repair).await?;
        connection.fetch(UPDATE, projector::bind![]).await
    }

    async fn waiting(&self, count: usize) {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let count = count.to_string();
        until("somebody waits", async || self.stores.ask(sql).await == count).await;
    }
}

/// Both orders of a write and an end that meet, each of them whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_comes_before_the_end_of_its_lease_or_not_at_all() {
    let fence = Arc::new(Fence::new().await);
    let lock = format!("SELECT id FROM repairs WHERE id = {} FOR UPDATE", fence.repair);
    let end =
        format!("UPDATE repairs SET ended_at = clock_timestamp() WHERE id = {}", fence.repair);

    // The write is under way: the end waits for it, and so does no heartbeat.
    let mut row = fence.stores.connect().await;
    row.run("BEGIN").await;
    row.run("UPDATE measurements SET user_id = 'stream'").await;
    let writing = tokio::spawn({
        let fence = Arc::clone(&fence);
        async move { fence.write().await }
    });
    fence.waiting(1).await;
    fence.stores.change("UPDATE repairs SET heartbeat_at = clock_timestamp()").await;
    let (mut ending, lock_again, end_again) = (fence.stores.connect().await, lock.clone(), end);
    let ended = tokio::spawn(async move {
        ending.run("BEGIN").await;
        ending.run(&lock_again).await;
        ending.run(&end_again).await;
        ending
    });
    fence.waiting(2).await;
    row.run("COMMIT").await;
    assert_eq!(writing.await.expect("it writes").expect("in time").len(), 1);
    let mut ending = ended.await.expect("it ends");

    // The end is not committed yet: the next write waits for it, and is refused.
    fence.stores.change("UPDATE measurements SET user_id = 'later'").await;
    let writing = tokio::spawn({
        let fence = Arc::clone(&fence);
        async move { fence.write().await }
    });
    fence.waiting(1).await;
    ending.run("COMMIT").await;
    let error = writing.await.expect("it answers").expect_err("its lease has ended");
    assert!(matches!(error, Error::LeaseEnded { repair } if repair == fence.repair), "{error}");
    assert_eq!(fence.stores.ask("SELECT user_id FROM measurements").await, "later");
}

/// Beside a connection that was fenced while its lease lived.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_fenced_in_time_writes_nothing_after_the_end() {
    let fence = Fence::new().await;
    let connection = fence.database.connect().await.expect("a connection");
    let mut connection = connection.fenced(fence.repair).await.expect("its lease lives");
    connection.fetch::<(i32,)>(UPDATE, projector::bind![]).await.expect("it writes");
    fence.stores.change("UPDATE repairs SET ended_at = clock_timestamp()").await;
    fence.stores.change("UPDATE measurements SET user_id = 'later'").await;
    for _ in 0..2 {
        let error = connection.fetch::<(i32,)>(UPDATE, projector::bind![]).await;
        let error = error.expect_err("its lease has ended");
        assert!(matches!(error, Error::LeaseEnded { .. }), "{error}");
    }
    assert_eq!(fence.stores.ask("SELECT user_id FROM measurements").await, "later");
}
