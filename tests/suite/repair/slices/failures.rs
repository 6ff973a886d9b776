//! A bucket of failures, an object per request: what Lambda gave up on is read again, and the
//! objects go once all of it is settled.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::records::{Draft, LABEL, removal, session};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{keep_versions, s3, service};
use tokio::process::Command;
use tokio::sync::Notify;

use super::super::{World, changed, id, of_session};
use super::{Begun, Caller, Following, TIMEOUT};

/// A bucket as `OnFailure` names it.
struct Bucket {
    name: String,
}

impl Bucket {
    async fn new() -> Self {
        let name = format!("failures-{:016x}", fastrand::u64(..));
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        client.create_bucket().bucket(&name).send().await.expect("a bucket");
        Self { name }
    }

    async fn put(&self, key: &str, text: String) {
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        let put = client.put_object().bucket(&self.name).key(key);
        put.body(text.into_bytes().into()).send().await.expect("an object");
    }

    /// A batch that Lambda gave up on, under a key as it makes them.
    async fn give_up(&self, number: usize, records: &[Json]) -> String {
        let key = format!(
            "aws/lambda/12345678-abcd-4321-abcd-123456789abc/shardId-1/2026/11/25/\
             2026-11-25T21.32.39-00000000-0000-4000-8000-{number:012}"
        );
        self.put(&key, given_up(records)).await;
        key
    }

    /// The keys of all objects, and of all their versions.
    async fn keys(&self) -> Vec<String> {
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        let listed = client.list_object_versions().bucket(&self.name).send();
        let listed = listed.await.expect("a list");
        let keys = listed.versions().iter().filter_map(|version| version.key());
        keys.map(str::to_owned).collect()
    }

    fn request(&self, key: &str, Begun { run, repair }: Begun) -> Json {
        json!({"bucket": self.name, "failure": key, "repair": repair, "run": run})
    }
}

/// What Lambda writes of a batch.
fn given_up(records: &[Json]) -> String {
    let failure = json!({
        "requestContext": {"requestId": "r", "condition": "RetryAttemptsExhausted"},
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2026-11-25T21:32:39.123Z",
        "DDBStreamBatchInfo": {"shardId": "shardId-1", "batchSize": records.len()},
        "payload": json!({"Records": records}).to_string(),
    });
    failure.to_string()
}

impl World {
    /// The record of a change, of these tables' streams.
    fn record(&self, draft: &Draft, number: u128) -> Json {
        let json = draft.place(LABEL, number).json;
        let of_world = |json: String, (name, own): (&str, &String)| {
            json.replace(&format!(":table/{name}/"), &format!(":table/{own}/"))
        };
        let json = ["sessions", "scans"].into_iter().zip(&self.tables).fold(json, of_world);
        serde_json::from_str(&json).expect("JSON")
    }

    fn function_over(&self, gate: &S3Gate) -> Command {
        let mut command = self.function();
        command.env("AWS_ENDPOINT_URL_S3", &gate.url);
        command
    }
}

/// A repair of one test, and who follows the streams for it.
struct Run {
    caller: Caller,
    begun: Begun,
    owner: &'static str,
    following: Following,
}

impl Run {
    async fn begin(world: &World, owner: &'static str) -> Self {
        let mut caller = Caller::start(world.function()).await;
        let begun = caller.begin(owner).await;
        let following = Following::start(world.starter(), (begun.id(), owner), TIMEOUT);
        world.streams_are_read().await;
        Self { caller, begun, owner, following }
    }

    /// Ends it, and gives what it came to.
    async fn end(self) -> Json {
        let Self { mut caller, begun, owner, following } = self;
        let ended = caller.end(begun, owner).await;
        following.ended().await;
        ended
    }
}

fn number(answer: &Json, name: &str) -> u64 {
    answer[name].as_u64().unwrap_or_else(|| panic!("{name}: {answer}"))
}

/// Every third session has lost a change of each part, some of them a removal, and some sessions
/// never arrived. The records show older images, and each part is in several objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_failures_is_drained_by_several_processes_at_once() {
    let world = World::with_sessions(40).await;
    let mut lost: Vec<Draft> = Vec::new();
    for number in (0..40).step_by(3) {
        let [first, left, right] = of_session(number);
        let left = if number.is_multiple_of(2) { removal(&left) } else { changed(&left, "251") };
        lost.extend([changed(&first, "9"), left, changed(&right, "252.5")]);
    }
    let arrived_never: Vec<Draft> = (50..60).map(|number| of_session(number)[0].clone()).collect();
    let differing = lost.len() + arrived_never.len();
    lost.extend(arrived_never);
    world.write_and_forget(&lost).await;
    // What is equal already was given up too, and its records are older than the rows.
    let equal = (0..40).filter(|number| number % 3 == 1).flat_map(of_session);
    let all: Vec<Draft> = lost.iter().cloned().chain(equal).collect();
    let bucket = Bucket::new().await;
    let mut keys = Vec::new();
    for (object, drafts) in all.chunks(5).chain(all.chunks(7)).chain(all.chunks(11)).enumerate() {
        let old = |draft: &Draft| {
            if draft.image.is_some() { changed(draft, "200") } else { draft.clone() }
        };
        let records: Vec<Json> = drafts
            .iter()
            .zip(1..)
            .map(|(draft, number)| world.record(&old(draft), number))
            .collect();
        keys.push(bucket.give_up(object, &records).await);
    }
    let run = Run::begin(&world, "drain").await;
    let requests: Vec<Json> = keys.iter().map(|key| bucket.request(key, run.begun)).collect();
    let queue = Arc::new(Mutex::new(requests));
    let mut processes = Vec::new();
    for _ in 0..3 {
        let (queue, command) = (Arc::clone(&queue), world.function());
        processes.push(tokio::spawn(async move {
            let (mut caller, mut sums) = (Caller::start(command).await, [0; 3]);
            loop {
                let next = queue.lock().expect("not poisoned").pop();
                let Some(request) = next else { return sums };
                let answer = caller.until_done(&request).await.0;
                for (sum, name) in sums.iter_mut().zip(["records", "repaired", "rejected"]) {
                    *sum += number(&answer, name);
                }
            }
        }));
    }
    // Meanwhile the tables are written.
    world.write(&[changed(&of_session(3)[1], "249"), removal(&of_session(4)[2])]).await;
    let mut sums = [0; 3];
    for process in processes {
        for (sum, more) in sums.iter_mut().zip(process.await.expect("it drains")) {
            *sum += more;
        }
    }
    assert_eq!((sums[0], sums[2]), (3 * all.len() as u64, 0));
    // The stream may have brought one of them first.
    assert!((differing as u64 - 1..=differing as u64).contains(&sums[1]), "{sums:?}");
    assert_eq!(bucket.keys().await, [""; 0]);
    let ended = run.end().await;
    let counts = ["files", "compared", "differing", "repaired", "rejected"];
    let expected = [keys.len() as u64, sums[0], sums[1], sums[1], 0];
    assert_eq!(counts.map(|name| number(&ended, name)), expected, "{ended}");
    world.assert_equal().await;
    assert!(world.row(&id(0), "session_version").await.contains('+'));
    assert!(!world.row(&id(1), "session_version").await.contains('+'), "it was equal");
}

/// One whose record is malformed and whose item is right, one whose item is malformed, too, and one
/// without a key.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_record_is_a_key_or_is_rejected_by_its_identity() {
    let world = World::with_sessions(6).await;
    let [first, left, right] = of_session(1);
    let bad = changed(&right, "1000");
    world.write_and_forget(&[changed(&first, "9"), changed(&left, "251"), bad.clone()]).await;
    let mut without_key = world.record(&first, 7);
    without_key["dynamodb"]["Keys"] = json!({});
    let records = [
        world.record(&changed(&left, "1000"), 3),
        without_key,
        world.record(&bad, 5),
        world.record(&first, 8),
    ];
    let bucket = Bucket::new().await;
    let key = bucket.give_up(1, &records).await;
    let mut run = Run::begin(&world, "malformed").await;
    let answer = run.caller.until_done(&bucket.request(&key, run.begun)).await.0;
    let counts = ["records", "next", "reread", "repaired", "rejected"];
    assert_eq!(counts.map(|name| number(&answer, name)), [4, 4, 3, 2, 2], "{answer}");
    assert_eq!(bucket.keys().await, [""; 0]);
    let ended = run.end().await;
    let counts = ["files", "compared", "repaired", "rejected"];
    assert_eq!(counts.map(|name| number(&ended, name)), [1, 4, 2, 2], "{ended}");
    let identities = "SELECT string_agg(identity, ' ' ORDER BY identity) FROM rejected_records";
    let image = format!("{}/{}/right/image", world.tables[1], id(1));
    let record = format!("{}/{LABEL}/{:040}", world.tables[0], 7);
    assert_eq!(world.stores.ask(identities).await, format!("{image} {record}"));
    assert_eq!(world.row(&id(1), "left_foot_length_mm").await, "251");
    assert_eq!(world.row(&id(1), "app_version").await, "9");
}

/// What somebody else has put there, and a batch with a record of another table.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_no_failure_of_these_tables_is_named_and_stays() {
    let world = World::with_sessions(3).await;
    let first = changed(&of_session(1)[0], "9");
    world.write_and_forget(std::slice::from_ref(&first)).await;
    let bucket = Bucket::new().await;
    let mut foreign = world.record(&first, 2);
    foreign["eventSourceARN"] = json!(testkit::records::arn("orders", LABEL));
    let mixed = bucket.give_up(1, &[foreign, world.record(&first, 3)]).await;
    let event = json!({"Records": [world.record(&first, 3)]}).to_string();
    let objects = [("notes.txt", "hello".to_owned()), ("event.json", event)];
    for (key, text) in objects {
        bucket.put(key, text).await;
    }
    let mut run = Run::begin(&world, "foreign").await;
    for (key, why) in [
        ("notes.txt", "no JSON object or list begins here"),
        ("event.json", "not in a batch that Lambda gave up on"),
        (&mixed, "of table \"orders\", but SESSIONS_TABLE is"),
    ] {
        for _ in 0..2 {
            let said = run.caller.refused(&bucket.request(key, run.begun), "DamagedFile").await;
            let name = format!("s3://{}/{key} stays in the bucket", bucket.name);
            assert!(said.contains(&name) && said.contains(why), "{said}");
            assert!(said.contains("remove it yourself"), "{said}");
        }
    }
    assert_eq!(bucket.keys().await.len(), 3);
    assert_eq!(world.row(&id(1), "app_version").await, "9", "nothing else suffers");
    // There is no such bucket: nothing says that the object is gone.
    let request = json!({"bucket": "failures-of-nobody", "failure": "k", "repair": run.begun.id()});
    let said = run.caller.refused(&request, "Failed").await;
    assert!(said.contains("there is no such bucket"), "{said}");
    let Run { mut caller, begun: Begun { run, repair }, owner, following } = run;
    let end = json!({"run": run, "repair": repair, "owner": owner, "complete": true});
    let ended = caller.ask(&json!({ "end": end })).await;
    let counts = ["complete", "files", "compared", "repaired"].map(|name| ended[name].clone());
    assert_eq!(counts, [json!(false), json!(3), json!(1), json!(1)], "{ended}");
    following.ended().await;
}

/// The process is killed once its row is written, and before S3 has heard of the delete.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_killed_before_the_delete_is_repeated_and_changes_nothing() {
    let world = World::with_sessions(3).await;
    let lost = [changed(&of_session(1)[0], "9"), removal(&of_session(2)[1])];
    world.write_and_forget(&lost).await;
    let bucket = Bucket::new().await;
    let records = lost.iter().zip(1..).map(|(draft, number)| world.record(draft, number));
    let key = bucket.give_up(1, &records.collect::<Vec<_>>()).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match seen.method {
        "DELETE" => Fault::Hold(Arc::new(Notify::new())),
        _ => Fault::Pass,
    });
    let mut run = Run::begin(&world, "killed").await;
    let request = bucket.request(&key, run.begun);
    let mut killed = Caller::start(world.function_over(&gate)).await;
    tokio::select! {
        answer = killed.ask(&request) => panic!("{answer}"),
        () = gate.until("DELETE", 1) => {}
    }
    killed.0.stop().await.expect("it is killed");
    assert_eq!(world.row(&id(1), "app_version").await, "9");
    assert_eq!(bucket.keys().await, [key]);
    let rows = world.stores.rows().await;
    let answer = run.caller.until_done(&request).await.0;
    // Those that the killed one has written are counted.
    assert_eq!((number(&answer, "reread"), number(&answer, "repaired")), (4, 2), "{answer}");
    assert!(world.stores.rows().await == rows);
    assert_eq!(bucket.keys().await, [""; 0]);
    // Its answer was lost: the object is gone, and nothing is left to do.
    assert_eq!(run.caller.ask(&request).await["done"], true);
    let ended = run.end().await;
    assert_eq!((number(&ended, "compared"), number(&ended, "repaired")), (2, 2), "{ended}");
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_deleted_is_an_error_and_one_that_is_not_settled_stays() {
    let world = World::with_sessions(3).await;
    let lost = changed(&of_session(1)[0], "9");
    world.write_and_forget(std::slice::from_ref(&lost)).await;
    let bucket = Bucket::new().await;
    let key = bucket.give_up(1, &[world.record(&lost, 1)]).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let mut run = Run::begin(&world, "refused").await;
    let request = bucket.request(&key, run.begun);
    let mut caller = Caller::start(world.function_over(&gate)).await;
    gate.set_rule(|seen| match seen.method {
        "PUT" => Fault::RefuseWith(403, "AccessDenied"),
        _ => Fault::Pass,
    });
    // The row is written, and its object is not: that is not settled.
    let answer = caller.ask(&request).await;
    assert_eq!((&answer["done"], &answer["next"]), (&json!(false), &json!(0)), "{answer}");
    let said = caller.refused(&answer, "Failed").await;
    let why = format!(
        "record 1 could not be settled within this invocation (objects cannot be written: {}",
        id(1)
    );
    assert!(said.contains(&why), "{said}");
    assert_eq!(bucket.keys().await, [key.as_str()]);

    gate.set_rule(|seen| match seen.method {
        "DELETE" => Fault::RefuseWith(403, "AccessDenied"),
        _ => Fault::Pass,
    });
    let said = caller.refused(&request, "Failed").await;
    assert!(said.contains("is settled, and it cannot be deleted (AccessDenied"), "{said}");
    assert!(said.contains("the role needs s3:DeleteObject"), "{said}");
    assert_eq!(bucket.keys().await, [key]);
    // S3 deletes it, and says that it did not: the next try finds it gone.
    gate.set_rule(|seen| match (seen.method, seen.earlier) {
        ("DELETE", 0..=1) => Fault::HideAnswer,
        _ => Fault::Pass,
    });
    assert_eq!(caller.ask(&request).await["done"], true);
    assert_eq!(bucket.keys().await, [""; 0]);
    run.caller
        .refused(&json!({"follow": {"repair": run.begun.id(), "owner": "x"}}), "LeaseEnded")
        .await;
    run.end().await;
    world.assert_equal().await;
}

/// Another batch comes in the place of the one that was read, just before it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_object_that_was_read_is_deleted_with_versions_and_without() {
    let world = World::with_sessions(6).await;
    let lost = [1, 2, 3, 4].map(|number| changed(&of_session(number)[0], "9"));
    world.write_and_forget(&lost).await;
    let mut run = Run::begin(&world, "replaced").await;
    for (versions, pair) in [false, true].into_iter().zip(lost.chunks(2)) {
        let bucket = Bucket::new().await;
        if versions {
            keep_versions(&s3(&service("AWS_ENDPOINT_URL")).await, &bucket.name).await;
        }
        let key = bucket.give_up(1, &[world.record(&pair[0], 1)]).await;
        let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
        let release = Arc::new(Notify::new());
        let held = Arc::clone(&release);
        gate.set_rule(move |seen| match (seen.method, seen.earlier) {
            ("DELETE", 0) => Fault::Hold(Arc::clone(&held)),
            _ => Fault::Pass,
        });
        let request = bucket.request(&key, run.begun);
        let mut caller = Caller::start(world.function_over(&gate)).await;
        let asking = tokio::spawn(async move { caller.try_ask(&request).await });
        gate.until("DELETE", 1).await;
        bucket.give_up(1, &[world.record(&pair[1], 2)]).await;
        release.notify_one();
        let answered = asking.await.expect("it answers");
        assert_eq!(bucket.keys().await, [key.as_str()], "the one that was not read");
        if versions {
            assert_eq!(answered.expect("its version is gone")["done"], true);
        } else {
            let error = answered.expect_err("it was replaced").to_string();
            assert!(error.contains("it was replaced after it was read: call again"), "{error}");
        }
        assert_eq!(world.row(&pair[1].session_id, "app_version").await, "");
        run.caller.until_done(&bucket.request(&key, run.begun)).await;
        assert_eq!(world.row(&pair[1].session_id, "app_version").await, "9");
        assert_eq!(bucket.keys().await, [""; 0]);
    }
    run.end().await;
    world.assert_equal().await;
}

/// The first call holds an older image back. The second one would find the part equal, because it
/// is gone by then: its record would count as settled, and then the first one would write.
#[tokio::test(flavor = "multi_thread")]
async fn two_objects_that_name_one_session_are_read_one_after_the_other() {
    let world = World::with_sessions(3).await;
    let new = session("new", "u");
    world.write_and_forget(std::slice::from_ref(&new)).await;
    let bucket = Bucket::new().await;
    let first = bucket.give_up(1, &[world.record(&new, 1)]).await;
    let second = bucket.give_up(2, &[world.record(&removal(&new), 2)]).await;
    let other = bucket.give_up(3, &[world.record(&of_session(1)[0], 3)]).await;
    let Run { mut caller, begun, following, owner } = Run::begin(&world, "twice").await;
    // Nobody follows the streams, so what the first call reads waits.
    following.stop().await;
    let request = bucket.request(&first, begun);
    let mut of_first = Caller::start(world.function()).await;
    let asking = tokio::spawn(async move { of_first.until_done(&request).await });
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.write(&[removal(&new)]).await;

    let mut of_second = Caller::with_timeout(world.function(), Duration::from_secs(20)).await;
    assert_eq!(of_second.ask(&bucket.request(&other, begun)).await["done"], true);
    let answer = of_second.ask(&bucket.request(&second, begun)).await;
    assert_eq!((&answer["done"], &answer["next"]), (&json!(false), &json!(0)), "{answer}");
    assert_eq!(bucket.keys().await.len(), 2);

    let following = Following::start(world.starter(), (begun.id(), owner), TIMEOUT);
    asking.await.expect("it ends");
    caller.until_done(&answer).await;
    assert_eq!(bucket.keys().await, [""; 0]);
    caller.end(begun, owner).await;
    following.ended().await;
    world.assert_equal().await;
}

/// As many records as a batch has, and some twenty seconds per invocation, in which S3 is slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_takes_several_invocations_and_skips_nothing() {
    const SESSIONS: usize = 1_500;
    let world = World::with_sessions(3).await;
    let last = changed(&of_session(2)[0], "9");
    world.write_and_forget(std::slice::from_ref(&last)).await;
    // Neither the table nor the database has the others any more.
    let drafts = (1_000..1_000 + SESSIONS).map(|number| of_session(number)[0].clone());
    let drafts: Vec<Draft> = drafts.collect();
    let mut records: Vec<Json> = drafts
        .iter()
        .cycle()
        .zip(1..11_000)
        .map(|(draft, number)| world.record(draft, number))
        .collect();
    records.push(world.record(&last, 11_000));
    let bucket = Bucket::new().await;
    let key = bucket.give_up(1, &records).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match seen.method {
        "HEAD" => Fault::Delay(Duration::from_millis(500)),
        _ => Fault::Pass,
    });
    let run = Run::begin(&world, "large").await;
    let mut caller =
        Caller::with_timeout(world.function_over(&gate), Duration::from_secs(25)).await;
    let (answer, calls) = caller.until_done(&bucket.request(&key, run.begun)).await;
    assert!(calls > 1, "{calls}");
    assert_eq!(
        ["records", "next", "repaired"].map(|name| number(&answer, name)),
        [11_000, 11_000, 1]
    );
    assert!(number(&answer, "reread") > SESSIONS as u64, "{answer}");
    assert_eq!(bucket.keys().await, [""; 0]);
    run.end().await;
    assert_eq!(world.row(&id(2), "app_version").await, "9");
}
