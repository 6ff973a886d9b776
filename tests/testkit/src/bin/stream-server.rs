//! Serves a day as live streams: `backfill check` and `stream` to try on a laptop, and to measure.

use clap::Parser;
use testkit::generate::{self, Day};
use testkit::stream_server::StreamServer;
use tokio::io::AsyncReadExt as _;

/// Serves a seeded day of foot measurements as the streams of sessions and scans, on loopback,
/// until standard input ends.
#[derive(Parser)]
struct Arguments {
    /// How many sessions the day has; about 3.4 records each.
    #[arg(long, default_value_t = 1_000)]
    sessions: usize,
    /// The same seed gives the same day.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let every scan carry a mesh of this many bytes.
    #[arg(long, default_value_t = 0)]
    mesh_bytes: usize,
    /// Over how many lineages of shards each table's items are spread.
    #[arg(long, default_value_t = 4)]
    lineages: usize,
    /// How many generations of shards each lineage has; the last one is open.
    #[arg(long, default_value_t = 6)]
    generations: usize,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let (sessions, scans) = generate::day(Day {
        seed: arguments.seed,
        sessions: arguments.sessions,
        malformed: false,
        mesh_bytes: arguments.mesh_bytes,
    });
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let records = generate::recent([sessions, scans].concat(), now);
    let server = StreamServer::start().await;
    server.fill(&records, arguments.lineages, arguments.generations);
    println!("export AWS_ENDPOINT_URL_DYNAMODB_STREAMS={}", server.url);
    println!("export AWS_ENDPOINT_URL_LAMBDA={}", server.url);
    println!("export AWS_ENDPOINT_URL_DYNAMODB={}", server.url);
    println!("# {} records", records.len());
    // Whoever started it ends it by going away.
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
}
