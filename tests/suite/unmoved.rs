//! Images that were read from the tables meet writers of the stream: a part that has moved since it
//! was seen is never written, whatever the versions say, and a part that has not moved is.

use std::sync::Arc;
use std::time::Duration;

use projector::apply::Projector;
use projector::change::{self, Change, Decoded};
use projector::database::DedicatedConnection;
use projector::error::Error;
use projector::fold::{IndexedChange, fold};
use projector::measurement::Versions;
use projector::read_model::upsert_unmoved;
use projector::version::Version;
use testkit::records::{Draft, LABEL, Record, removal, scan, session};
use testkit::runs::until;
use testkit::services::{Stores, apply};

const VERSIONS: &str = "SELECT string_agg(concat_ws(' ', session_id, coalesce(user_id, '-'), \
    right(session_version, 5), right(left_version, 5)), ', ' ORDER BY session_id) FROM measurements";

fn version(number: u128) -> String {
    format!("{LABEL}/{number:040}")
}

/// The version of an image above the one with this number; with 0, of a row that never held it.
fn above(number: u128, repair_us: u64) -> String {
    let base = if number == 0 { String::new() } else { version(number) };
    format!("{base}+{repair_us:016}")
}

/// What an item holds, with the version of an image.
fn image(item: &Draft, version: &str) -> Change {
    let tables = projector::change::Tables { sessions: "sessions".into(), scans: "scans".into() };
    let record = item.place(LABEL, 1);
    match change::decode(record.json.as_bytes(), &tables).expect("a record of ours") {
        Decoded::Change(change) => {
            Change { version: Version::parse(version).expect("a version"), ..change }
        }
        Decoded::Malformed(malformed) => panic!("{malformed}"),
    }
}

fn seen(session: Option<u128>, left: Option<u128>) -> Versions {
    [session.map(version), left.map(version), None].into()
}

/// Upserts the images; `seen` has one entry for each session, by its key.
async fn upsert(
    connection: &mut DedicatedConnection,
    images: Vec<Change>,
    seen: &[Versions],
) -> Result<Vec<Option<Versions>>, Error> {
    let images: Vec<IndexedChange> =
        images.into_iter().map(|change| IndexedChange { record_index: 0, change }).collect();
    upsert_unmoved(connection, &fold(&images), seen).await
}

struct Images {
    stores: Stores,
    projector: Projector,
    connection: DedicatedConnection,
}

impl Images {
    /// A database that holds these records, in which no row goes back.
    async fn over(records: &[Record]) -> Self {
        let stores = Stores::fresh().await;
        let projector = stores.projector().await;
        apply(&projector, records).await;
        stores.forbid_going_back().await;
        let connection = projector.database.connect().await.expect("a connection");
        Self { stores, projector, connection }
    }

    async fn upsert(&mut self, images: Vec<Change>, seen: &[Versions]) -> Vec<Option<Versions>> {
        upsert(&mut self.connection, images, seen).await.expect("it is upserted")
    }

    /// The images meet a transaction that has done `sql` and commits once they wait for it.
    async fn overtaken_by(
        &mut self,
        sql: &str,
        images: Vec<Change>,
        seen: &[Versions],
    ) -> Vec<Option<Versions>> {
        let Self { stores, connection, .. } = self;
        let mut writer = stores.connect().await;
        writer.run("BEGIN").await;
        writer.run(sql).await;
        let upserting = upsert(connection, images, seen);
        let committing = async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = \
                current_database() AND wait_event_type = 'Lock'";
            until("the images wait", async || stores.ask(waits).await == "1").await;
            writer.run("COMMIT").await;
        };
        let both = futures_util::future::join(upserting, committing);
        let (answer, ()) =
            tokio::time::timeout(Duration::from_secs(30), both).await.expect("both end");
        answer.expect("it is upserted")
    }
}

fn versions(answer: &[Option<Versions>], index: usize) -> [Option<&str>; 3] {
    answer[index].as_ref().expect("written").as_deref().into()
}

#[tokio::test]
async fn a_part_that_has_moved_is_dropped_and_the_other_part_of_its_session_is_written() {
    let mut images = Images::over(&[
        session("s1", "old").place(LABEL, 2),
        scan("s1", "left", "245.3").place(LABEL, 3),
        session("s2", "old").place(LABEL, 4),
    ])
    .await;
    // The object had a version that its row never had: the image is greater than what the row has.
    let (beyond, left) = (above(9, 7), above(3, 7));
    let answer = images
        .upsert(
            vec![
                image(&session("s1", "image"), &beyond),
                image(&removal(&scan("s1", "left", "1")), &left),
                image(&session("s2", "image"), &beyond),
            ],
            &[seen(Some(1), Some(3)), seen(None, None)],
        )
        .await;
    assert_eq!(versions(&answer, 0), [Some(version(2).as_str()), Some(&left), None]);
    assert!(answer[1].is_none(), "{answer:?}");
    assert_eq!(images.stores.ask(VERSIONS).await, "s1 old 00002 00007, s2 old 00004");
    assert_eq!(images.stores.ask("SELECT count(left_foot_length_mm) FROM measurements").await, "0");
}

#[tokio::test]
async fn unmoved_parts_are_written_and_a_repeated_call_answers_the_same() {
    let mut images = Images::over(&[session("s1", "old").place(LABEL, 1)]).await;
    let first = async |images: &mut Images| {
        let changes = vec![
            image(&session("s1", "image"), &above(1, 7)),
            image(&scan("s1", "left", "245.3"), &above(0, 7)),
            // Without a row; one is a tombstone.
            image(&session("s2", "image"), &above(0, 7)),
            image(&removal(&session("s3", "u")), &above(0, 7)),
        ];
        images.upsert(changes, &[seen(Some(1), None), seen(None, None), seen(None, None)]).await
    };
    let answer = first(&mut images).await;
    assert_eq!(versions(&answer, 0), [Some(above(1, 7).as_str()), Some(&above(0, 7)), None]);
    assert_eq!(versions(&answer, 1), [Some(above(0, 7).as_str()), None, None]);
    assert_eq!(versions(&answer, 2), [Some(above(0, 7).as_str()), None, None]);
    let expected = "s1 image 00007 00007, s2 image 00007, s3 - 00007";
    assert_eq!(images.stores.ask(VERSIONS).await, expected);
    let places = images.stores.row_places().await;
    assert_eq!(first(&mut images).await, answer, "as if its answer had been lost");
    let ctid = |places: &[(String, String, String, String)]| {
        places.iter().map(|place| (place.0.clone(), place.1.clone())).collect::<Vec<_>>()
    };
    assert_eq!(ctid(&images.stores.row_places().await), ctid(&places), "nothing is written again");
    // The stream's next change comes after them.
    apply(&images.projector, &[session("s1", "next").place(LABEL, 2)]).await;
    assert!(images.stores.ask(VERSIONS).await.starts_with("s1 next 00002 00007"));
    // What is no newer than what was seen is not written, and is nobody's fault.
    let older = vec![image(&session("s1", "image"), &above(1, 8))];
    assert_eq!(images.upsert(older, &[seen(Some(2), None)]).await, [None]);
}

/// The row is locked by a writer that commits: its change is kept, whether the image's version is
/// smaller or greater.
#[tokio::test]
async fn a_change_that_commits_while_the_image_waits_for_its_row_is_kept() {
    for beyond in [above(1, 7), above(9, 7)] {
        let mut images = Images::over(&[
            session("s1", "old").place(LABEL, 1),
            session("s2", "old").place(LABEL, 1),
        ])
        .await;
        let sql = format!(
            "UPDATE measurements SET user_id = 'newer', session_version = '{}' \
             WHERE session_id = 's1'",
            version(2)
        );
        let changes = vec![
            image(&session("s1", "image"), &beyond),
            image(&scan("s1", "left", "245.3"), &above(0, 7)),
            image(&session("s2", "image"), &beyond),
        ];
        let seen = [seen(Some(1), None), seen(Some(1), None)];
        let answer = images.overtaken_by(&sql, changes, &seen).await;
        let newer = version(2);
        assert_eq!(versions(&answer, 0), [Some(newer.as_str()), Some(&above(0, 7)), None]);
        assert_eq!(versions(&answer, 1), [Some(beyond.as_str()), None, None]);
        let expected = "s1 newer 00002 00007, s2 image 00007";
        assert_eq!(images.stores.ask(VERSIONS).await, expected, "{beyond}");
    }
}

/// The row is missing when the image is sent, and is there when it arrives.
#[tokio::test]
async fn a_row_that_appears_meanwhile_keeps_its_part_and_takes_the_others() {
    for beyond in [above(0, 7), above(9, 7)] {
        let mut images = Images::over(&[]).await;
        let sql = format!(
            "INSERT INTO measurements (session_id, user_id, session_version) VALUES ('s1', \
             'newer', '{}')",
            version(2)
        );
        let changes = vec![image(&session("s1", "image"), &beyond)];
        let answer = images.overtaken_by(&sql, changes, &[seen(None, None)]).await;
        assert_eq!(answer, [None]);
        assert_eq!(images.stores.ask(VERSIONS).await, "s1 newer 00002", "{beyond}");

        // Another part of the row came: this one has not moved.
        let sql = sql.replace("'s1'", "'s2'");
        let changes = vec![
            image(&session("s2", "image"), &beyond),
            image(&scan("s2", "left", "245.3"), &beyond),
        ];
        let answer = images.overtaken_by(&sql, changes, &[seen(None, None)]).await;
        assert_eq!(versions(&answer, 0), [Some(version(2).as_str()), Some(&beyond), None]);
        let expected = "s1 newer 00002, s2 newer 00002 00007";
        assert_eq!(images.stores.ask(VERSIONS).await, expected, "{beyond}");
    }
}

/// It must not pass for a part that the stream has brought.
#[tokio::test]
async fn an_image_that_is_kept_out_of_its_row_is_an_error_and_no_other_is_lost() {
    let mut images =
        Images::over(&[session("s1", "old").place(LABEL, 1), session("s2", "old").place(LABEL, 1)])
            .await;
    let swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.session_id IN ('s1', 's3') THEN RETURN NULL; END IF; RETURN new; END $$;
        CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON measurements
            FOR EACH ROW EXECUTE FUNCTION swallow()";
    images.stores.change(swallow).await;
    let changes = |names: &[&str]| {
        let of = |name: &&str| {
            let number = u128::from(*name < "s3");
            image(&session(name, "image"), &above(number, 7))
        };
        names.iter().map(of).collect::<Vec<_>>()
    };
    let all = ["s1", "s2", "s3", "s4"];
    let were = [seen(Some(1), None), seen(Some(1), None), seen(None, None), seen(None, None)];
    let error = upsert(&mut images.connection, changes(&all), &were).await.expect_err("kept out");
    assert!(
        matches!(&error, Error::RowNotWritten { session_id, others: 1 } if session_id == "s1"),
        "{error}"
    );
    assert_eq!(images.stores.ask(VERSIONS).await, "s1 old 00001, s2 image 00007, s4 image 00007");
    // Tried one by one, those that are written answer so.
    for (index, name) in all.iter().enumerate() {
        let were = &were[index..=index];
        let answer = upsert(&mut images.connection, changes(&[name]), were).await;
        assert_eq!(answer.is_ok_and(|answer| answer[0].is_some()), index % 2 == 1, "{name}");
    }
}

/// Images of many sessions and batches of the stream at once: no deadlock, and the stream has the
/// last word.
#[tokio::test(flavor = "multi_thread")]
async fn images_and_the_streams_batches_over_the_same_rows_end_in_the_streams_changes() {
    let name = |number: u128| format!("s{number:03}");
    let had: Vec<Record> =
        (0..200).step_by(2).map(|number| session(&name(number), "old").place(LABEL, 1)).collect();
    let mut images = Images::over(&had).await;
    let next: Arc<Vec<Record>> =
        Arc::new((0..200).map(|number| session(&name(number), "next").place(LABEL, 2)).collect());
    let projector =
        Arc::new(images.stores.projector_without_archive(&images.stores.database_url, 2));
    let stream = tokio::spawn({
        let (projector, next) = (Arc::clone(&projector), Arc::clone(&next));
        async move {
            for batch in next.chunks(40) {
                apply(&projector, batch).await;
            }
        }
    });
    let were: Vec<Versions> =
        (0..200).map(|number: u128| seen((number.is_multiple_of(2)).then_some(1), None)).collect();
    let mut written = 0;
    for round in 1..=5 {
        let of = |number: u128| {
            image(
                &session(&name(number), "image"),
                &above(u128::from(number.is_multiple_of(2)), round),
            )
        };
        let answer = images.upsert((0..200).map(of).collect(), &were).await;
        written += answer.iter().filter(|answer| answer.is_some()).count();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stream.await.expect("no panic");
    assert!(written <= 200, "each part is written once at most: {written}");
    let last = "SELECT count(*) FROM measurements WHERE user_id = 'next' AND session_version = ";
    let last = images.stores.ask(&format!("{last}'{}'", version(2))).await;
    assert_eq!(last, "200");
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(images.stores.ask(deadlocks).await, "0");
}
