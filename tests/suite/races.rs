//! Invocations race for one object. Whatever order their PUTs arrive in, the object is the newest
//! row; without the conditions on the PUTs it would not be, and a test here shows that.

use std::sync::Arc;
use std::time::Duration;

use projector::apply::Projector;
use projector::config::ArchiveObjects;
use serde_json::Value as Json;
use testkit::oracle;
use testkit::records::{LABEL, Record, removal, scan, session};
use testkit::runs::{assert_code, backfill};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, s3, service};
use tokio::sync::Notify;

const KEY: &str = "measurements/s1.json";

struct Race {
    stores: Stores,
    gate: S3Gate,
    older: Projector,
    newer: Projector,
}

impl Race {
    async fn start() -> Self {
        Self::writing(ArchiveObjects::Every).await
    }

    async fn writing(objects: ArchiveObjects) -> Self {
        let stores = Stores::fresh().await;
        let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
        let older = stores.projector_writing(objects, &gate.url).await;
        let newer = stores.projector_writing(objects, &gate.url).await;
        Self { stores, gate, older, newer }
    }

    /// Holds the next PUT back until told, and lets all after it pass.
    fn hold_next_put(&self) -> Arc<Notify> {
        let release = Arc::new(Notify::new());
        let (held, before) = (Arc::clone(&release), self.gate.count("PUT"));
        self.gate.set_rule(move |seen| match seen.method {
            "PUT" if seen.earlier == before => Fault::Hold(Arc::clone(&held)),
            _ => Fault::Pass,
        });
        release
    }

    async fn object(&self) -> Json {
        serde_json::from_slice(&self.stores.objects().await[KEY]).expect("JSON")
    }

    async fn assert_newest(&self) {
        let rows = self.stores.rows().await;
        assert_eq!(self.object().await, oracle::object(&rows["s1"]));
    }

    /// `first` commits and its PUT is held back; `second` goes through; then the held PUT arrives.
    async fn overtake(&self, first: Record, second: Record) {
        let puts = self.gate.count("PUT");
        let release = self.hold_next_put();
        let (first, second) = ([first], [second]);
        let held = async {
            apply(&self.older, &first).await;
        };
        let overtaking = async {
            self.gate.until("PUT", puts + 1).await;
            apply(&self.newer, &second).await;
            release.notify_one();
        };
        tokio::time::timeout(Duration::from_secs(30), futures_util::future::join(held, overtaking))
            .await
            .expect("both end");
    }
}

#[tokio::test]
async fn a_new_rows_put_that_arrives_late_does_not_bring_the_older_row_back() {
    let race = Race::start().await;
    race.overtake(session("s1", "old").place(LABEL, 1), session("s1", "new").place(LABEL, 2)).await;
    assert_eq!(race.object().await["user_id"], "new");
    race.assert_newest().await;
}

/// The PUT of a complete row is in flight when a part of the row is removed. The row is not
/// complete any more, and without an object the PUT would bring the part back.
#[tokio::test]
async fn a_complete_rows_put_that_arrives_late_does_not_bring_a_removed_part_back() {
    let race = Race::writing(ArchiveObjects::Complete).await;
    let (left, right) = (scan("s1", "left", "245.3"), scan("s1", "right", "245.9"));
    apply(&race.older, &[session("s1", "u").place(LABEL, 1), left.place(LABEL, 2)]).await;
    assert_eq!((race.gate.count("PUT"), race.gate.count("HEAD")), (0, 1));
    race.overtake(right.place(LABEL, 3), removal(&left).place(LABEL, 4)).await;
    assert_eq!(race.object().await["complete"], false);
    race.assert_newest().await;
}

#[tokio::test]
async fn an_updates_put_that_arrives_late_does_not_bring_the_older_row_back() {
    let race = Race::start().await;
    apply(&race.older, &[session("s1", "first").place(LABEL, 1)]).await;
    race.overtake(session("s1", "old").place(LABEL, 2), session("s1", "new").place(LABEL, 3)).await;
    assert_eq!(race.object().await["user_id"], "new");
    race.assert_newest().await;
}

/// Both PUTs are held back after both HEADs, and released in each order: the newest row wins, also
/// where its PUT is the one that is refused and has to look again.
#[tokio::test]
async fn two_puts_that_were_both_held_back_end_in_the_newest_row_in_each_order() {
    for newest_first in [false, true] {
        let race = Race::start().await;
        apply(&race.older, &[session("s1", "first").place(LABEL, 1)]).await;
        let before = race.gate.count("PUT");
        let releases = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let held = releases.clone();
        race.gate.set_rule(move |seen| match (seen.method, seen.earlier.checked_sub(before)) {
            ("PUT", Some(index @ (0 | 1))) => Fault::Hold(Arc::clone(&held[index])),
            _ => Fault::Pass,
        });
        let (left, right) = (scan("s1", "left", "245.3"), scan("s1", "right", "245.9"));
        let (left, right) = ([left.place(LABEL, 2)], [right.place(LABEL, 3)]);
        let (_, _, ()) = tokio::time::timeout(
            Duration::from_secs(30),
            futures_util::future::join3(
                apply(&race.older, &left),
                async {
                    race.gate.until("PUT", before + 1).await;
                    apply(&race.newer, &right).await
                },
                async {
                    race.gate.until("PUT", before + 2).await;
                    let [older, newer] = &releases;
                    let (first, then) = if newest_first { (newer, older) } else { (older, newer) };
                    first.notify_one();
                    // The first is through before the other goes.
                    while race.object().await["versions"]["left"].is_null() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    then.notify_one();
                },
            ),
        )
        .await
        .expect("all end");
        race.assert_newest().await;
        assert_eq!(race.object().await["complete"], true, "newest first: {newest_first}");
    }
}

/// A statement of an invocation that was killed goes on in the server and commits; nobody will ever
/// PUT for it. The redelivery waits for its lock, finds nothing to write, and must not take the
/// versions that it saw before for the row's.
#[tokio::test]
async fn a_commit_whose_writer_is_gone_is_archived_by_the_writer_it_overtook() {
    for earlier in [false, true] {
        let race = Race::start().await;
        let newest = session("s1", "new").place(LABEL, 2);
        if earlier {
            apply(&race.older, &[session("s1", "old").place(LABEL, 1)]).await;
        } else {
            // An object that holds no less than no row at all.
            let other = Stores { bucket: race.stores.bucket.clone(), ..Stores::fresh().await };
            apply(&other.projector().await, &[session("s1", "old").place(LABEL, 1)]).await;
        }
        let mut gone = race.stores.connect().await;
        let version = format!("{LABEL}/{:040}", 2);
        let orphan = format!(
            "BEGIN; INSERT INTO measurements (session_id, user_id, started_at, device_model, \
             session_version, session_changed_at) VALUES ('s1', 'new', '2026-11-22T08:00:00Z', \
             'iPhone16,2', '{version}', to_timestamp(1795334400)) ON CONFLICT (session_id) DO \
             UPDATE SET user_id = excluded.user_id, session_version = excluded.session_version"
        );
        gone.run(&orphan).await;
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'projector' AND wait_event_type = 'Lock'";
        let batch = [newest];
        let (_, ()) = futures_util::future::join(apply(&race.newer, &batch), async {
            while race.stores.ask(waiting).await != "1" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            gone.run("COMMIT").await;
        })
        .await;
        assert_eq!(race.object().await["user_id"], "new");
        race.assert_newest().await;
    }
}

/// The proof that the tests above can fail: without If-Match and If-None-Match, both go back.
#[tokio::test]
async fn without_the_conditions_the_object_would_go_back() {
    for earlier in [false, true] {
        let race = Race::start().await;
        race.gate.strip_conditions();
        if earlier {
            apply(&race.older, &[session("s1", "first").place(LABEL, 1)]).await;
        }
        race.overtake(session("s1", "old").place(LABEL, 2), session("s1", "new").place(LABEL, 3))
            .await;
        assert_eq!(race.stores.rows().await["s1"]["user_id"], "new");
        assert_eq!(
            race.object().await["user_id"],
            "old",
            "the guard is not what keeps the object new"
        );
    }
}

/// A PUT from before the removal is still in flight when everything has been removed: the tombstone
/// stays, because it is an object like any other and not a deletion.
#[tokio::test]
async fn a_late_put_does_not_bring_a_removed_session_back() {
    let race = Race::start().await;
    let written = session("s1", "u");
    race.overtake(written.place(LABEL, 1), removal(&written).place(LABEL, 2)).await;
    assert_eq!(race.object().await["deleted"], true);
    race.assert_newest().await;
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let tagged = client
        .get_object_tagging()
        .bucket(&race.stores.bucket)
        .key(KEY)
        .send()
        .await
        .expect("tags");
    assert_eq!(
        tagged.tag_set().iter().map(|tag| (tag.key(), tag.value())).collect::<Vec<_>>(),
        [("state", "deleted")]
    );

    // Written once more, it is no tombstone any longer. (S3 drops the tag with the object that is
    // overwritten; the stand-in keeps it, so that is not to be seen here.)
    apply(&race.newer, &[written.place(LABEL, 3)]).await;
    race.assert_newest().await;
}

/// Eight invocations write eight versions at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_once_end_in_the_newest_row() {
    let stores = Stores::fresh().await;
    let mut writers = Vec::new();
    for version in 1..=8_u128 {
        let projector = stores.projector().await;
        writers.push(tokio::spawn(async move {
            let part = match version % 3 {
                0 => session("s1", &version.to_string()),
                1 => scan("s1", "left", &format!("24{version}.5")),
                _ => scan("s1", "right", &format!("24{version}.5")),
            };
            apply(&projector, &[part.place(LABEL, version)]).await;
        }));
    }
    for writer in writers {
        writer.await.expect("no failure");
    }
    let rows = stores.rows().await;
    let object: Json = serde_json::from_slice(&stores.objects().await[KEY]).expect("JSON");
    assert_eq!(object, oracle::object(&rows["s1"]));
}

/// The old and the new database write one bucket, and each knows one part better than the other:
/// the object takes the newer of each and goes back in none.
#[tokio::test]
async fn two_databases_that_write_one_bucket_never_take_a_part_back() {
    let old = Stores::fresh().await;
    let new = Stores { bucket: old.bucket.clone(), ..Stores::fresh().await };
    let (of_old, of_new) = (old.projector().await, new.projector().await);
    let objects =
        || async { serde_json::from_slice::<Json>(&old.objects().await[KEY]).expect("JSON") };
    let (first, second) =
        (session("s1", "first").place(LABEL, 1), session("s1", "second").place(LABEL, 5));
    let (left, again) =
        (scan("s1", "left", "245.3").place(LABEL, 2), scan("s1", "left", "245.9").place(LABEL, 6));
    apply(&of_old, &[first.clone(), second.clone(), left.clone()]).await;
    // The new database is behind with the session, and ahead with the foot.
    apply(&of_new, &[first, left, again.clone()]).await;
    let object = objects().await;
    assert_eq!(object["user_id"], "second");
    assert_eq!(object["left_foot_length_mm"].to_string(), "245.9");

    // Each catches up; the object is the row of both.
    apply(&of_new, &[second]).await;
    apply(&of_old, &[again]).await;
    assert_eq!(old.rows().await, new.rows().await);
    assert_eq!(objects().await, oracle::object(&old.rows().await["s1"]));
}

/// As above, where what the other database knows better is that everything was removed: the object
/// ends in the very bytes that the row alone would give.
#[tokio::test]
async fn a_part_written_into_another_databases_tombstone_keeps_the_time_of_the_removal() {
    let old = Stores::fresh().await;
    let new = Stores { bucket: old.bucket.clone(), ..Stores::fresh().await };
    let alone = Stores::fresh().await;
    let written = session("s1", "u");
    let (first, gone) = (written.place(LABEL, 1), removal(&written).place(LABEL, 5));
    let left = scan("s1", "left", "245.3").place(LABEL, 2);
    apply(&old.projector().await, &[first.clone(), gone.clone()]).await;
    apply(&new.projector().await, &[first, left.clone()]).await;
    apply(&new.projector().await, std::slice::from_ref(&gone)).await;
    apply(&old.projector().await, std::slice::from_ref(&left)).await;
    apply(&alone.projector().await, &[gone, left]).await;
    assert_eq!(old.rows().await, new.rows().await);
    assert!(old.objects().await == alone.objects().await);
}

/// Downloads the object and uploads it again, as a bucket is restored by hand: the metadata is
/// gone.
async fn lose_metadata(stores: &Stores) {
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let object =
        client.get_object().bucket(&stores.bucket).key(KEY).send().await.expect("an object");
    let body = object.body.collect().await.expect("a body").into_bytes();
    let put = client.put_object().bucket(&stores.bucket).key(KEY).body(body.into());
    put.send().await.expect("an object");
}

async fn metadata(stores: &Stores) -> Option<String> {
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let head =
        client.head_object().bucket(&stores.bucket).key(KEY).send().await.expect("an object");
    head.metadata()?.get("session-version").cloned()
}

/// Its body still says which versions it holds: an older row is not written over it, by a stale
/// redelivery nor by `backfill objects`, and it gets its metadata back.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_has_lost_its_metadata_does_not_go_back() {
    let race = Race::start().await;
    let (old, new) = (session("s1", "old").place(LABEL, 1), session("s1", "new").place(LABEL, 2));
    apply(&race.newer, std::slice::from_ref(&old)).await;
    let behind = race.stores.restored_with_its_bucket().await;
    apply(&race.newer, &[new]).await;
    let newest = race.object().await;

    let older = behind.projector_at(&race.gate.url, 1).await;
    lose_metadata(&race.stores).await;
    // The database is behind: its row is older than the object.
    apply(&older, &[old]).await;
    assert_eq!(race.object().await, newest);
    assert!(metadata(&race.stores).await.is_some(), "the metadata is back");

    lose_metadata(&race.stores).await;
    let output = backfill(&behind, &["objects"]);
    assert_code(&output, 0);
    assert_eq!((race.object().await, metadata(&race.stores).await.is_some()), (newest, true));

    // A part that is newer in the row is still written.
    lose_metadata(&race.stores).await;
    apply(&older, &[scan("s1", "left", "245.3").place(LABEL, 3)]).await;
    let object = race.object().await;
    assert_eq!(
        (&object["user_id"], &object["left_foot_length_mm"]),
        (&"new".into(), &serde_json::json!(245.3))
    );
}

/// A tombstone that was downloaded and uploaded is one still.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_that_has_lost_its_metadata_stays_one() {
    let race = Race::start().await;
    let written = session("s1", "u");
    apply(&race.newer, &[written.place(LABEL, 1)]).await;
    let behind = race.stores.restored_with_its_bucket().await;
    apply(&race.newer, &[removal(&written).place(LABEL, 2)]).await;
    lose_metadata(&race.stores).await;
    apply(&behind.projector_at(&race.gate.url, 1).await, &[written.place(LABEL, 1)]).await;
    assert_eq!(race.object().await["deleted"], true);
    assert!(metadata(&race.stores).await.is_some());
}
