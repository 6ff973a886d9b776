//! Connections that are cut at every boundary of a statement or a request, and at random bytes: to
//! PostgreSQL and to S3, on the way there and on the way back. What was acknowledged is in both
//! stores, and a redelivery completes the rest.

use std::time::Duration;

use fastrand::Rng;
use projector::apply::Projector;
use projector::deadline::Deadline;
use serde_json::json;
use testkit::cut_gate::{Cut, CutGate, Way};
use testkit::records::{LABEL, Record, removal, scan, session};
use testkit::services::{Stores, hasty_aws};

use super::world::World;
use super::{amount, report, seed};

/// A batch that never gets through is a finding.
const MAX_DELIVERIES: usize = 10;
/// Nothing of one cut takes this long, however busy the machine is.
const PATIENCE: Duration = Duration::from_mins(3);

/// New rows, changed ones, a removed one, and a record that is rejected.
fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for number in 0..6 {
        let id = format!("s{number}");
        records.push(session(&id, "u").place(LABEL, 1 + number));
        records.push(scan(&id, "left", &format!("24{number}.5")).place(LABEL, 11 + number));
    }
    records.push(removal(&session("s0", "u")).place(LABEL, 21));
    records.push(removal(&scan("s0", "left", "1")).place(LABEL, 22));
    records.push(scan("s1", "right", "250.5").place(LABEL, 23));
    let mut malformed = scan("s2", "right", "2455").place(LABEL, 24);
    malformed.malformed = true;
    records.push(malformed);
    records
}

/// Both stores behind gates.
struct Gated {
    world: World,
    database: CutGate,
    s3: CutGate,
}

impl Gated {
    async fn new() -> Self {
        let world = World::new(1, 0).await;
        let database = CutGate::open(world.stores.database_host()).await;
        let s3 = CutGate::open(world.s3.url.trim_start_matches("http://").to_owned()).await;
        Self { world, database, s3 }
    }

    /// A projector with new connections, as in a process that has just started.
    async fn projector(&self) -> Projector {
        let stores: Stores = self.world.stores.with_database_at(&self.database.address.to_string());
        stores.projector_of(&hasty_aws(&format!("http://{}", self.s3.address)).await, 1)
    }

    /// Delivers two batches, each until all of it is acknowledged. Gives how often.
    async fn deliver(&self, records: &[Record]) -> usize {
        let projector = self.projector().await;
        let (first, second) = records.split_at(records.len() / 2);
        let mut deliveries = 0;
        let mut acknowledged: Vec<&Record> = Vec::new();
        for batch in [first, second] {
            let mut remaining: Vec<&Record> = batch.iter().collect();
            for _ in 0..MAX_DELIVERIES {
                if remaining.is_empty() {
                    break;
                }
                deliveries += 1;
                let failed = failed(&projector, &remaining).await;
                let done = |record: &&&Record| !failed.contains(&record.sequence_number);
                acknowledged.extend(remaining.iter().filter(done));
                remaining.retain(|record| failed.contains(&record.sequence_number));
                self.world.assert_stored(&acknowledged).await;
            }
            assert!(remaining.is_empty(), "{} records never get through", remaining.len());
        }
        deliveries
    }

    async fn forget(&self) {
        self.world.stores.change("TRUNCATE measurements, rejected_records").await;
        self.world.s3.clear();
    }
}

/// The records that are not acknowledged, by their numbers.
async fn failed(projector: &Projector, batch: &[&Record]) -> Vec<u128> {
    let json: Vec<&[u8]> = batch.iter().map(|record| record.json.as_bytes()).collect();
    let applied = Box::pin(projector.apply(&json, Deadline::NONE)).await;
    let applied = applied.expect("a cut is no fault of the set-up");
    applied.failed.into_iter().map(|index| batch[index].sequence_number).collect()
}

/// All boundaries of both services, shuffled, and as many random places.
fn places(gated: &Gated, rng: &mut Rng) -> Vec<(bool, Cut)> {
    let mut all = Vec::new();
    for (of_database, gate) in [(true, &gated.database), (false, &gated.s3)] {
        let boundaries = gate.boundaries();
        assert!(boundaries.len() > 20, "{} boundaries", boundaries.len());
        for way in [Way::Up, Way::Down] {
            let of_way = boundaries.iter().filter(|cut| cut.way == way);
            let last = of_way.map(|cut| cut.after).max().unwrap_or(1);
            let random = (0..boundaries.len() / 2).map(|_| Cut { way, after: rng.u64(..last) });
            all.extend(random.map(|cut| (of_database, cut)));
        }
        all.extend(boundaries.into_iter().map(|cut| (of_database, cut)));
    }
    rng.shuffle(&mut all);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_anywhere_loses_nothing_and_acknowledges_nothing_early() {
    let (seed, wanted) = (seed(), amount(20, 1_000));
    let mut rng = Rng::with_seed(seed);
    let (gated, records) = (Gated::new().await, records());
    assert_eq!(gated.deliver(&records).await, 2, "without a cut");
    let places = places(&gated, &mut rng);
    let (mut cuts, mut redelivered, mut of_database) = (0, 0, 0);
    let tried = usize::try_from(wanted).expect("it fits");
    for (is_of_database, cut) in places.iter().cycle().take(tried) {
        gated.forget().await;
        let gate = if *is_of_database { &gated.database } else { &gated.s3 };
        gate.arm(Some(*cut));
        let delivered = tokio::time::timeout(PATIENCE, gated.deliver(&records)).await;
        let delivered = delivered.unwrap_or_else(|_| panic!("{cut:?} is waited out"));
        gated.world.assert_equal(&records).await;
        // A batch of other statements may be shorter than the one that was measured.
        cuts += u64::from(!gate.is_armed());
        gate.arm(None);
        redelivered += u64::from(delivered > 2);
        of_database += u64::from(*is_of_database);
    }
    assert!(cuts * 10 > wanted * 8, "{cuts} of {wanted} were cut");
    let came_to = json!({ "connections cut": cuts, "of these to PostgreSQL": of_database,
        "places known": places.len(), "cuts that needed a redelivery": redelivered });
    report("cuts", seed, &came_to);
}
