//! Serves two tables of generated items, and two streams without records: what `backfill repair
//! --scan` is measured against.

use clap::Parser;
use testkit::memory_s3;
use testkit::stream_server::StreamServer;
use testkit::table_server::{self, Items};
use tokio::io::AsyncReadExt as _;

/// Serves tables of sessions and scans, and their streams without records, on loopback, until
/// standard input ends. One in a hundred parts differs from the rows of scripts/measure-repair.
#[derive(Parser)]
struct Arguments {
    /// How many sessions there are, each with two scans.
    #[arg(long, default_value_t = 1_000)]
    sessions: u64,
    /// The bytes of each scan's mesh, a multiple of 48.
    #[arg(long, default_value_t = 2_016)]
    mesh_bytes: usize,
    /// Serve an S3 in memory instead of the tables, and print its URL.
    #[arg(long)]
    s3: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { sessions, mesh_bytes, s3 } = Arguments::parse();
    if s3 {
        return memory_s3::serve_until_stdin_ends().await;
    }
    let tables = table_server::start(Items { sessions, mesh_bytes }).await;
    let streams = StreamServer::start().await;
    // One open shard per table.
    streams.fill(&[], 1, 1);
    println!("export AWS_ENDPOINT_URL_DYNAMODB={tables}");
    println!("export AWS_ENDPOINT_URL_DYNAMODB_STREAMS={}", streams.url);
    println!("export AWS_ENDPOINT_URL_LAMBDA={}", streams.url);
    println!("# {} items", sessions * 3);
    // Whoever started it ends it by going away.
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    Ok(())
}
