//! `backfill redrive`: rejected records again, and what becomes of those that stay.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use projector::deadline::Deadline;
use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, arn, removal, scan, session};
use testkit::runs::{assert_code, backfill, counted, signal, text, watched};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, service};
use tokio::sync::Notify;

const IDENTITIES: &str = "SELECT string_agg(identity, ' ' ORDER BY identity) FROM rejected_records \
    WHERE discarded_at IS NULL";

async fn run(stores: &Stores, sql: &str) {
    stores.change(sql).await;
}

/// As a projector kept it that refused it for a reason of its own.
async fn insert(stores: &Stores, identity: &str, json: &str) {
    let insert = format!(
        "INSERT INTO rejected_records (identity, reason, record) VALUES ('{identity}', 'once', \
            $j${json}$j$)"
    );
    run(stores, &insert).await;
}

/// Records of as many sessions that were rejected once, and are good now.
async fn good(stores: &Stores, count: u128) -> Vec<Record> {
    let records: Vec<Record> = (1..=count)
        .map(|number| session(&format!("s{number:04}"), "u").place(LABEL, number))
        .collect();
    for record in &records {
        insert(stores, &format!("sessions/{}", record.item), &record.json).await;
    }
    records
}

fn malformed(mut record: Record) -> Record {
    for (good, bad) in
        [("2026-11-22T08:00:00Z", "yesterday"), ("\"N\":\"245.3\"", "\"N\":\"2453\"")]
    {
        record.json = record.json.replace(good, bad);
    }
    record.malformed = true;
    record
}

#[tokio::test]
async fn a_record_of_another_table_stays_and_blocks_no_other() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 3).await;
    let foreign = records[0].json.replace(&arn("sessions", LABEL), &arn("orders", LABEL));
    insert(&stores, "orders/1", &foreign).await;

    let dry = backfill(&stores, &["redrive", "--dry-run"]);
    assert_code(&dry, 3);
    assert!(text(&dry.stdout).contains("3 records, 0 would be rejected"), "{dry:?}");
    let output = backfill(&stores, &["redrive"]);
    assert_code(&output, 3);
    assert!(text(&output.stdout).contains("1 records stay untried"), "{output:?}");
    assert!(
        text(&output.stdout).contains(
            "orders/1: of table \"orders\", which is neither SESSIONS_TABLE (\"sessions\") nor"
        ),
        "{output:?}"
    );
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert_eq!(stores.ask(IDENTITIES).await, "orders/1");
    assert_eq!(stores.ask("SELECT reason FROM rejected_records").await, "once");

    // Nothing but such records: the variable is wrong, and not the records.
    let output = backfill(&stores, &["redrive"]);
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("none of the 1 records is of these"), "{output:?}");
    assert!(text(&output.stderr).contains("SESSIONS_TABLE is \"sessions\""), "{output:?}");
}

/// The variables were blamed for it.
#[tokio::test]
async fn a_record_without_a_new_image_stays_and_is_not_taken_for_one_of_another_table() {
    let stores = Stores::fresh().await;
    let record = session("s1", "u").place(LABEL, 1);
    let keys_only = record.json.replace("\"NEW_IMAGE\"", "\"KEYS_ONLY\"");
    assert_ne!(keys_only, record.json);
    insert(&stores, "sessions/1", &keys_only).await;
    for arguments in [&["redrive", "--dry-run"][..], &["redrive"]] {
        let output = backfill(&stores, arguments);
        assert_code(&output, 3);
        let said = text(&output.stdout);
        assert!(said.contains("sessions/1: of table \"sessions\", without a new image"), "{said}");
        assert!(!said.contains("SESSIONS_TABLE") && !said.contains("is read"), "{said}");
    }
    // Beside one of another table, too.
    let foreign = record.json.replace(&arn("sessions", LABEL), &arn("orders", LABEL));
    insert(&stores, "orders/1", &foreign).await;
    assert_code(&backfill(&stores, &["redrive"]), 3);
    assert_eq!(stores.ask(IDENTITIES).await, "orders/1 sessions/1");
}

#[tokio::test]
async fn a_record_that_is_rejected_again_gets_the_reason_of_this_time() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let record = session("s1", "u").place(LABEL, 1);
    let refuse = |name: &str| {
        format!("ALTER TABLE measurements ADD CONSTRAINT {name} CHECK (user_id <> 'u')")
    };
    run(&stores, &refuse("first_rule")).await;
    apply(&projector, std::slice::from_ref(&record)).await;
    let first = stores.ask("SELECT rejected_at FROM rejected_records").await;
    let reason = "SELECT reason FROM rejected_records";
    assert!(stores.ask(reason).await.contains("first_rule"));

    // By a redrive, and by a redelivery of the stream.
    for (rule, redriven) in [("second_rule", true), ("third_rule", false)] {
        run(&stores, "ALTER TABLE measurements DROP CONSTRAINT IF EXISTS first_rule").await;
        run(&stores, "ALTER TABLE measurements DROP CONSTRAINT IF EXISTS second_rule").await;
        run(&stores, &refuse(rule)).await;
        if redriven {
            assert_code(&backfill(&stores, &["redrive"]), 3);
        } else {
            apply(&projector, std::slice::from_ref(&record)).await;
        }
        let found = stores.ask(reason).await;
        assert!(found.contains(rule), "{found}");
    }
    assert_eq!(stores.ask("SELECT rejected_at FROM rejected_records").await, first);
    assert_eq!(stores.rejected().await, 1);

    // One that says the same writes nothing.
    let place = "SELECT xmin::text || ctid || xmax FROM rejected_records";
    let before = stores.ask(place).await;
    apply(&projector, &[record]).await;
    assert_eq!(stores.ask(place).await, before);
}

#[tokio::test]
async fn a_malformed_record_that_a_newer_change_has_overtaken_is_removed() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let later = "2026-11-23T00:00:00.000";
    let foreign_image = {
        let mut record = session("s4", "u").place(LABEL, 4);
        let (head, image) = record.json.split_once("\"NewImage\"").expect("an image");
        record.json = format!("{head}\"NewImage\"{}", image.replacen("s4", "s5", 1));
        record
    };
    let rejected = [
        malformed(scan("s1", "left", "245.3").place(LABEL, 1)),
        // Of the other foot there is a newer change.
        malformed(scan("s2", "left", "245.3").place(LABEL, 2)),
        // The streams' labels say nothing of the two changes.
        malformed(session("s3", "u").place(LABEL, 3)),
        foreign_image,
    ];
    assert_eq!(apply(&projector, &rejected).await.counts.rejected, 4);
    let newer = [
        removal(&scan("s1", "left", "245.3")).place(LABEL, 11),
        scan("s2", "right", "245.3").place(LABEL, 12),
        session("s3", "v").place(later, 1),
        session("s4", "v").place(LABEL, 14),
        session("s5", "v").place(LABEL, 15),
    ];
    apply(&projector, &newer).await;
    let rows = stores.rows().await;

    let dry = backfill(&stores, &["redrive", "--dry-run"]);
    assert_code(&dry, 3);
    assert!(text(&dry.stdout).contains("3 records, 3 would be rejected"), "{dry:?}");
    assert!(text(&dry.stdout).contains("1 more would be removed"), "{dry:?}");
    assert_eq!(stores.rejected().await, 4);
    let output = backfill(&stores, &["redrive"]);
    assert_code(&output, 3);
    assert!(text(&output.stdout).contains("1 records removed"), "{output:?}");
    assert!(text(&output.stdout).contains("1 of them were not applied"), "{output:?}");
    assert_eq!(counted(&output, "rejected"), 3);
    let number = |number: u128| format!("{LABEL}/{number:040}");
    assert_eq!(
        stores.ask(IDENTITIES).await,
        format!("scans/{} sessions/{} sessions/{}", number(2), number(3), number(4))
    );
    assert_eq!(stores.rows().await, rows);
}

#[tokio::test]
async fn a_discarded_record_is_kept_and_does_not_come_back() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let records = [
        malformed(session("s1", "u").place(LABEL, 1)),
        malformed(scan("s1", "left", "245.3").place(LABEL, 2)),
    ];
    apply(&projector, &records).await;
    let discard =
        ["redrive", "--discard", "--why", "a test of the office", "--reason", "%started_at%"];
    let open = "SELECT count(*) FROM rejected_records WHERE discarded_at IS NULL";

    let dry = backfill(&stores, &[&discard[..], &["--dry-run"]].concat());
    assert_code(&dry, 0);
    assert!(text(&dry.stdout).contains("1 records would be discarded"), "{dry:?}");
    assert_eq!(stores.ask(open).await, "2");
    let output = backfill(&stores, &discard);
    assert_code(&output, 0);
    assert!(text(&output.stdout).contains("1 records discarded"), "{output:?}");
    assert!(text(&output.stdout).contains("1 × the attribute started_at"), "{output:?}");
    assert_eq!(stores.ask(open).await, "1");
    let kept = "SELECT record || reason || discarded_why || (discarded_at >= rejected_at) \
        FROM rejected_records WHERE discarded_at IS NOT NULL";
    let kept = stores.ask(kept).await;
    assert!(kept.starts_with(&records[0].json), "{kept}");
    assert!(kept.contains("the attribute started_at"), "{kept}");
    assert!(kept.ends_with("a test of the officetrue"), "{kept}");

    // Neither its stream nor a redrive opens it again.
    apply(&projector, &records).await;
    assert_eq!(stores.ask(open).await, "1");
    let redriven = backfill(&stores, &["redrive"]);
    assert_code(&redriven, 3);
    assert_eq!(counted(&redriven, "rejected"), 1);
    let identity = stores.ask(IDENTITIES).await;
    let by_identity = ["redrive", "--discard", "--why", "x", "--identity", &identity];
    assert_code(&backfill(&stores, &by_identity), 0);
    assert_code(&backfill(&stores, &["redrive"]), 0);
    assert_eq!((stores.rejected().await, stores.ask(open).await), (2, "0".to_owned()));

    let again = backfill(&stores, &by_identity);
    assert_code(&again, 1);
    assert!(text(&again.stderr).contains("has no open record with the identity"), "{again:?}");
    for incomplete in
        [&["--discard", "--why", "x"][..], &["--discard", "--reason", "%"], &["--why", "x"]]
    {
        assert_code(&backfill(&stores, &[&["redrive"], incomplete].concat()), 2);
    }
}

/// Somebody has dealt with it: a script that runs the file again must be able to end with 0.
#[tokio::test]
async fn a_discarded_record_no_longer_counts_as_rejected() {
    let stores = Stores::fresh().await;
    let records = [
        malformed(session("s1", "u").place(LABEL, 1)),
        malformed(scan("s1", "left", "245.3").place(LABEL, 2)),
        session("s2", "u").place(LABEL, 3),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("records.jsonl");
    let lines: String = records.iter().map(|record| record.json.clone() + "\n").collect();
    std::fs::write(&path, lines).expect("a file");
    let file = ["file", path.to_str().expect("a path")];
    let counts = |output: &Output| ["rejected", "duplicate"].map(|name| counted(output, name));

    let first = backfill(&stores, &file);
    assert_code(&first, 3);
    assert_eq!(counted(&first, "rejected"), 2);
    let discard = ["redrive", "--discard", "--why", "x", "--reason", "%started_at%"];
    assert_code(&backfill(&stores, &discard), 0);
    let again = backfill(&stores, &file);
    assert_code(&again, 3);
    assert_eq!(counts(&again), [1, 2], "{again:?}");
    assert_code(&backfill(&stores, &["redrive", "--discard", "--why", "x", "--reason", "%"]), 0);
    let last = backfill(&stores, &file);
    assert_code(&last, 0);
    assert_eq!(counts(&last), [0, 3], "{last:?}");

    // Opened again, it counts again, on a connection that has seen it discarded.
    let projector = stores.projector().await;
    assert_eq!(apply(&projector, &records).await.counts.rejected, 0);
    let open = "UPDATE rejected_records SET discarded_at = NULL, discarded_why = NULL";
    assert_eq!(stores.change(open).await, 2);
    assert_eq!(apply(&projector, &records).await.counts.rejected, 2);
}

/// A record that is JSON of the form in which we keep others came back as other bytes, and was
/// there twice.
#[tokio::test]
async fn a_record_of_any_form_hits_its_own_row_again() {
    let stores = Stores::fresh().await;
    let records: [&[u8]; 7] = [
        b"\"abc\"",
        b"abc",
        b"{\"base64\":\"AAAA\"}",
        b"\0\0\0",
        b"\xff",
        "{\"eventID\":\"\u{e9}\"}".as_bytes(),
        b"",
    ];
    let applied = stores.projector().await.apply(&records, Deadline::NONE).await.expect("stored");
    assert_eq!((applied.failed.len(), applied.counts.rejected), (0, 7));
    let rows = "SELECT string_agg(identity || record || rejected_at, '' ORDER BY identity) FROM \
        rejected_records";
    let before = stores.ask(rows).await;
    assert_code(&backfill(&stores, &["redrive"]), 3);
    assert_eq!(stores.ask(rows).await, before);

    // As an earlier version kept them.
    for json in ["\"abc\"", "{\"base64\":\"AAAA\"}"] {
        let as_it_was = format!(
            "UPDATE rejected_records SET record = '{json}' \
             WHERE identity = 'sha256/' || encode(sha256('{json}'), 'hex')"
        );
        run(&stores, &as_it_was).await;
    }
    assert_ne!(stores.ask(rows).await, before);
    // What they would be taken for is not there to be hit instead; they and one plain object
    // remain.
    let others = "DELETE FROM rejected_records \
        WHERE identity <> 'sha256/' || encode(sha256(convert_to(record::text, 'UTF8')), 'hex')";
    run(&stores, others).await;
    assert_eq!(stores.rejected().await, 3);
    assert_code(&backfill(&stores, &["redrive"]), 3);
    assert_eq!(stores.rejected().await, 3);
}

/// A redrive through gates to both stores. The first PUT is held until `meanwhile` is done, so that
/// the database goes away in the middle of the run.
async fn through_gates(stores: &Stores, meanwhile: impl AsyncFnOnce(&TcpGate)) -> Output {
    let database = TcpGate::open(stores.database_host()).await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    s3.set_rule(move |seen| {
        let first = seen.method == "PUT" && seen.path.ends_with("/s0001.json") && seen.earlier == 0;
        if first { Fault::Hold(Arc::clone(&released)) } else { Fault::Pass }
    });
    let gated = stores.with_database_at(&database.address.to_string());
    let child = watched(&gated, &["redrive"])
        .env("AWS_ENDPOINT_URL_S3", &s3.url)
        .spawn()
        .expect("backfill runs");
    let going_on = async {
        // The rest of the batch is through by then, and only what is held keeps its records from
        // being removed.
        s3.until("PUT", 100).await;
        meanwhile(&database).await;
    };
    let releasing = async {
        s3.until("PUT", 100).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        release.notify_one();
    };
    let run = async { tokio::join!(child.wait_with_output(), going_on, releasing).0 };
    let ended = tokio::time::timeout(Duration::from_mins(3), run).await;
    ended.expect("it hangs").expect("backfill runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_database_is_waited_out() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 150).await;
    let output = through_gates(&stores, async |database| {
        database.set_open(false);
        tokio::time::sleep(Duration::from_secs(3)).await;
        database.set_open(true);
    })
    .await;
    assert_code(&output, 0);
    assert!(text(&output.stderr).contains("again in 2 s"), "{output:?}");
    assert!(text(&output.stdout).contains("150 records removed"), "{output:?}");
    assert_eq!((stores.rows().await, stores.rejected().await), (oracle::rows(&records), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_does_not_hold_the_run() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 150).await;
    let output = through_gates(&stores, async |database| database.forget_connections()).await;
    assert_code(&output, 0);
    assert!(text(&output.stdout).contains("150 records removed"), "{output:?}");
    assert_eq!((stores.rows().await, stores.rejected().await), (oracle::rows(&records), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_run_with_a_summary_and_the_next_one_resumes() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 350).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match seen.method {
        "PUT" => Fault::Delay(Duration::from_millis(200)),
        _ => Fault::Pass,
    });
    let child = watched(&stores, &["redrive"])
        .env("AWS_ENDPOINT_URL_S3", &gate.url)
        .spawn()
        .expect("backfill runs");
    gate.until("PUT", 110).await;
    signal(&child, "TERM");
    let output = child.wait_with_output().await.expect("backfill runs");
    assert_code(&output, 6);
    assert!(text(&output.stdout).starts_with("stopped: "), "{output:?}");
    assert!(
        text(&output.stderr).contains("run the same command again to try the rest"),
        "{output:?}"
    );
    // The batch under way was finished, and no other begun.
    assert_eq!((counted(&output, "applied"), stores.rejected().await), (200, 150));
    assert_code(&backfill(&stores, &["redrive"]), 0);
    assert_eq!((stores.rows().await, stores.rejected().await), (oracle::rows(&records), 0));
}

/// It claimed that nothing was applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_signal_cuts_off_is_reported_as_not_counted() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 6).await;
    apply(&stores.projector().await, &[scan("s0003", "left", "245.3").place(LABEL, 1)]).await;
    let mut owner = stores.connect().await;
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's0003' FOR UPDATE";
    owner.run(lock).await;
    let child =
        watched(&stores, &["redrive"]).env_remove("ARCHIVE_BUCKET").spawn().expect("backfill runs");
    while stores.rows().await.len() < records.len() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&child, "INT");
    let output = child.wait_with_output().await.expect("backfill runs");
    assert_code(&output, 6);
    assert!(text(&output.stdout).starts_with("stopped: 0 records"), "{output:?}");
    assert_eq!(counted(&output, "not counted"), 6, "{output:?}");
    owner.run("ROLLBACK").await;
    let again = backfill(&stores, &["redrive"]);
    assert_code(&again, 0);
    // The statement that the signal cut off may still commit once the lock is gone.
    assert!((5..=6).contains(&counted(&again, "duplicate")), "{again:?}");
    assert_eq!(counted(&again, "not counted"), 0);
    assert_eq!(stores.rejected().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_stored_now_holds_up_no_other() {
    let stores = Stores::fresh().await;
    let records = good(&stores, 150).await;
    apply(&stores.projector().await, &[scan("s0007", "left", "245.3").place(LABEL, 1)]).await;
    run(&stores, &format!("ALTER DATABASE {:?} SET lock_timeout = '500ms'", stores.bucket)).await;
    let mut owner = stores.connect().await;
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's0007' FOR UPDATE";
    owner.run(lock).await;
    let output = backfill(&stores, &["redrive"]);
    assert_code(&output, 1);
    let message = text(&output.stderr);
    assert!(
        message.contains("1 records could not be stored, the log above says why: sessions/s0007. "),
        "{message}"
    );
    assert_eq!(stores.ask(IDENTITIES).await, "sessions/s0007");
    owner.run("ROLLBACK").await;
    assert_code(&backfill(&stores, &["redrive"]), 0);
    assert_eq!((stores.rows().await.len(), stores.rejected().await), (records.len(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_heard_while_the_database_is_away() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    gate.fall_silent();
    let away = stores.with_database_at(&gate.address.to_string());
    for (command, hint) in [
        ("redrive", "stopped by a signal before the first record was tried"),
        ("objects", "stopped by a signal: run the same command again, which resumes"),
    ] {
        let child = watched(&away, &[command]).spawn().expect("backfill runs");
        // Until it waits for the connection.
        tokio::time::sleep(Duration::from_secs(2)).await;
        signal(&child, "TERM");
        let output = child.wait_with_output().await.expect("backfill runs");
        assert_code(&output, 6);
        assert!(text(&output.stderr).contains(hint), "{output:?}");
    }
}

/// The function's new version may come before the migration.
#[tokio::test]
async fn a_projector_that_is_newer_than_its_schema_still_rejects() {
    let stores = Stores::fresh().await;
    run(
        &stores,
        "ALTER TABLE rejected_records DROP COLUMN discarded_at CASCADE, DROP COLUMN discarded_why",
    )
    .await;
    let record = malformed(session("s1", "u").place(LABEL, 1));
    let projector = stores.projector().await;
    for _ in 0..2 {
        let applied = apply(&projector, std::slice::from_ref(&record)).await;
        assert_eq!((applied.counts.rejected, stores.rejected().await), (1, 1));
    }
    let output = backfill(&stores, &["redrive"]);
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("run `backfill migrate`"), "{output:?}");
}
